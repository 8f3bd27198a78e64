// The operands that give the rows of a tile: A of a product C = A B (operand.h). k is the index
// that is summed over.
//
//   WeightRows    rows of gate, up or down, in place; copied where k is not contiguous in memory
//   StridedRows   any matrix in place: rows of tokens (x, h, dgate), or columns of such a matrix
//   PanelRows     token panels read across: rows are units, k counts tokens
//   TokenColumns  columns of the rows of tokens, gathered a block at a time: k counts tokens
#pragma once
#include "operand.h"
#include "token_rows.h"

namespace ffncore {

// Elements from one row of a copied block to the next: whole cache lines, and not a power of two,
// so that the rows spread over the sets of L1.
constexpr int64_t kCopiedRow = kBlock + 16;

// n rows of one matrix, as a tile has them: in two halves (TileArgs).
template <class T>
RowTile<T> halves(const T *a0, int64_t n, int64_t row, int64_t step, int64_t block = kBlock) {
    return {a0, a0 + (n + 1) / 2 * row, row, step, block, block * step};
}

// How many of these rows one tile may take, so that it does not cross `cut`.
inline int64_t rows_before(int64_t cut, RowRange rows) {
    return rows.first < cut ? std::min(rows.count, cut - rows.first) : rows.count;
}

template <class T> struct StridedRows {
    const T *data;
    int64_t row, step = 1;
    int64_t block = kBlock;  // steps of a block: kBlock / 2 where a step is a pair
    int64_t first = 0;       // number of the row that lies at data
    int64_t cut = INT64_MAX; // no tile crosses this row
    bool contiguous() const { return step == 1; }
    int64_t tile_rows(RowRange rows) const { return rows_before(cut, rows); }
    StridedRows from(int64_t k) const { // steps of the sum from k on
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

// Rows of a weight matrix; with `second`, a unit is a row of each of the two matrices. Rows are
// read in place where they hold T and k is contiguous in memory. Else they are copied: to rows, or
// to tiles [k][rows of the tile] where k is not contiguous.
template <class T> struct WeightRows {
    Input first, second;       // element (r, k)
    int64_t paired = 0;        // length of a row, if copied to pairs of bfloat16; else 0
    int64_t second_offset = 0; // where the copy of the second matrix begins: copy_size of a strip

    // Elements that a copied block of `units` rows takes, as tiles or as rows; padded to whole
    // tiles.
    static int64_t copy_size(int64_t units, int64_t tile, bool as_tiles) {
        return ceil_div(units, tile) * (as_tiles ? kTileStride : tile) * kCopiedRow;
    }
    bool pair() const { return second.data != nullptr; }
    bool contiguous() const { return false; }
    int64_t tile_rows(RowRange rows) const { return rows.count; }
    bool by_rows() const { return !paired && first.col == 1 && (!second.data || second.col == 1); }
    bool copies() const {
        return !by_rows() || !first.holds<T>() || // a tile has one stride for both matrices
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

// Token panels [token panel][rows][width] read across: k counts tokens. No tile crosses row `cut`.
template <class T> struct PanelRows {
    const T *data;
    int64_t rows, width, cut;
    PanelRows from(int64_t k) const { // steps of the sum from k on; k begins a panel
        return {data + k * rows, rows, width, cut};
    }
    bool pair() const { return false; }
    bool contiguous() const { return false; } // only within a panel, not over a whole block
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, const Strip<T> &) const {}
    int64_t tile_rows(RowRange some) const { return rows_before(cut, some); }
    RowTile<T> get(RowRange some, const Strip<T> &strip) const {
        const T *a0 = data + (strip.steps.first / width * rows + some.first) * width;
        return {a0, a0 + (some.count + 1) / 2 * width, width, 1, width, width * rows};
    }
};

// Columns of the rows of tokens as rows of A: k counts tokens. A block is copied, as [token][ld].
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

static_assert(HoldsMatrices<WeightRows<float>>); // why: see the end of panel_operands.h

} // namespace ffncore
