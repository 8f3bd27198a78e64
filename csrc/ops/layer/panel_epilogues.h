// The epilogues of products with tokens as panels:
//
//   HiddenEpilogue   tile [units][tokens] of gate and up -> h, as a panel of the next product; and
//                    the saved preactivations
//   OutputEpilogue   tile [outputs][tokens] -> y or dx, transposed
//   SavedTile        reads saved preactivations for the kernels of the activations
#pragma once
#include "../operands/panel_operands.h"
#include "../product/epilogue.h"
#include "ffn.h"

namespace ffncore {

// Preactivations [units][ld] of some units and tokens, as the kernels of the activations read them:
// in place, or for 16 bits as numbers in `copy`, which has 2 x units x kSavedPanel elements.
template <class T> struct SavedTile {
    const T *gate, *up;
    int64_t ld;
    SavedTile(const Kernels<T> &kernels, const ReadPreactivations &pre, TokenRange tokens,
              UnitRange units, T *copy) {
        const int64_t at = pre.at(tokens.first, units.first), row = pre.width(tokens.first);
        const bool in_place = pre.type == kOwn<T>;
        ld = in_place ? row : kSavedPanel;
        auto read = [&](const char *side, T *to) -> const T * {
            if (!side) return nullptr;
            if (in_place) return (const T *)(side + at);
            kernels.of[pre.type].pack(side + at, 1, row, tokens.count, units.count, to, ld,
                                      tokens.count);
            return to;
        };
        gate = read(pre.gate, copy);
        up = read(pre.up, copy + units.count * kSavedPanel);
    }
};

// Computes h from a tile of preactivations, and saves these.
template <class T> struct HiddenEpilogue {
    const Kernels<T> *k;
    ActivationParams act;
    Weights<T> w; // of the chunk
    int64_t width;
    bool pairs;           // h holds pairs of units
    TokenPanels<T> h;     // data == nullptr: not needed
    Preactivations saved; // up == nullptr: not saved
    void operator()(const Tile &tile, T *c) const {
        const int64_t r = tile.rows.first, n = tile.rows.count;
        const int64_t col = tile.cols.first, cols = tile.cols.count;
        ActForwardArgs<T> a{};
        a.rows = n;
        a.cols = round_up(cols, k->width); // whole vectors, because the next product reads them
        a.gate = w.gated ? c : nullptr;
        a.up = w.gated ? c + n * width : c;
        a.ld = width;
        a.b_gate = w.b_gate ? w.b_gate + r : nullptr;
        a.b_up = w.b_up ? w.b_up + r : nullptr;
        a.bias_row = 1;
        alignas(64) T numbers[kMaxRows * kSavedPanel]; // h, before it becomes pairs
        const Panel to = h.data ? h.at(tile.panel, pairs ? 0 : r) : Panel{};
        if (h.data) {
            a.h = pairs ? numbers : (T *)to.data;
            a.ldh = pairs ? width : to.ld;
        }
        // A token panel of a dense layer lies within one saved panel. That of an expert may belong
        // to two of them.
        const int64_t at = saved.up ? saved.at(col, r) : 0, ld = saved.up ? saved.width(col) : 0;
        const bool one_panel = (saved.token0 + col) % kSavedPanel + a.cols <= ld;
        const bool direct = saved.type == kOwn<T> && one_panel;
        if (saved.up) { // through the tile where they have another type, or belong to two panels
            a.save_gate = !w.gated ? nullptr : direct ? (T *)(saved.gate + at) : c;
            a.save_up = direct ? (T *)(saved.up + at) : w.gated ? c + n * width : c;
            a.ld_save = direct ? ld : width;
        }
        k->act_forward(act, a);
        if (a.h && pairs)
            k->pairs.join_rows(a.h, a.ldh, r, n, a.cols, r + n == w.f, (T *)to.data, to.ld);
        else if (a.h && k->round)
            k->round(a.h, a.ldh, n, a.cols);
        if (!saved.up || direct) return;
        saved.each_panel(col, one_panel ? a.cols : cols, [&](int64_t t, int64_t count) {
            auto put = [&](const T *from, char *to) {
                k->of[saved.type].store(from + t - col, width, n, count, nullptr, 0, 0,
                                        to + saved.at(t, r), saved.width(t), 1, false);
            };
            if (w.gated) put(a.save_gate, saved.gate);
            put(a.save_up, saved.up);
        });
    }
};

// y or dx: the tile [outputs][tokens] is stored transposed.
template <class T> struct OutputEpilogue {
    const Kernels<T> *k;
    Output out; // of the chunk
    const T *bias;
    int64_t width;
    bool add;
    void operator()(const Tile &tile, T *c) const {
        const int64_t r = tile.rows.first, n = tile.rows.count;
        const int64_t col = tile.cols.first, cols = tile.cols.count;
        k->of[out.type].store(c, width, n, cols, bias ? bias + r : nullptr, 1, 0, out.at(col, r),
                              out.col, out.row, add);
    }
};

} // namespace ffncore
