// Where the tiles of a weight gradient go.
#pragma once
#include "epilogue.h"

namespace ffncore {

// A weight gradient [rows][cols], summed over tokens.
struct GradientSize {
    int64_t rows, cols, tokens;
};

// Whether a weight gradient goes past the caches: it is written once, in whole lines, and is larger
// than L2. That spares reading what is overwritten. width: of a tile.
inline bool streams(const Output &out, const GradientSize &size, int64_t width, bool add,
                    int64_t l2) {
    return !add && size.tokens <= kBlock && width * out.bytes() % 64 == 0 &&
           size.rows * size.cols * out.bytes() > l2;
}

// The epilogue of a weight gradient: out, or from row `cut` on second, (+)= tile. Whole tiles of a
// single block are rounded and written by the micro-kernel where they belong.
template <class T> struct GradientTiles {
    const Kernels<T> *k;
    int64_t width; // of a tile
    Output out, second;
    int64_t cut;
    bool add;
    bool one_block; // the sum is a single block of tokens
    bool stream;    // past the caches
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
