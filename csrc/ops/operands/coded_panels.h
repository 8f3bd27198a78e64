// Packed quantised weights as the operand B of a product C = A B (operand.h). Numbers are expanded
// for one block of one panel at a time, into memory that stays in L1 or L2, and are then used by
// all tokens of the task. So the products are those of float32 weights, bit by bit.
//
//   CodedPanels   forward: k counts inputs; columns are outputs, gate and up side by side
//   CodedAcross   backward: k counts outputs; columns are inputs
#pragma once
#include <type_traits>
#include <utility>
#include <vector>

#include "../packing/coded.h"
#include "operand.h"

namespace ffncore {

template <class T> struct CodedPanels {
    Coded gate, last; // gate is absent in a plain layer and for down
    int64_t unit0;    // the first output
    int64_t width;    // of a tile: two vectors

    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        if constexpr (std::is_same_v<T, float>) {
            const int64_t side = gate.units ? kernels.width : width;
            if (gate.units) columns(kernels, gate, p * side, side, steps, to);
            columns(kernels, last, p * side, side, steps, to + (width - side));
        }
        return {to, width};
    }

    // The sums of a few tokens, over some steps, for panels side by side: c + i * c_panel [rows]
    // [width] for panel i.
    void sum(const Kernels<T> &kernels, PanelRange panels, Steps steps, const RowTile<T> &a,
             int64_t rows, T *c, int64_t c_panel, bool add) const {
        if constexpr (std::is_same_v<T, float>) {
            const int64_t side = gate.units ? kernels.width : width;
            for (const auto &[m, at] : {std::pair{&gate, int64_t(0)}, {&last, width - side}})
                if (m->units) sum(kernels, *m, {panels, side, at}, steps, a, rows, c, c_panel, add);
        }
    }

  private:
    // The columns of a matrix in panels: `side` of each, from column `at` on.
    struct Side {
        PanelRange panels;
        int64_t side, at;
    };
    void sum(const Kernels<float> &kernels, const Coded &m, const Side &part, Steps steps,
             const RowTile<float> &a, int64_t rows, float *c, int64_t c_panel, bool add) const {
        const int64_t w = kernels.width, each = part.side / w; // vectors of a panel
        const int64_t all = part.panels.count * each;
        for (int64_t first = 0; first < all; first += kernels.few_vectors) {
            FewArgs t{};
            alignas(64) float unused[kMaxFew * kPanel<float>]; // for vectors beyond the last one
            t.row = a.row, t.ldc = width, t.add = add;
            each_part(RowRange{0, rows}, kMaxFew, [&](RowRange some) {
                for (int64_t i = 0; i < kernels.few_vectors; ++i) {
                    const int64_t v = std::min(first + i, all - 1), p = v / each;
                    const int64_t column = v % each * w;
                    const int64_t output = unit0 + (part.panels.first + p) * part.side + column;
                    const int64_t last_unit = (m.layout->rows - 1) / kUnit;
                    const ExpandArgs of =
                        expand_args(m, std::min(output / kUnit, last_unit), steps);
                    if (i == 0) t.shared = of;
                    float *const to = c + p * c_panel + part.at + column + some.first * width;
                    const bool there = first + i < all && output / kUnit <= last_unit;
                    t.of[i] = {of.codes,
                               of.high,
                               {of.scale.data, of.zero.data, of.offset.data},
                               {of.scale.factors, of.zero.factors, of.offset.factors},
                               int(output % kUnit),
                               there ? to : unused};
                    if (first + i < all && !there && !add)
                        for (int64_t r = 0; r < some.count; ++r)
                            std::fill_n(to + r * width, w, 0.0f);
                }
                t.a = a.a0 + some.first * a.row;
                kernels.few[some.count](t);
            });
        }
    }
    void columns(const Kernels<float> &kernels, const Coded &m, int64_t first, int64_t count,
                 Steps steps, float *to) const {
        const int64_t width_of_part = std::min<int64_t>(count, kUnit);
        for (int64_t c = 0; c < count; c += width_of_part) {
            const int64_t output = unit0 + first + c;
            if (output < m.layout->rows)
                expand(kernels, m, output / kUnit, output % kUnit, width_of_part / kernels.width,
                       steps, to + c, width);
            else // a tile is wider than what is left
                for (int64_t k = 0; k < steps.count; ++k)
                    std::fill_n(to + c + k * width, width_of_part, 0.0f);
        }
    }
};

template <class T> CodedPanels<T> coded_up(const Weights<T> &w, int64_t width) {
    return {w.coded_gate, w.coded_up, w.coded_unit, width};
}
template <class T> CodedPanels<T> coded_down(const Weights<T> &w, int64_t width) {
    return {{}, w.coded_down, 0, width};
}

template <class T> struct CodedAcross {
    Coded m;
    int64_t unit0, cols, width;
    bool copies() const { return true; }
    void copy(const Kernels<T> &kernels, PanelRange panels, Steps steps, T *to) const {
        for (int64_t p = panels.first; p < panels.end(); ++p)
            get(kernels, p, steps, to + (p - panels.first) * kBlock * width);
    }
    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        if constexpr (std::is_same_v<T, float>) {
            alignas(64) float numbers[kPanelBytes / sizeof(float) * kUnit];
            const int64_t first = p * width, have = std::min(width, cols - first);
            each_part(steps, kUnit, [&](Steps some) { // unit0 is a multiple of the block
                const int64_t output = unit0 + some.first, lane = output % kUnit;
                expand(kernels, m, output / kUnit, 0, kUnit / kernels.width, Steps{first, have},
                       numbers, kUnit);
                kernels.of[kFloat32].pack(numbers + lane, kUnit, 1, have, some.count,
                                          to + (some.first - steps.first) * width, width, width);
            });
        }
        return {to, width};
    }
};

// down for dh, and gate and up for dx.
template <class T> CodedAcross<T> coded_outputs(const Weights<T> &w, int64_t width) {
    return {w.coded_down, 0, w.f, width};
}
template <class T> std::vector<CodedAcross<T>> coded_inputs(const Weights<T> &w, int64_t width) {
    std::vector<CodedAcross<T>> panels;
    for (const Coded &m : {w.coded_gate, w.coded_up})
        if (m.units) panels.push_back({m, w.coded_unit, w.d, width});
    return panels;
}

static_assert(CopiesStrips<CodedAcross<float>, float>);

} // namespace ffncore
