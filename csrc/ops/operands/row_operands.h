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

// n rows of one matrix: a tile has them in two halves.
template <class T>
RowTile<T> halves(const T *a0, int64_t n, int64_t row, int64_t step, int64_t block = kBlock) {
    return {a0, a0 + (n + 1) / 2 * row, row, step, block, block * step};
}

// How many of some rows one tile may take where none crosses `cut`.
inline int64_t rows_before(int64_t cut, RowRange rows) {
    return rows.first < cut ? std::min(rows.count, cut - rows.first) : rows.count;
}

template <class T> struct StridedRows {
    const T *data;
    int64_t row, step = 1;
    int64_t block = kBlock;  // steps of a block: half of it where they are pairs
    int64_t first = 0;       // row that lies at data
    int64_t cut = INT64_MAX; // tiles do not cross it
    bool contiguous() const { return step == 1; }
    int64_t tile_rows(RowRange rows) const { return rows_before(cut, rows); }
    StridedRows from(int64_t k) const { // the sum's steps from k on
        StridedRows part = *this;
        part.data += k * step;
        return part;
    }
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, const Strip<T> &) const {}
    RowTile<T> get(RowRange rows, const Strip<T> &strip) const {
        return halves(data + (rows.first - first) * row + strip.steps.first * step, rows.count, row,
                      step, block);
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
    int64_t tile_rows(RowRange rows) const { return rows.count; }
    bool by_rows() const { return !paired && first.col == 1 && (!second.data || second.col == 1); }
    bool copies() const {
        return !by_rows() || !first.holds<T>() || // one tile, one stride
               (second.data && second.row != first.row);
    }

    void prepare(const Kernels<T> &kernels, const Strip<T> &strip) const {
        if (!copies()) return;
        const RowRange rows = strip.rows;
        const Steps steps = strip.steps;
        auto copy = [&](const Input &m, T *out) {
            if (!m.data) return;
            const Access<T> &of = kernels.of[m.type];
            if (paired)
                kernels.pairs.pack_tiles(
                    m.at(rows.first, 2 * steps.first), m.row, m.col, rows.count,
                    std::min(2 * steps.count, paired - 2 * steps.first), out, strip.tile);
            else if (by_rows())
                of.pack(m.at(rows.first, steps.first), 1, m.row, steps.count, rows.count, out,
                        kCopiedRow, steps.count);
            else
                of.pack_tiles(m.at(rows.first, steps.first), m.row, m.col, rows.count, steps.count,
                              out, strip.tile);
        };
        copy(first, strip.copied);
        copy(second, strip.copied + second_offset);
    }

    RowTile<T> get(RowRange rows, const Strip<T> &strip) const {
        const int64_t r = rows.first, k = strip.steps.first;
        if (!copies()) {
            RowTile<T> t = halves<T>((const T *)first.at(r, k), rows.count, first.row, 1);
            if (second.data) t.a1 = (const T *)second.at(r, k);
            return t;
        }
        const int64_t in_strip = r - strip.rows.first;
        const int64_t tile_size = strip.steps.count * kTileStride + kTileGap;
        const T *const at =
            strip.copied + (by_rows() ? in_strip * kCopiedRow : in_strip / strip.tile * tile_size);
        RowTile<T> t = by_rows() ? halves<T>(at, rows.count, kCopiedRow, 1)
                                 : halves<T>(at, rows.count, 1, kTileStride);
        if (second.data) t.a1 = at + second_offset;
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
    void prepare(const Kernels<T> &, const Strip<T> &) const {}
    int64_t tile_rows(RowRange some) const { return rows_before(cut, some); }
    RowTile<T> get(RowRange some, const Strip<T> &strip) const {
        const T *a0 = data + (strip.steps.first / width * rows + some.first) * width;
        return {a0, a0 + (some.count + 1) / 2 * width, width, 1, width, width * rows};
    }
};

// Columns of tokens' rows as rows of A: k is the token. A block is copied, [token][ld].
template <class T> struct TokenColumns {
    TokenRows<T> tokens;
    int64_t ld;
    bool pair() const { return false; }
    bool contiguous() const { return false; }
    bool copies() const { return true; }
    int64_t tile_rows(RowRange rows) const { return rows.count; }
    void prepare(const Kernels<T> &kernels, const Strip<T> &strip) const {
        tokens.copy(kernels, {strip.steps.first, strip.steps.count},
                    {strip.rows.first, strip.rows.count}, strip.copied, ld);
    }
    RowTile<T> get(RowRange rows, const Strip<T> &strip) const {
        return halves<T>(strip.copied + rows.first - strip.rows.first, rows.count, 1, ld);
    }
};

static_assert(HoldsMatrices<WeightRows<float>>); // an ability, see panel_operands.h

} // namespace ffncore
