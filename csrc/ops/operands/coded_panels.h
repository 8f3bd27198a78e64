// Packed quantised weights as the operand B of a product C = A B (operand.h). Numbers are expanded
// for one block of one panel at a time, into memory that stays in L1 or L2, and are then used by
// all tokens of the task. So the products are those of float32 weights, bit by bit.
//
//   CodedPanels   forward: k counts inputs; columns are outputs, gate and up side by side
//   CodedAcross   backward: k counts outputs; columns are inputs
#pragma once
#include <type_traits>

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

  private:
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

static_assert(CopiesStrips<CodedAcross<float>, float>);

} // namespace ffncore
