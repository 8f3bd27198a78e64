// What an operand tells the driver of the products (product/gemm.h).
#pragma once
#include "../arrays/array.h"

namespace ffncore {

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

} // namespace ffncore
