// Backward with tokens as panels.
//
//   down^T rows * dy panels              -> dh -> dgate, dup, h, panels of the next two
//   gate^T rows * dgate + up^T * dup     -> dx
//   dgate, dup across * x rows           -> dW_gate, dW_up  [units][d]
//   dy across * h turned                 -> dW_down [d][units]
//
// Weights are copied block by block, once for a whole chunk of tokens.
#include "panels.h"
#include "xielu.h"

namespace ffncore {

namespace {

// dh -> dgate, dup, h of the chunk. Panels are of full width: h [token panel][units][width], and
// dgate and dup one behind the other in [token panel][units of both][width].
template <class T> struct HiddenGradientEpilogue {
    const Kernels<T> *k;
    ActivationParams act;
    Preactivations<const T> saved; // of the chunk: the caller's, or computed again
    int64_t width;
    int64_t slice0;            // first token of the slice, within the chunk
    int64_t units, grad_units; // of a panel of h, and of dgate and dup together
    T *dgate, *dup, *h;
    T *xielu_p, *xielu_n; // [units][groups of tokens]
    int64_t ld_xielu;
    void operator()(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) const {
        const int64_t t = slice0 + col, at = t * units + r * width;
        const int64_t grad_at = t * grad_units + r * width;
        const int64_t from = saved.at(t, r);
        if (!c) { // h alone, from the preactivations
            ActForwardArgs<T> a{};
            a.rows = n;
            a.cols = round_up(cols, k->width);
            a.gate = saved.gate ? saved.gate + from : nullptr;
            a.up = saved.up + from;
            a.ld = saved.width(t);
            a.h = h + at;
            a.ldh = width;
            return k->act_forward(act, a);
        }
        ActBackwardArgs<T> a{};
        a.rows = n;
        a.cols = xielu_p ? cols : round_up(cols, k->width); // sums take no lane beyond the tokens
        a.dh = c;
        a.ld_dh = width;
        a.gate = saved.gate ? saved.gate + from : nullptr;
        a.up = saved.up + from;
        a.ld_pre = saved.width(t);
        a.dgate = dgate ? dgate + grad_at : nullptr;
        a.dup = dup ? dup + grad_at : nullptr;
        a.h = h ? h + at : nullptr;
        a.ld_out = width;
        if (xielu_p) {
            a.xielu_p = xielu_p + r * ld_xielu + t / kXieluGroup;
            a.xielu_n = xielu_n + r * ld_xielu + t / kXieluGroup;
            a.ld_xielu = ld_xielu;
        }
        k->act_backward(act, a);
    }
};

} // namespace

template <class T>
void add_backward_panels(const Build<T> &build, BackwardGroup<T> &g, const Plan &plan) {
    Panels<T> panels(build);
    Schedule &s = build.schedule;
    Arena &arena = build.arena;
    const Weights<T> &w = g.weights;
    const Needs<T> needs(g);
    const int64_t width = panels.width;
    const int64_t held = round_up(std::min(plan.token_chunk, g.tokens), width);
    const int64_t slice = std::min(plan.token_slice, held);
    const bool recompute = !g.saved && needs.preactivation;
    const bool one_slice = slice == held;

    auto take = [&](bool needed, int64_t n) {
        return needed ? arena.template take<T>(n) : nullptr;
    };
    T *x = take(recompute, slice * w.d);
    T *dy = take(needs.dh || (needs.down && one_slice), slice * w.d);
    const int64_t sides = w.gated ? 2 : 1;
    T *grads = take(needs.dh, held * plan.ff_chunk * sides);
    T *h = take(needs.h, held * plan.ff_chunk);
    T *carry = take(plan.carry && needs.x, held * w.d);
    T *recomputed = take(recompute, saved_elements(held, plan.ff_chunk, w.gated));
    XieluSums<T> xielu{};
    if (needs.xielu) xielu.take(arena, w.f, plan.ff_chunk, held);

    for (int64_t t0 = 0; t0 < g.tokens; t0 += plan.token_chunk) {
        const int64_t tokens = std::min(plan.token_chunk, g.tokens - t0);
        const bool add = g.accumulate || t0 > 0;
        const Matrix<const T> x_rows = from_row(g.x, t0), dy_rows = from_row(g.grad_y, t0);
        if (needs.b_down) {
            s.phase();
            panels.bias_gradient(dy_rows, 0, w.d, tokens, g.grad_b_down, add);
        }
        for (int64_t f0 = 0; needs.preactivation && f0 < w.f; f0 += plan.ff_chunk) {
            const Weights<T> part = slice_units(w, f0, std::min(plan.ff_chunk, w.f - f0));
            const bool last = f0 + part.f == w.f;
            const int64_t both = part.f * sides;
            T *dgate = w.gated ? grads : nullptr;
            T *dup = w.gated ? grads + part.f * width : grads;
            const Preactivations<T> again(recomputed, tokens, part.f, w.gated);
            const auto saved =
                recompute ? Preactivations<const T>(recomputed, tokens, part.f, w.gated)
                          : Preactivations<const T>(g.saved, g.tokens, w.f, w.gated).from(t0, f0);

            for (int64_t t = 0; t < tokens; t += slice) {
                const int64_t n = std::min(slice, tokens - t);
                if (!one_slice || f0 == 0) {
                    s.phase();
                    if (recompute) panels.pack(x_rows, t, n, panels.full(x, w.d));
                    if (dy) panels.pack(dy_rows, t, n, panels.full(dy, w.d));
                }
                if (recompute) {
                    s.phase();
                    panels.product(
                        walk_of<T>(w.d, n), part.f, {up_rows(part)}, {panels.full(x, w.d)},
                        HiddenEpilogue<T>{
                            panels.k, build.call.activation, part, width, {}, again.from(t, 0)});
                }
                const HiddenGradientEpilogue<T> epilogue{panels.k, build.call.activation,
                                                         saved,    width,
                                                         t,        part.f,
                                                         both,     dgate,
                                                         dup,      h,
                                                         xielu.p,  xielu.n,
                                                         xielu.ld};
                s.phase();
                if (needs.dh)
                    panels.product(walk_of<T>(w.d, n), part.f, {columns(part.down)},
                                   {panels.full(dy, w.d)}, epilogue);
                else
                    panels.hidden(part.f, n, epilogue);
            }

            s.phase();
            if (needs.x) {
                Walk<T> walk = walk_of<T>(part.f, tokens);
                walk.carry = carry;
                walk.carry_rows = w.d;
                walk.carried = f0 > 0;
                walk.finish = last;
                std::vector<WeightRows<T>> a{columns(w.gated ? part.gate : part.up)};
                std::vector<TokenPanels<T>> b{panels.full(grads, both)};
                if (w.gated) {
                    a.push_back(columns(part.up));
                    b.push_back(panels.full(dup, both));
                }
                panels.product(walk, w.d, a, b,
                               OutputEpilogue<T>{panels.k, from_row(g.grad_x, t0), nullptr, width,
                                                 g.accumulate});
            }
            auto of_chunk = [&](const Matrix<T> &m) { return from_row(m, f0); };
            const auto x_panels = [=](int64_t t) {
                return MatrixPanels<T>{from_row(x_rows, t), w.d, width, false};
            };
            if (needs.gate && needs.up)
                panels.weight_gradient({grads, both, width, part.f}, both, w.d, tokens, x_panels,
                                       of_chunk(g.grad_gate), of_chunk(g.grad_up), add);
            else if (needs.gate || needs.up)
                panels.weight_gradient({needs.gate ? dgate : dup, both, width, part.f}, part.f, w.d,
                                       tokens, x_panels,
                                       of_chunk(needs.gate ? g.grad_gate : g.grad_up), {}, add);
            const Matrix<T> down_turned = from_row(transposed(g.grad_down), f0); // [units][d]
            if (needs.down && one_slice) {
                panels.weight_gradient(
                    {dy, w.d, width, w.d}, w.d, part.f, tokens,
                    [=](int64_t t) { return UnitPanels<T>{h + t * part.f, part.f, width, width}; },
                    transposed(down_turned), {}, add);
            } else if (needs.down) { // dy's panels are gone: units are rows, the result goes out
                                     // turned
                const auto dy_panels = [=](int64_t t) {
                    return MatrixPanels<T>{from_row(dy_rows, t), w.d, width, false};
                };
                panels.weight_gradient({h, part.f, width, part.f}, part.f, w.d, tokens, dy_panels,
                                       down_turned, {}, add);
            }
            if (needs.b_gate)
                panels.bias_gradient({dgate, 0, 0}, both, part.f, tokens, of_chunk(g.grad_b_gate),
                                     add);
            if (needs.b_up)
                panels.bias_gradient({dup, 0, 0}, both, part.f, tokens, of_chunk(g.grad_b_up), add);
            if (needs.xielu) xielu.add_chunk(s, f0, part.f, tokens, t0 == 0);
        }
    }
    if (needs.xielu) xielu.finish(s, w.f, g.xielu_sums);
}

template void add_backward_panels<float>(const Build<float> &, BackwardGroup<float> &,
                                         const Plan &);
template void add_backward_panels<double>(const Build<double> &, BackwardGroup<double> &,
                                          const Plan &);

} // namespace ffncore
