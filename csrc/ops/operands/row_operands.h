// What gives the rows of a tile, A of a product (operand.h):
//
//   WeightRows    gate | up | down, in place; or copied where k is not contiguous in memory
//   StridedRows   any matrix in place: tokens (x, h, dgate), or columns of such a one
//   PanelRows     token panels read across: rows are units, k is tokens
//   TokenColumns  columns of tokens' rows, gathered block by block: k is tokens
#pragma once
#include "operand.h"
#include "token_rows.h"

namespace ffncore {

// Elements from row to row of a copied block: whole lines, which spread over the sets of L1.
constexpr int64_t kCopiedRow = kBlock + 16;

template <class T>
RowTile<T> halves(const T *a0, int64_t n, int64_t row, int64_t step, int64_t block = kBlock) {
    return {a0, a0 + (n + 1) / 2 * row, row, step, block, block * step};
}

template <class T> struct StridedRows {
    const T *data;
    int64_t row, step = 1;
    int64_t block = kBlock;  // steps of a block: half of it where they are pairs
    int64_t first = 0;       // row that lies at data
    int64_t cut = INT64_MAX; // tiles do not cross it
    bool contiguous() const { return step == 1; }
    int64_t tile_rows(int64_t r, int64_t n) const { return r < cut ? std::min(n, cut - r) : n; }
    StridedRows from(int64_t k) const { // the sum's steps from k on
        StridedRows part = *this;
        part.data += k * step;
        return part;
    }
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, int64_t, int64_t, int64_t, int64_t, int64_t, T *) const {}
    RowTile<T> get(int64_t r, int64_t n, int64_t, int64_t k, int64_t, int64_t, const T *) const {
        return halves(data + (r - first) * row + k * step, n, row, step, block);
    }
};

// Rows of a weight matrix. With `second` a unit is a row of each. They are read in place where they
// hold T and k is contiguous in memory; else copied, to rows or (k not contiguous) to tiles.
template <class T> struct WeightRows {
    Input first, second;       // element (r, k)
    int64_t paired = 0;        // copied to pairs of bfloat16 (Walk::pairs): a row's length; else 0
    int64_t second_offset = 0; // of the second matrix's copy: copy_size of a strip

    // Elements of a copied block of `units` rows: as tiles, or as rows of as many.
    static int64_t copy_size(int64_t units, int64_t tile, bool as_tiles) {
        return ceil_div(units, tile) * (as_tiles ? kTileStride : tile) * kCopiedRow;
    }
    bool pair() const { return second.data != nullptr; }
    bool contiguous() const { return false; }
    int64_t tile_rows(int64_t, int64_t n) const { return n; }
    bool by_rows() const { return !paired && first.col == 1 && (!second.data || second.col == 1); }
    bool copies() const {
        return !by_rows() || !first.holds<T>() || // one tile, one stride
               (second.data && second.row != first.row);
    }

    void prepare(const Kernels<T> &kernels, int64_t r0, int64_t r1, int64_t k, int64_t depth,
                 int64_t tile, T *to) const {
        if (!copies()) return;
        auto copy = [&](const Input &m, T *out) {
            if (!m.data) return;
            const Access<T> &of = kernels.of[m.type];
            if (paired)
                kernels.pairs.pack_tiles(m.at(r0, 2 * k), m.row, m.col, r1 - r0,
                                         std::min(2 * depth, paired - 2 * k), out, tile);
            else if (by_rows())
                of.pack(m.at(r0, k), 1, m.row, depth, r1 - r0, out, kCopiedRow, depth);
            else
                of.pack_tiles(m.at(r0, k), m.row, m.col, r1 - r0, depth, out, tile);
        };
        copy(first, to);
        copy(second, to + second_offset);
    }

    RowTile<T> get(int64_t r, int64_t n, int64_t r0, int64_t k, int64_t depth, int64_t tile,
                   const T *copied) const {
        if (!copies()) {
            RowTile<T> t = halves((const T *)first.at(r, k), n, first.row, (int64_t)1);
            if (second.data) t.a1 = (const T *)second.at(r, k);
            return t;
        }
        const int64_t at =
            by_rows() ? (r - r0) * kCopiedRow : (r - r0) / tile * (depth * kTileStride + kTileGap);
        RowTile<T> t = by_rows() ? halves(copied + at, n, kCopiedRow, (int64_t)1)
                                 : halves(copied + at, n, (int64_t)1, (int64_t)kTileStride);
        if (second.data) t.a1 = copied + at + second_offset;
        return t;
    }
};

// Token panels [token panel][rows][width] read across: k is tokens. Tiles do not cross `cut`.
template <class T> struct PanelRows {
    const T *data;
    int64_t rows, width, cut;
    PanelRows from(int64_t k) const { // the sum's steps from k on: whole panels
        return {data + k * rows, rows, width, cut};
    }
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

// Columns of tokens' rows as rows of A: k is the token. A block is copied, [token][ld].
template <class T> struct TokenColumns {
    TokenRows<T> tokens;
    int64_t ld;
    bool pair() const { return false; }
    bool contiguous() const { return false; }
    bool copies() const { return true; }
    int64_t tile_rows(int64_t, int64_t n) const { return n; }
    void prepare(const Kernels<T> &kernels, int64_t r0, int64_t r1, int64_t k, int64_t depth,
                 int64_t, T *to) const {
        tokens.copy(kernels, k, depth, r0, r1 - r0, to, ld);
    }
    RowTile<T> get(int64_t r, int64_t n, int64_t r0, int64_t, int64_t, int64_t,
                   const T *copied) const {
        return halves(copied + r - r0, n, (int64_t)1, ld);
    }
};

} // namespace ffncore
