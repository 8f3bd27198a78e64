// Where the tiles of a weight gradient go.
#pragma once
#include "../arrays/array.h"

namespace ffncore {

// Whether a weight gradient goes past the caches: it is written once, in whole lines, and is larger
// than L2. That spares reading what is overwritten. width: of a tile.
inline bool streams(const Output &out, int64_t rows, int64_t cols, int64_t width, int64_t tokens,
                    bool add, int64_t l2) {
    return !add && tokens <= kBlock && width * out.bytes() % 64 == 0 &&
           rows * cols * out.bytes() > l2;
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
    bool direct(int64_t r, int64_t cols) const {
        return one_block && of(r).col == 1 && cols == width;
    }
    void operator()(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) const {
        k->of[of(r).type].store(c, width, n, cols, nullptr, 0, 0, at(r, col), of(r).row, of(r).col,
                                add);
    }
};

} // namespace ffncore
