// How a product C = A B walks through its rows, its panels and its sum: the parameters of the
// driver (gemm.h). Its loops are, from the outside:
//
//   strips   of rows of A (rows_outer), or of panels of B
//   blocks   of the sum, and in each block the terms
//   slices   of a block, if slice < kBlock
//   tiles    of the strip: rows first, or panels first
#pragma once
#include "../../core/streams.h"
#include "../schedule/buffers.h"

namespace ffncore {

// Rows of A are counted in units. A unit is one row, or (pair) a row of gate and the same row of
// up. Then they share a tile: the upper half of its rows is gate, the lower half up.
template <class T> struct Walk {
    int64_t depth;         // steps of the sum
    int64_t cols;          // columns of C
    int64_t panel;         // columns of a panel of B
    int64_t tile_rows;     // the most units of a tile
    int64_t step = kBlock; // steps that a call of the micro-kernel takes: whole blocks
    // With slices, all panels of a strip take so many steps of a block before the next ones;
    // without, a panel takes the whole block. What a slice of a strip reads of B fits in L2 twice,
    // so that the next slice can be prefetched as it lies in memory.
    int64_t slice = kBlock;
    bool pair = false;
    bool rows_outer = true;    // strips are of rows, else of panels
    int64_t strip = INT64_MAX; // units or panels of a strip
    bool rows_stay = false;    // rows_outer: a strip of rows stays in L2 while the panels stream
    Carry<T> carry;
    int64_t carry_rows = 0;   // rows of the arrays of carry
    int64_t before = 0;       // steps of the sum in earlier chunks
    bool finish = true;       // this chunk has the last block of the sum
    bool groups = false;      // one tile of rows: the panels of a strip are read side by side
    Streams streams{};        // how this machine reads weights for few tokens
    bool full_panels = false; // panels are padded to their full width (packed weights)
    bool pairs = false;       // a step is a pair of bfloat16 (kernels.h, Pairs)

    int64_t partial_sum() const { return kPartialSum / (pairs ? 2 : 1); } // steps
    bool long_sum() const { return before + depth > partial_sum(); }
};

} // namespace ffncore
