// What is fetched into L2 before somebody waits for it: lines by themselves, and what a tile of the
// micro-kernel fetches beside its work (TileArgs::prefetch), a line or two in each of its steps.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../arrays/sizes.h"

namespace ffncore {

constexpr int64_t kRunLength = 16; // the micro-kernel's run of prefetches, in k

// Into L2: `rows` rows of `cols` bytes.
inline void fetch_lines(const char *first, int64_t row, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < cols; i += 64) __builtin_prefetch(first + r * row + i, 1, 2);
        __builtin_prefetch(first + r * row + cols - 1, 1, 2);
    }
}

// Panels read across: in each segment the next tile's rows follow this one's `n`.
template <class T> void fetch_across(int64_t n, TileArgs<T> &t) {
    t.prefetch = (const char *)(t.a0 + n * t.row);
    t.prefetch_step = n * (int64_t)sizeof(T);
    t.prefetch_run = kRunLength * t.prefetch_step;
    t.prefetch_jump = (t.jump - n * t.row) * (int64_t)sizeof(T);
}

// A panel read in place, [k][ld], by few tiles: its own later rows are fetched, at last the first
// of what is read next. A whole panel ahead, rows of some lengths would evict each other.
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
