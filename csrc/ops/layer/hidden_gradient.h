// The epilogue of dh = dy W_down with tokens as rows. From a tile of dh [tokens][units] and the
// preactivations it computes dgate, dup and h:
//
//   dh' = w dh        w: the factor of a row (in a mixture with the weight on the output)
//   dgate, dup        from dh', by the derivative of the activation (ActBackwardArgs)
//   h' = w h          for dW_down = dy^T h'
//   dots              dh . h of a row in groups of 8 units, for the gradient of w
//
// In a dense layer there are no factors: dh' is dh, and h' is h.
#pragma once
#include "../product/epilogue.h"
#include "../product/fetch.h"
#include "ffn.h"

namespace ffncore {

template <class T> struct HiddenGradient {
    const Kernels<T> *k;
    ActivationParams act;
    int64_t width; // of the tile
    ReadPreactivations pre;
    T *dgate, *dup, *h; // [tokens][ld] each; or nullptr
    int64_t ld;
    Preactivations dh; // receives dh' where xielu's sums need it, in the layout of gate and up
    const T *factors = nullptr; // of the tokens
    T *dots = nullptr;          // [tokens][ld_dots]; needs h
    int64_t ld_dots = 0;

    void begin(const Tile &tile) const {
        const int64_t r = tile.rows.first, n = tile.rows.count;
        const int64_t col = tile.cols.first, cols = tile.cols.count;
        constexpr int64_t kBytes = sizeof(T);
        for (T *to : {dgate, dup, h})
            if (to) fetch_lines((const char *)(to + r * ld + col), ld * kBytes, n, cols * kBytes);
        const int64_t bytes = element_bytes(pre.type);
        pre.each_panel(r, n, [&](int64_t t, int64_t count) {
            const int64_t from = pre.at(t, col), row = pre.width(t) * bytes;
            if (pre.gate) fetch_lines(pre.gate + from, row, cols, count * bytes);
            fetch_lines(pre.up + from, row, cols, count * bytes);
        });
    }

    // c: the tile of dh. nullptr: computes h alone, from the preactivations.
    void operator()(const Tile &tile, T *c) const {
        const int64_t r = tile.rows.first, n = tile.rows.count;
        const int64_t col = tile.cols.first, cols = tile.cols.count;
        alignas(64) T turned[2][kMaxRows * kPanel<T>]; // gate, up of the tile
        pre.each_panel(r, n, [&](int64_t t, int64_t count) {
            const int64_t from = pre.at(t, col);
            auto turn = [&](const char *side, T *to) {
                k->of[pre.type].pack(side + from, pre.width(t), 1, cols, count,
                                     to + (t - r) * width, width, width);
            };
            if (pre.gate) turn(pre.gate, turned[0]);
            turn(pre.up, turned[1]);
        });
        const T *gate = pre.gate ? turned[0] : nullptr;
        const int64_t at = r * ld + col;
        if (!c) {
            ActForwardArgs<T> a{};
            a.rows = n;
            a.cols = cols;
            a.gate = gate;
            a.up = turned[1];
            a.ld = width;
            a.h = h + at;
            a.ldh = ld;
            k->act_forward(act, a);
            return finish_hidden(r, n, cols, a.h);
        }
        alignas(64) T scaled[kMaxRows * kPanel<T>];
        if (factors) k->scale(c, width, factors + r, n, cols, scaled, width);
        ActBackwardArgs<T> a{};
        a.rows = n;
        a.cols = cols;
        a.dh = factors ? scaled : c;
        a.gate = gate;
        a.up = turned[1];
        a.ld_dh = a.ld_pre = width;
        a.dgate = dgate ? dgate + at : nullptr;
        a.dup = dup ? dup + at : nullptr;
        a.h = h ? h + at : nullptr;
        a.ld_out = ld;
        k->act_backward(act, a);
        if (dots)
            k->dot_groups(c, width, a.h, ld, n, cols, dots + r * ld_dots + col / kSumGroup,
                          ld_dots);
        for (T *out : {a.dgate, a.dup})
            if (out && k->round) k->round(out, ld, n, cols);
        if (h) finish_hidden(r, n, cols, a.h);
        if (dh.up)
            dh.each_panel(r, n, [&](int64_t t, int64_t count) {
                k->of[dh.type].store(a.dh + (t - r) * width, width, count, cols, nullptr, 0, 0,
                                     dh.up + dh.at(t, col), 1, dh.width(t), false);
            });
    }

  private:
    void finish_hidden(int64_t r, int64_t n, int64_t cols, T *to) const {
        if (factors) k->scale(to, ld, factors + r, n, cols, to, ld);
        if (k->round) k->round(to, ld, n, cols);
    }
};

static_assert(AnnouncedTiles<HiddenGradient<float>>);

} // namespace ffncore
