// The forward pass with tokens as panels [k][tokens], for raw weights and more than a few tokens:
//
//   [gate | up] rows * x panels -> tile [units][tokens]   -> h, as panels for the next product
//   down rows * h panels        -> tile [outputs][tokens] -> y
//
// Weights are read in place, row by row, so they need no packing. A tile of gate and up has the
// layout of the next product's panels already.
#include "../product/panels.h"
#include "panel_epilogues.h"

namespace ffncore {

template <class T> void add_forward_panels(const Build<T> &build, const ForwardGroup<T> &g) {
    const Weights<T> &w = g.weights;
    Panels<T> panels(build, takes_pairs(build.call.kernels, w));
    const int64_t width = panels.width;
    const Plan plan = make_plan(forward_request(build.call, g));
    const int64_t held = round_up(std::min(plan.token_chunk, g.tokens), width);
    const int64_t x_steps = panels.steps(w.d);
    T *x = build.arena.template take<T>(held * x_steps);
    T *h = build.arena.template take<T>(held * panels.steps(plan.ff_chunk));
    const Carry<T> carry = take_carry<T>(build.arena, plan.carry, held * w.d, w.f);
    const Preactivations saved(g.saved, g.x.type, g.tokens, w.f, w.gated);

    build.schedule.phase();
    auto pack_x = [&](int64_t t0) {
        const int64_t tokens = std::min(plan.token_chunk, g.tokens - t0);
        panels.pack(g.x, w.d, {t0, tokens}, panels.fitted(x, x_steps, tokens));
    };
    pack_x(0);
    for (int64_t t0 = 0; t0 < g.tokens; t0 += plan.token_chunk) {
        const int64_t tokens = std::min(plan.token_chunk, g.tokens - t0);
        for (int64_t f0 = 0; f0 < w.f; f0 += plan.ff_chunk) {
            const Weights<T> part = slice_units(w, f0, std::min(plan.ff_chunk, w.f - f0));
            const bool last = f0 + part.f == w.f;
            const TokenPanels<T> hidden = panels.fitted(h, panels.steps(part.f), tokens);
            build.schedule.phase();
            panels.product(walk_of<T>(w.d, tokens), part.f, {panels.up_rows(part)},
                           {panels.fitted(x, x_steps, tokens)},
                           HiddenEpilogue<T>{panels.k, build.call.activation, part, width,
                                             panels.pairs, hidden, saved.from(t0, f0)});
            Walk<T> down = walk_of<T>(part.f, tokens);
            down.carry = carry;
            down.carry_rows = w.d;
            down.before = panels.steps(f0);
            down.finish = last;
            build.schedule.phase();
            panels.product(down, w.d, {panels.rows(part.down, {}, part.f)}, {hidden},
                           OutputEpilogue<T>{panels.k, g.y.from(t0), w.b_down, width, false});
            // x of the next chunk is packed in the same phase as the last product of this one.
            if (last && t0 + plan.token_chunk < g.tokens) pack_x(t0 + plan.token_chunk);
        }
    }
}

template void add_forward_panels<float>(const Build<float> &, const ForwardGroup<float> &);
template void add_forward_panels<double>(const Build<double> &, const ForwardGroup<double> &);

} // namespace ffncore
