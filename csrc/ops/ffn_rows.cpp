// Forward with tokens as rows: x, h and y keep their natural layout, the weights are panels.
//
//   up    [tokens x d] * panels [d][P]  -> tile [tokens][gate | up] -> h [tokens, f]
//   down  [tokens x f] * panels [f][P]  -> tile [tokens][outputs]   -> y [tokens, d]
//
// Packed weights stream once through the cores, whatever their number of tokens; raw ones are
// turned in registers on the way (kernels.h), which pays for few tokens only.
#include "rows.h"

namespace ffncore {

template <class T>
void add_up_rows(const Build<T> &build, const Weights<T> &part, StridedRows<T> x, int64_t tokens,
                 T *h, int64_t ldh, const Preactivations<T> &save) {
    const Rows<T> rows(build);
    const Kernels<T> *k = rows.k;
    const int64_t width = rows.width, neurons = part.gated ? width / 2 : width; // of a tile
    auto hidden = [=, act = build.call.activation](int64_t r, int64_t n, int64_t p, int64_t,
                                                   int64_t, T *c) {
        const int64_t first = p * neurons;
        if (part.packed() && part.gated && k->split_groups) k->split_groups(c, width, n);
        ActForwardArgs<T> a{};
        a.rows = n;
        a.cols = std::min(neurons, part.f - first);
        a.gate = part.gated ? c : nullptr;
        a.up = part.gated ? c + neurons : c;
        a.ld = width;
        a.b_gate = part.b_gate ? part.b_gate + first : nullptr;
        a.b_up = part.b_up ? part.b_up + first : nullptr;
        a.bias_col = 1;
        a.h = h ? h + r * ldh + first : nullptr;
        a.ldh = ldh;
        if (!save.up) return k->act_forward(act, a);
        // With their biases: in the tile first, from there turned.
        a.save_gate = part.gated ? c : nullptr;
        a.save_up = part.gated ? c + neurons : c;
        a.ld_save = width;
        k->act_forward(act, a);
        save.each_panel(r, n, [&](int64_t t, int64_t count) {
            const int64_t from = (t - r) * width, to = save.at(t, first);
            auto turn = [&](const T *tile, T *out) {
                k->store(tile + from, width, count, a.cols, nullptr, 0, 0, out + to, 1,
                         save.width(t), false);
            };
            if (part.gated) turn(a.gate, save.gate);
            turn(a.up, save.up);
        });
    };
    const int64_t cols = ceil_div(part.f, neurons) * width;
    if (part.packed())
        rows.product(tokens, part.d, cols, {x},
                     std::vector{PackedPanels<T>{part.packed_up, part.d, width}}, {}, hidden);
    else
        rows.product(tokens, part.d, cols, {x}, std::vector{RawPanels<T>{part, false, width}}, {},
                     hidden);
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
    const bool copy = g.x.col != 1 || chunk > kRowsInPlace;
    const int64_t ldx = row_stride<T>(w.d), ldh = row_stride<T>(plan.ff_chunk);
    T *copied = copy ? arena.take<T>(chunk * ldx) : nullptr;
    T *h = arena.take<T>(chunk * ldh);
    T *carry = plan.carry ? arena.take<T>(round_up(w.d, width) * chunk) : nullptr;
    const Preactivations<T> saved(g.saved, g.tokens, w.f, w.gated);

    for (int64_t t0 = 0; t0 < g.tokens; t0 += chunk) {
        const int64_t tokens = std::min(chunk, g.tokens - t0);
        const Matrix<const T> from = from_row(g.x, t0);
        if (copy) {
            s.phase();
            rows.copy(from, tokens, w.d, copied, ldx);
        }
        const StridedRows<T> x =
            copy ? StridedRows<T>{copied, ldx} : StridedRows<T>{from.data, from.row};
        for (int64_t f0 = 0; f0 < w.f; f0 += plan.ff_chunk) {
            const Weights<T> part = slice_units(w, f0, std::min(plan.ff_chunk, w.f - f0));
            s.phase();
            add_up_rows(build, part, x, tokens, h, ldh, saved.from(t0, f0));

            const Matrix<T> y = from_row(g.y, t0);
            auto output = [=](int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) {
                k->store(c, width, n, cols, w.b_down ? w.b_down + col : nullptr, 0, 1,
                         y.data + r * y.row + col * y.col, y.row, y.col, false);
            };
            const StridedRows<T> hidden{h, ldh};
            const Carry<T> sums{carry, f0 == 0, f0 + part.f == w.f};
            s.phase();
            if (w.packed())
                rows.product(tokens, part.f, w.d, {hidden},
                             std::vector{PackedPanels<T>{part.packed_down, w.f, width}}, sums,
                             output);
            else
                rows.product(tokens, part.f, w.d, {hidden},
                             std::vector{RawPanels<T>{part, true, width}}, sums, output);
        }
    }
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template void add_up_rows<T>(const Build<T> &, const Weights<T> &, StridedRows<T>, int64_t,    \
                                 T *, int64_t, const Preactivations<T> &);                         \
    template void add_forward_rows<T>(const Build<T> &, const ForwardGroup<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
