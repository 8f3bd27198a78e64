// Packed weights: one layout for every ISA, so that a pack outlives a change of ISA.
//
// A panel has kPanelBytes of columns: P = 32 float or 16 double. Buffer, each part 64-byte aligned:
//
//   header   PackedHeader
//   up       [panels][d][P]; plain: P neurons a panel; gated: P / 2, groups of G = P / 4 alternate
//            gate, up, gate, up
//   down     [panels][f][P]; P outputs a panel
//   biases   b_gate [f], b_up [f], b_down [d]; those that are present
//
// Columns beyond the last neuron or output are zero, and so are the gaps behind the biases: equal
// weights make equal bytes.
#pragma once
#include "gemm.h"

namespace ffncore {

template <class T> constexpr int64_t kPanel = kPanelBytes / (int64_t)sizeof(T);
template <class T> constexpr int64_t kGroup = kGroupBytes / (int64_t)sizeof(T);

// A weight matrix and the way to walk it: element (i, j) at data[i * row + j * col].
template <class T> struct Matrix {
    T *data = nullptr;
    int64_t row = 0, col = 0;
};

template <class T> Matrix<T> from_row(const Matrix<T> &m, int64_t row) {
    return {m.data ? m.data + row * m.row : nullptr, m.row, m.col};
}
template <class T> Matrix<T> transposed(const Matrix<T> &m) { return {m.data, m.col, m.row}; }

// The weights of one expert. Raw: gate, up [f, d], down [d, f]; packed: the two panel buffers.
// Biases are contiguous.
template <class T> struct Weights {
    int64_t d = 0, f = 0;
    bool gated = false;
    Matrix<const T> gate, up, down;
    const T *b_gate = nullptr, *b_up = nullptr, *b_down = nullptr;
    const T *packed_up = nullptr, *packed_down = nullptr;
    bool packed() const { return packed_up != nullptr; }
};

struct PackedHeader {
    uint64_t magic;
    int64_t dtype, d, f, gated;
    int64_t b_gate, b_up, b_down; // present?
};

// Offsets in bytes of the parts of a packed buffer; 0 = absent.
struct PackedLayout {
    PackedLayout(int64_t element, const PackedHeader &header);
    int64_t up, down, b_gate, b_up, b_down, bytes;
};

constexpr uint64_t kPackedMagic = 0x31304b4341504646u; // "FFPACK01"

template <class T>
void pack_weights(const Weights<T> &weights, const PackedHeader &header, const Kernels<T> &kernels,
                  int threads, char *to);
// Writes the elements back: gate, up, down and their biases (stride in row), of any strides; those
// with data == nullptr are skipped.
template <class T>
void unpack_weights(const char *packed, const Matrix<T> (&matrices)[3],
                    const Matrix<T> (&biases)[3], const Kernels<T> &kernels, int threads);
template <class T> Weights<T> packed_view(const char *packed);

// Hidden units [first, first + units) of an expert. Packed: first is a multiple of the block.
template <class T> Weights<T> slice_units(Weights<T> w, int64_t first, int64_t units) {
    auto rows = [&](Matrix<const T> &m) { m.data = m.data ? m.data + first * m.row : nullptr; };
    rows(w.gate);
    rows(w.up);
    if (w.down.data) w.down.data += first * w.down.col;
    if (w.packed()) {
        w.packed_up += first / (w.gated ? kPanel<T> / 2 : kPanel<T>)*w.d * kPanel<T>;
        w.packed_down += first * kPanel<T>;
    }
    w.b_gate = w.b_gate ? w.b_gate + first : nullptr;
    w.b_up = w.b_up ? w.b_up + first : nullptr;
    w.f = units;
    return w;
}

// One panel of the up phase from neuron `first` on: `width` neurons (plain), or alternating groups
// of `group` columns (gated); block [k, k + depth), into dst[depth][width].
template <class T>
void pack_up_panel(const Kernels<T> &kernels, const Weights<T> &w, int64_t first, int64_t group,
                   int64_t width, int64_t k, int64_t depth, T *dst);

} // namespace ffncore
