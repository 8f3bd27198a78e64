// Prefetches into L2: lines on their own (fetch_lines), and lines that the micro-kernel prefetches
// while it computes a tile (TileArgs::prefetch), one or two in each of its steps.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../arrays/sizes.h"

namespace ffncore {

constexpr int64_t kRunLength = 16; // steps of k in a run of the micro-kernel's prefetches

// Prefetches `rows` rows of `cols` bytes.
inline void fetch_lines(const char *first, int64_t row, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < cols; i += 64) __builtin_prefetch(first + r * row + i, 1, 2);
        __builtin_prefetch(first + r * row + cols - 1, 1, 2);
    }
}

// For panels read across (PanelRows): prefetches the rows of the next tile, which follow the `n`
// rows of this one in each segment.
template <class T> void fetch_across(int64_t n, TileArgs<T> &t) {
    t.prefetch = (const char *)(t.a0 + n * t.row);
    t.prefetch_step = n * (int64_t)sizeof(T);
    t.prefetch_run = kRunLength * t.prefetch_step;
    t.prefetch_jump = (t.jump - n * t.row) * (int64_t)sizeof(T);
}

// For a panel that few tiles read in place, [k][ld]: prefetches its own later rows, and at the end
// the first rows of the panel that is read next. A prefetch of a whole panel ahead would make rows
// of some lengths evict each other.
template <class T>
void fetch_soon(const char *panel, int64_t ld, const char *next, TileArgs<T> &t) {
    constexpr int64_t kDistance = 64; // L3's latency at full bandwidth is about 24 rows
    const int64_t first = std::max(t.depth - kDistance, t.depth / 2);
    t.segment = round_up(std::max<int64_t>(first, 1), kRunLength);
    t.jump = t.segment * t.step;
    t.prefetch_step = ld * (int64_t)sizeof(T);
    t.prefetch = panel + (t.depth - t.segment) * t.prefetch_step;
    t.prefetch_run = kRunLength * t.prefetch_step;
    t.prefetch_jump = next - (panel + t.depth * t.prefetch_step);
}

} // namespace ffncore
