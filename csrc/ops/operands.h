// The operands of the products (see gemm.h): what gives rows (A) and what gives panels (B).
//
//   A  WeightRows   gate | up | down, in place; or copied where k is not contiguous in memory
//      StridedRows  tokens: x or h as rows
//      PanelRows    token panels read across: rows are units, k is tokens
//   B  TokenPanels  prepared panels of tokens [panel][k][width]
//      PackedPanels packed weights
//      RawPanels    raw weights (few tokens): turned in registers, in place, or packed by blocks
//      RowPanels    x or grad_y [tokens][columns] as [k = token][columns], copied block by block
//      UnitPanels   token panels turned: [k = token][units], block by block
//
// Every B has get(). One that is read in place has line(), where panel p, step k begins in memory,
// so that it can be fetched ahead; one whose panels hold several tiles' columns has share(); one
// that can be turned in registers has turns() and turn().
#pragma once
#include "packing.h"

namespace ffncore {

template <class T> RowTile<T> halves(const T *a0, int64_t n, int64_t row, int64_t step) {
    return {a0, a0 + (n + 1) / 2 * row, row, step, kBlock, 0};
}

template <class T> struct StridedRows {
    const T *data;
    int64_t row;
    bool contiguous() const { return true; }
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, int64_t, int64_t, int64_t, int64_t, int64_t, T *) const {}
    int64_t tile_rows(int64_t, int64_t n) const { return n; }
    RowTile<T> get(int64_t r, int64_t n, int64_t, int64_t k, int64_t, int64_t, const T *) const {
        return halves(data + r * row + k, n, row, (int64_t)1);
    }
};

// Rows of a weight matrix, or of its transpose. With `second` a unit is a row of each.
template <class T> struct WeightRows {
    Matrix<const T> first, second; // element (r, k) at data[r * row + k * col]
    // Packed weights instead: element (r, k) of the up phase or of down, or of its transpose.
    const T *packed = nullptr;
    int64_t packed_depth = 0; // k extent of a packed panel
    bool gated = false, upper = false, transposed = false;
    int64_t second_offset = 0; // of the second matrix's copy: copy_size of a strip

    // Elements of a copied block of `units` rows: whole tiles.
    static int64_t copy_size(int64_t units, int64_t tile) {
        return ceil_div(units, tile) * (kBlock * kTileStride + kTileGap);
    }
    bool pair() const { return second.data != nullptr || (packed && gated && !transposed); }
    bool contiguous() const { return false; }
    bool copies() const {
        if (packed) return transposed;
        const bool alike =
            second.row == first.row && second.col == first.col; // one tile, one stride
        return first.col != 1 || (second.data && !alike);
    }

    // Position of neuron or output i and summed index j in the packed buffer.
    int64_t packed_at(int64_t i, int64_t j) const {
        const int64_t per_panel = gated ? kPanel<T> / 2 : kPanel<T>, in = i % per_panel;
        const int64_t col = gated ? in / kGroup<T> * 2 * kGroup<T> + in % kGroup<T> : in;
        return (i / per_panel * packed_depth + j) * kPanel<T> + col + (upper ? kGroup<T> : 0);
    }

    void prepare(const Kernels<T> &kernels, int64_t r0, int64_t r1, int64_t k, int64_t depth,
                 int64_t tile, T *to) const {
        if (!copies()) return;
        if (packed) { // transposed: row r, block k of the product is index k, r of the packed
                      // matrix
            for (int64_t t = r0; t < r1; t += tile, to += depth * kTileStride + kTileGap)
                for (int64_t j = 0; j < depth; ++j)
                    for (int64_t r = t; r < std::min(t + tile, r1); ++r)
                        to[j * kTileStride + r - t] = packed[packed_at(k + j, r)];
            return;
        }
        kernels.pack_tiles(first.data + r0 * first.row + k * first.col, first.row, first.col,
                           r1 - r0, depth, to, tile);
        if (second.data)
            kernels.pack_tiles(second.data + r0 * second.row + k * second.col, second.row,
                               second.col, r1 - r0, depth, to + second_offset, tile);
    }

    // Tiles of packed weights do not cross a group (gated) or a panel.
    int64_t tile_rows(int64_t r, int64_t n) const {
        const int64_t unit = gated ? kGroup<T> : kPanel<T>;
        return packed && !transposed ? std::min(n, unit - r % unit) : n;
    }

    RowTile<T> get(int64_t r, int64_t n, int64_t r0, int64_t k, int64_t depth, int64_t tile,
                   const T *copied) const {
        if (copies()) {
            const int64_t at = (r - r0) / tile * (depth * kTileStride + kTileGap);
            RowTile<T> t = halves(copied + at, n, (int64_t)1, (int64_t)kTileStride);
            if (second.data) t.a1 = t.a0 + second_offset;
            return t;
        }
        if (packed) {
            const T *a0 = packed + packed_at(r, k);
            RowTile<T> t = halves(a0, n, (int64_t)1, kPanel<T>);
            if (gated) t.a1 = a0 + kGroup<T>;
            return t;
        }
        RowTile<T> t = halves(first.data + r * first.row + k, n, first.row, (int64_t)1);
        if (second.data) t.a1 = second.data + r * second.row + k;
        return t;
    }
};

