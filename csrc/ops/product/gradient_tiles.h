// The epilogue of a weight gradient: it stores the tiles, or adds them to what is there.
#pragma once
#include "epilogue.h"

namespace ffncore {

// A weight gradient [rows][cols], summed over tokens.
struct GradientSize {
    int64_t rows, cols, tokens;
};

// Whether a weight gradient is written past the caches, which spares reading the lines that are
// overwritten. This is done where it is written once, in whole lines, and is larger than L2. width:
// columns of a tile.
inline bool streams(const Output &out, const GradientSize &size, int64_t width, bool add,
                    int64_t l2) {
    return !add && size.tokens <= kBlock && width * out.bytes() % 64 == 0 &&
           size.rows * size.cols * out.bytes() > l2;
}

// out (+)= tile, or for rows from `cut` on, second (+)= tile. Where the sum is a single block, the
// micro-kernel itself rounds whole tiles and writes them to their place (direct).
template <class T> struct GradientTiles {
    const Kernels<T> *k;
    int64_t width; // of a tile
    Output out, second;
    int64_t cut;
    bool add;
    bool one_block; // the sum is a single block of tokens
    bool stream;    // write past the caches
    const Output &of(int64_t r) const { return r < cut ? out : second; }
    char *at(int64_t r, int64_t col) const { return of(r).at(r < cut ? r : r - cut, col); }
    bool direct(const Tile &tile) const {
        return one_block && of(tile.rows.first).col == 1 && tile.cols.count == width;
    }
    void operator()(const Tile &tile, T *c) const {
        const int64_t r = tile.rows.first;
        k->of[of(r).type].store(c, width, tile.rows.count, tile.cols.count, nullptr, 0, 0,
                                at(r, tile.cols.first), of(r).row, of(r).col, add);
    }
};

static_assert(WritesTiles<GradientTiles<float>>);

} // namespace ffncore
