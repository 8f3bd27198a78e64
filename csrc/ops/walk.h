// What the driver of the products (gemm.h) is given: where a tile's rows of A and a panel of B lie,
// a thread's buffers, and how a product walks through its rows, panels and sum.
#pragma once
#include <cstdint>

#include "../kernels/kernels.h"

namespace ffncore {

inline int64_t element_bytes(Element type) {
    return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Terms of a partial sum: 64 blocks. Blocks are added in order to a partial sum, partial sums in
// order to the sum. A sum of n terms then has a chain of at most 512 + 64 + n / 32768 additions, in
// place of 512 + n / 512: 700 against 8300 for 4 million terms. Part of the arithmetic contract.
constexpr int64_t kPartialSum = 64 * kBlock;

// Where a tile's rows of A lie; see TileArgs.
template <class T> struct RowTile {
    const T *a0, *a1;
    int64_t row, step, segment, jump;
};

// A panel of B from block k on: [depth][ld] of T or of 16-bit elements; or a packed one of these.
struct Panel {
    const void *data;
    int64_t ld;
    bool narrow = false; // 16 bits
    bool packed = false; // and packed
    bool leaves = false; // what the first tile has widened goes to the others
};

// One thread's buffers for a product.
template <class T> struct Scratch {
    T *tile;    // one tile
    T *a;       // a strip's block of A, copied: strip rows x kBlock
    T *b;       // a strip's blocks of B, copied: kBlock x panel width each
    T *sums;    // running sums of a strip; with slices, those of a block behind them
    T *partial; // of sums with several partial sums: a strip's partial sum at hand
    T *out;     // of a mixture: all rows of some columns of y, before they are combined
};

// The running sums of a product that comes in several calls, each a chunk of the summed dimension:
// [panel][rows][panel width].
template <class T> struct Carry {
    T *sums = nullptr;    // nullptr: one call is the whole sum
    T *partial = nullptr; // the partial sum at hand, from the second one on
};

// How a product walks. Rows are counted in units of A: a unit is one row, or (pair) a row of gate
// and the same row of up, which share a tile: then the tile's upper half is gate, the lower up.
template <class T> struct Walk {
    int64_t depth;         // length of the sum
    int64_t cols;          // columns of C
    int64_t panel;         // columns of a panel of B
    int64_t tile_rows;     // units per tile, at most
    int64_t step = kBlock; // of the sum that a call of the micro-kernel takes: whole blocks
    // Steps of a block that all panels of a strip take at a time, else all of them: then what a
    // strip reads of B, these rows of it, fits in L2 twice, and is fetched there as it lies.
    int64_t slice = kBlock;
    bool pair = false;
    bool rows_outer = true;    // the rows stream, the panels stay; else the other way round
    int64_t strip = INT64_MAX; // units (rows_outer) or panels per strip
    bool rows_stay = false;    // a strip of rows stays in L2 while its panels pass by
    Carry<T> carry;
    int64_t carry_rows = 0;
    int64_t before = 0;       // steps of the sum in earlier calls
    bool finish = true;       // the last block of the sum is in this call
    bool full_panels = false; // panels are padded to their full width (packed weights)
    bool pairs = false;       // a step is a pair of bfloat16 (kernels.h, Pairs)

    int64_t partial_sum() const { return kPartialSum / (pairs ? 2 : 1); } // steps
    bool long_sum() const { return before + depth > partial_sum(); }
};

} // namespace ffncore