// Token panels [token panel][rows][width] read across: k is tokens. Tiles do not cross `cut`.
template <class T> struct PanelRows {
    const T *data;
    int64_t rows, width, cut;
    bool pair() const { return false; }
    bool contiguous() const { return false; } // not over a whole block
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, int64_t, int64_t, int64_t, int64_t, int64_t, T *) const {}
    int64_t tile_rows(int64_t r, int64_t n) const { return r < cut ? std::min(n, cut - r) : n; }
    RowTile<T> get(int64_t r, int64_t n, int64_t, int64_t k, int64_t, int64_t, const T *) const {
        const T *a0 = data + (k / width * rows + r) * width;
        return {a0, a0 + (n + 1) / 2 * width, width, 1, width, width * rows};
    }
};

template <class T> struct TokenPanels {
    const T *data;
    int64_t depth, width, last, last_width; // the last panel may be narrower
    Panel<T> get(const Kernels<T> &, int64_t p, int64_t k, int64_t, T *) const {
        const int64_t ld = p == last ? last_width : width;
        return {data + p * width * depth + k * ld, ld};
    }
    int64_t line_bytes() const { return width * (int64_t)sizeof(T); }
    const char *line(int64_t p, int64_t k) const {
        return (const char *)(data + (p * depth + k) * width);
    }
};

template <class T> struct PackedPanels {
    const T *data;
    int64_t depth, width; // width of a tile: a panel, or half of one
    Panel<T> get(const Kernels<T> &, int64_t p, int64_t k, int64_t, T *) const {
        const int64_t per = kPanel<T> / width;
        return {data + (p / per * depth + k) * kPanel<T> + p % per * width, kPanel<T>};
    }
    int64_t share() const { return kPanel<T> / width; }
    int64_t line_bytes() const { return kPanelBytes; }
    const char *line(int64_t p, int64_t k) const {
        return (const char *)(data + (p / share() * depth + k) * kPanel<T>);
    }
};

// Raw weights as panels. Where rows are contiguous in k they are turned in registers; where k
// rows are (transposed weights, plain), the matrix is the panel; else a block is packed.
template <class T> struct RawPanels {
    Weights<T> weights; // the up phase of it; or, with `down`, its down matrix
    bool down;
    int64_t width;

    bool gated() const { return weights.gated && !down; }
    const Matrix<const T> &last() const { return down ? weights.down : weights.up; }
    int64_t outputs() const { return down ? weights.d : weights.f; }

    bool turns() const { return last().col == 1 && (!gated() || weights.gate.col == 1); }
    // Vector v of panel p from block k on.
    TurnedArgs<T> turn(int64_t p, int64_t v, int64_t k) const {
        const int64_t half = width / 2;
        const Matrix<const T> &m = gated() && v == 0 ? weights.gate : last();
        const int64_t first = gated() ? p * half : p * width + v * half;
        TurnedArgs<T> t{};
        t.outputs = std::max<int64_t>(outputs() - first, 0);
        t.b = m.data + (t.outputs ? first : 0) * m.row + k;
        t.ldb = m.row;
        return t;
    }

    Panel<T> get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const Matrix<const T> &m = last();
        if (gated()) {
            pack_up_panel(kernels, weights, p * width / 2, width / 2, width, k, depth, to);
            return {to, width};
        }
        const T *from = m.data + p * width * m.row + k * m.col;
        const int64_t rows = std::min(width, outputs() - p * width);
        if (m.row == 1 && rows == width) return {from, m.col};
        kernels.pack(from, m.row, m.col, rows, depth, to, width, width);
        return {to, width};
    }
};

template <class T> struct RowPanels {
    Matrix<const T> m; // element (token, column)
    int64_t cols, width;
    Panel<T> get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        kernels.pack(m.data + p * width * m.col + k * m.row, m.col, m.row,
                     std::min(width, cols - p * width), depth, to, width, width);
        return {to, width};
    }
};

template <class T> struct UnitPanels {
    const T *data; // [token panel][units][token_width]
    int64_t units, token_width, width;
    Panel<T> get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const int64_t rows = std::min(width, units - p * width);
        for (int64_t t = 0; t < depth; t += token_width)
            kernels.pack(data + ((k + t) * units + p * width * token_width), token_width, 1, rows,
                         std::min(token_width, depth - t), to + t * width, width, width);
        return {to, width};
    }
};

} // namespace ffncore
