// How a product walks through its rows, panels and sum: what its driver (gemm.h) is told.
#pragma once
#include "../schedule/buffers.h"

namespace ffncore {

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
