// The forward pass with tokens as rows: x, h and y keep their natural layout, the weights are
// panels.
//
//   up    [tokens x d] * panels [d][P]  -> tile [tokens][gate | up] -> h [tokens, f]
//   down  [tokens x f] * panels [f][P]  -> tile [tokens][outputs]   -> y [tokens, d]
//
// Packed weights stream through the cores once, however many tokens there are. Raw weights are
// transposed: for few tokens in registers (TurnedArgs in kernels.h); 16-bit weights for several
// tiles of tokens a block at a time, into panels of numbers that all these tiles read.
#include "../product/rows.h"
#include "ffn.h"

namespace ffncore {

template <class T>
void add_up_rows(const Build<T> &build, const Weights<T> &part, const TokenRows<T> &x,
                 int64_t tokens, T *h, int64_t ldh, const Preactivations &save, bool pairs) {
    const Rows<T> rows(build);
    const Kernels<T> *k = rows.k;
    const int64_t width = rows.width, neurons = part.gated ? width / 2 : width; // of a tile
    auto hidden = [=, act = build.call.activation](const Tile &tile, T *c) {
        const int64_t r = tile.rows.first, n = tile.rows.count, first = tile.panel * neurons;
        if (part.packed_up && part.gated && k->split_groups) k->split_groups(c, width, n);
        ActForwardArgs<T> a{};
        a.rows = n;
        a.cols = std::min(neurons, part.f - first);
        a.gate = part.gated ? c : nullptr;
        a.up = part.gated ? c + neurons : c;
        a.ld = width;
        a.b_gate = part.b_gate ? part.b_gate + first : nullptr;
        a.b_up = part.b_up ? part.b_up + first : nullptr;
        a.bias_col = 1;
        alignas(64) T numbers[kMaxRows * kPanel<T>]; // h, before it becomes pairs
        a.h = !h ? nullptr : pairs ? numbers : h + r * ldh + first;
        a.ldh = pairs ? width : ldh;
        if (save.up) { // with biases: they are written into the tile, and from there transposed
            a.save_gate = part.gated ? c : nullptr;
            a.save_up = part.gated ? c + neurons : c;
            a.ld_save = width;
        }
        k->act_forward(act, a);
        if (h && pairs) {
            const int64_t end = first + a.cols;
            Bf16 *const out = (Bf16 *)(h + r * ldh);
            k->of[kBfloat16].store(numbers, width, n, a.cols, nullptr, 0, 0, out + first, 2 * ldh,
                                   1, false);
            if (end == part.f && end % 2)
                for (int64_t i = 0; i < n; ++i) out[i * 2 * ldh + end] = {};
        } else if (h && k->round) {
            k->round(a.h, ldh, n, a.cols);
        }
        if (!save.up) return;
        save.each_panel(r, n, [&](int64_t t, int64_t count) {
            const int64_t from = (t - r) * width, to = save.at(t, first);
            auto turn = [&](const T *side, char *out) {
                k->of[save.type].store(side + from, width, count, a.cols, nullptr, 0, 0, out + to,
                                       1, save.width(t), false);
            };
            if (part.gated) turn(a.gate, save.gate);
            turn(a.up, save.up);
        });
    };
    const ProductSize size{
        .tokens = tokens, .depth = part.d, .cols = ceil_div(part.f, neurons) * width};
    const bool in_place = x.in_order() && (x.m.template holds<T>() || pairs);
    const TokenRows<T> gather = in_place ? TokenRows<T>{} : x;
    const StridedRows<T> mine =
        pairs ? rows.pairs_of(x.m) : StridedRows<T>{own<T>(x.m), x.m.row, x.m.col};
    if (part.coded())
        rows.product(size, {mine}, std::vector{coded_up(part, width)}, {}, hidden, gather);
    else if (part.packed())
        rows.product(size, {mine},
                     std::vector{rows.packed(part.packed_up, part, part.d, tokens, pairs)}, {},
                     hidden, gather);
    else
        rows.product(size, {mine}, std::vector{RawPanels<T>{part, false, width}}, {}, hidden,
                     gather);
}

template <class T> void add_forward_rows(const Build<T> &build, const ForwardGroup<T> &g) {
    const Rows<T> rows(build);
    Schedule &s = build.schedule;
    Arena &arena = build.arena;
    const Kernels<T> *k = rows.k;
    const Weights<T> &w = g.weights;
    const int64_t width = rows.width;
    const Plan plan = make_plan(forward_request(build.call, g));
    const int64_t chunk = std::min(plan.token_chunk, std::max<int64_t>(g.tokens, 1));
    const bool pairs = w.packed() && takes_pairs(*k, w);
    const bool whole = pairs ? g.x.col == 1 && g.x.row % 2 == 0 && w.d % 2 == 0 : g.x.col == 1;
    const bool copy = chunk > kRowsInPlace || (!whole && (pairs || g.x.template holds<T>()));
    const int64_t terms = pairs ? 2 : 1; // numbers in an element of the rows of x and h
    const int64_t ldx = row_stride<T>(ceil_div(w.d, terms));
    const int64_t ldh = row_stride<T>(ceil_div(plan.ff_chunk, terms));
    T *copied = copy ? arena.take<T>(chunk * ldx) : nullptr;
    T *h = arena.take<T>(chunk * ldh);
    const Carry<T> carry = take_carry<T>(arena, plan.carry, round_up(w.d, width) * chunk, w.f);
    const Preactivations saved(g.saved, g.x.type, g.tokens, w.f, w.gated);

    for (int64_t t0 = 0; t0 < g.tokens; t0 += chunk) {
        const int64_t tokens = std::min(chunk, g.tokens - t0);
        const Input from = g.x.from(t0);
        if (copy) {
            s.phase();
            pairs ? rows.copy_pairs(from, tokens, w.d, copied, ldx)
                  : rows.copy(from, tokens, w.d, copied, ldx);
        }
        const Input x = !copy   ? from
                        : pairs ? Input{(const char *)copied, 2 * ldx, 1, kBfloat16}
                                : input(copied, ldx);
        for (int64_t f0 = 0; f0 < w.f; f0 += plan.ff_chunk) {
            const Weights<T> part = slice_units(w, f0, std::min(plan.ff_chunk, w.f - f0));
            s.phase();
            add_up_rows<T>(build, part, {x}, tokens, h, ldh, saved.from(t0, f0), pairs);

            const Output y = g.y.from(t0);
            auto output = [=](const Tile &tile, T *c) {
                const int64_t col = tile.cols.first;
                k->of[y.type].store(c, width, tile.rows.count, tile.cols.count,
                                    w.b_down ? w.b_down + col : nullptr, 0, 1,
                                    y.at(tile.rows.first, col), y.row, y.col, false);
            };
            const ProductSize size{.tokens = tokens, .depth = part.f, .cols = w.d};
            const StridedRows<T> hidden{h, ldh, 1, kBlock / terms};
            const SumPart<T> sums{carry, f0, f0 + part.f == w.f};
            s.phase();
            if (w.coded())
                rows.product(size, {hidden}, std::vector{coded_down(part, width)}, sums, output);
            else if (w.packed())
                rows.product(size, {hidden},
                             std::vector{rows.packed(part.packed_down, w, w.f, tokens, pairs)},
                             sums, output);
            else
                rows.product(size, {hidden}, std::vector{RawPanels<T>{part, true, width}}, sums,
                             output);
        }
    }
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template void add_up_rows<T>(const Build<T> &, const Weights<T> &, const TokenRows<T> &,       \
                                 int64_t, T *, int64_t, const Preactivations &, bool);             \
    template void add_forward_rows<T>(const Build<T> &, const ForwardGroup<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
