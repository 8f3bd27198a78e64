// The operands of the products (see gemm.h): what gives rows (A), what gives panels (B), and where
// the tiles of a weight gradient go.
//
//   A  WeightRows    gate | up | down, in place; or copied where k is not contiguous in memory
//      StridedRows   any matrix in place: tokens (x, h, dgate), or columns of such a one
//      PanelRows     token panels read across: rows are units, k is tokens
//   B  TokenPanels   prepared panels of tokens [panel][k][width]
//      PackedPanels  packed weights
//      RawPanels     raw weights (few tokens): turned in registers, in place, or packed by blocks
//      MatrixPanels  a matrix whose rows are k: raw weights of the backward pass, x, h
//      UnitPanels    token panels turned: [k = token][units], block by block
//      PackedAcross  packed weights whose k is their outputs, turned block by block
//
// Every B has get(). One that is read in memory's order has line(), where panel p, step k begins,
// line_bytes() to be fetched there, and line_step() to the next k; one whose panels hold several
// tiles' columns has share(); one that can be turned in registers has turns() and turn(); one
// whose copies() is true is copied by strips: blocks of panels [p0, p1) side by side, kBlock steps
// each.
#pragma once
#include "packing.h"

namespace ffncore {

template <class T> RowTile<T> halves(const T *a0, int64_t n, int64_t row, int64_t step) {
    return {a0, a0 + (n + 1) / 2 * row, row, step, kBlock, kBlock * step};
}

template <class T> struct StridedRows {
    const T *data;
    int64_t row, step = 1;
    bool contiguous() const { return step == 1; }
    int64_t tile_rows(int64_t, int64_t n) const { return n; }
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, int64_t, int64_t, int64_t, int64_t, int64_t, T *) const {}
    RowTile<T> get(int64_t r, int64_t n, int64_t, int64_t k, int64_t, int64_t, const T *) const {
        return halves(data + r * row + k * step, n, row, step);
    }
};

// Rows of a weight matrix. With `second` a unit is a row of each.
template <class T> struct WeightRows {
    Matrix<const T> first, second; // element (r, k) at data[r * row + k * col]
    int64_t second_offset = 0;     // of the second matrix's copy: copy_size of a strip

    // Elements of a copied block of `units` rows: whole tiles.
    static int64_t copy_size(int64_t units, int64_t tile) {
        return ceil_div(units, tile) * (kBlock * kTileStride + kTileGap);
    }
    bool pair() const { return second.data != nullptr; }
    bool contiguous() const { return false; }
    int64_t tile_rows(int64_t, int64_t n) const { return n; }
    bool copies() const {
        const bool alike =
            second.row == first.row && second.col == first.col; // one tile, one stride
        return first.col != 1 || (second.data && !alike);
    }

    void prepare(const Kernels<T> &kernels, int64_t r0, int64_t r1, int64_t k, int64_t depth,
                 int64_t tile, T *to) const {
        if (!copies()) return;
        kernels.pack_tiles(first.data + r0 * first.row + k * first.col, first.row, first.col,
                           r1 - r0, depth, to, tile);
        if (second.data)
            kernels.pack_tiles(second.data + r0 * second.row + k * second.col, second.row,
                               second.col, r1 - r0, depth, to + second_offset, tile);
    }

    RowTile<T> get(int64_t r, int64_t n, int64_t r0, int64_t k, int64_t depth, int64_t tile,
                   const T *copied) const {
        if (copies()) {
            const int64_t at = (r - r0) / tile * (depth * kTileStride + kTileGap);
            RowTile<T> t = halves(copied + at, n, (int64_t)1, (int64_t)kTileStride);
            if (second.data) t.a1 = t.a0 + second_offset;
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
    int64_t line_step() const { return line_bytes(); }
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
    int64_t line_step() const { return kPanelBytes; }
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

template <class T> struct MatrixPanels {
    Matrix<const T> m; // element (k, column)
    int64_t cols, width;
    // Full panels are read where they lie: good for rows that spread over the sets of L2 (see
    // row_stride), or that are read by few tiles.
    bool in_place;
    bool copies() const { return !in_place; }
    Panel<T> get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const T *from = m.data + p * width * m.col + k * m.row;
        const int64_t have = std::min(width, cols - p * width);
        if (in_place && m.col == 1 && have == width) return {from, m.row};
        kernels.pack(from, m.col, m.row, have, depth, to, width, width);
        return {to, width};
    }
    // Some rows of all panels at a time: a row's columns are read together.
    void copy(const Kernels<T> &kernels, int64_t p0, int64_t p1, int64_t k, int64_t depth,
              T *to) const {
        constexpr int64_t kRows = 16;
        for (int64_t i = 0; i < depth; i += kRows)
            for (int64_t p = p0; p < p1; ++p)
                get(kernels, p, k + i, std::min(kRows, depth - i),
                    to + ((p - p0) * kBlock + i) * width);
    }
    int64_t line_bytes() const { return width * (int64_t)sizeof(T); }
    int64_t line_step() const { return m.row * (int64_t)sizeof(T); }
    const char *line(int64_t p, int64_t k) const {
        return (const char *)(m.data + k * m.row + p * width * m.col);
    }
};

// Packed down, or (gated: one side of) packed up: k counts the rows of the raw matrix, columns are
// what those are summed over in the forward pass.
template <class T> struct PackedAcross {
    const T *packed;
    int64_t packed_depth, cols, width;
    bool gated, upper;
    bool copies() const { return true; }
    void copy(const Kernels<T> &kernels, int64_t p0, int64_t p1, int64_t k, int64_t depth,
              T *to) const {
        for (int64_t p = p0; p < p1; ++p) get(kernels, p, k, depth, to + (p - p0) * kBlock * width);
    }
    Panel<T> get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const int64_t first = p * width, have = std::min(width, cols - first);
        const int64_t per_panel = gated ? kPanel<T> / 2 : kPanel<T>;
        const int64_t run = gated ? kGroup<T> : kPanel<T>; // rows side by side
        for (int64_t i = 0; i < depth; i += run) {
            const int64_t in = (k + i) % per_panel;
            const int64_t col = gated ? in / run * 2 * run + (upper ? run : 0) : in;
            const T *from = packed + ((k + i) / per_panel * packed_depth + first) * kPanel<T> + col;
            kernels.pack(from, kPanel<T>, 1, have, std::min(run, depth - i), to + i * width, width,
                         width);
        }
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

// The epilogue of a weight gradient: out, or from row `cut` on second, (+)= tile. Whole tiles are
// written by the micro-kernel where they belong.
template <class T> struct GradientTiles {
    const Kernels<T> *k;
    int64_t width; // of a tile
    Matrix<T> out, second;
    int64_t cut;
    bool add;
    const Matrix<T> &of(int64_t r) const { return r < cut ? out : second; }
    T *at(int64_t r, int64_t col) const {
        const Matrix<T> &m = of(r);
        return m.data + (r < cut ? r : r - cut) * m.row + col * m.col;
    }
    bool direct(int64_t r, int64_t cols) const { return of(r).col == 1 && cols == width; }
    void operator()(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) const {
        k->store(c, width, n, cols, nullptr, 0, 0, at(r, col), of(r).row, of(r).col, add);
    }
};

} // namespace ffncore
