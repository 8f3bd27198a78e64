// How much of a product a task works on at a time, so that what it reads again stays in L2.
// Blocking is for tokens as panels (panels.h), RowBlocking for tokens as rows (rows.h).
#pragma once
#include "walk.h"

namespace ffncore {

// Few panels stay in L2 while the rows stream past them. With many panels a strip of rows stays,
// block by block, and the panels stream past it (rows_stay).
template <class T> struct Blocking {
    int64_t together; // panels of a task
    int64_t strip;    // units of a strip
    bool rows_stay;
    // copied: rows are copied to tiles.
    Blocking(const Walk<T> &walk, int terms, bool copied, int64_t l2) {
        const int64_t width = walk.panel, tile = walk.tile_rows, unit = walk.pair ? 2 : 1;
        const int64_t panels = std::max<int64_t>(ceil_div(walk.cols, width), 1);
        const int64_t block = kBlock * (int64_t)sizeof(T), row = unit * (int64_t)sizeof(T);
        const int64_t most = std::min<int64_t>(panels, 64); // more panels gain nothing
        auto equal = [&](int64_t n) { // size of nearly equal groups of at most n panels
            return ceil_div(panels, ceil_div(panels, std::clamp<int64_t>(n, 1, most)));
        };
        // A strip takes a quarter of L2, its running sums another quarter, and the blocks of two
        // panels the rest. This pays from 3 panels on. Copied tiles always stay, since copying them
        // again would cost more.
        rows_stay = copied || panels > 2;
        if (rows_stay) {
            const int64_t tile_bytes = block * unit * (copied ? kTileStride : tile);
            strip = std::max<int64_t>(l2 / 4 / tile_bytes, 1) * tile;
            together = equal(l2 / 4 / (strip * width * row));
            return;
        }
        const int64_t depth = walk.depth * terms;
        const int64_t whole = std::max<int64_t>(depth, 1) * width * (int64_t)sizeof(T);
        together = panels;
        strip = tile; // where all blocks fit, a tile runs through its whole sum
        if (depth > kBlock && whole * panels > l2 / 2)
            strip = std::max<int64_t>(l2 / 4 / (together * width * row * tile), 1) * tile;
    }
};

// Panels of a strip. Its running sums take 4 panels x 512 rows x 128 bytes = 256 KiB of L2.
constexpr int64_t kPanelStrip = 4;

// The steps that a call of the micro-kernel takes of a sum over packed weights, whose panels lie in
// memory in one piece. Half of an L2 of 2 MiB has room for 170 rows of 1536 floats; so a longer sum
// takes 1024 steps at a time, with 256 rows.
inline int64_t sum_step(int64_t depth) {
    constexpr int64_t kWhole = 3 * kBlock, kPart = 2 * kBlock;
    return depth <= kWhole ? round_up(std::max<int64_t>(depth, 1), kBlock) : kPart;
}

struct RowBlocking {
    int64_t rows;  // tokens of a task
    int64_t strip; // panels of a strip

    // copies: every task copies its panels, a strip at a time.
    template <class T>
    RowBlocking(const Walk<T> &walk, int64_t tokens, int terms, bool copies, int64_t l2) {
        const int64_t room = l2 / 2 / (int64_t)sizeof(T), depth = walk.depth * terms;
        const int64_t whole = room / std::max<int64_t>(depth, 1);
        const bool one = !copies && (depth <= walk.step || whole >= std::min<int64_t>(tokens, 256));
        rows = std::max(one ? whole : room / walk.step, walk.tile_rows);
        strip = one ? 1 : kPanelStrip;
        rows = std::min(rows, std::max<int64_t>(tokens, 1));
        rows = ceil_div(tokens, std::max<int64_t>(ceil_div(tokens, rows), 1));
        rows = std::max<int64_t>(rows, 1);
    }
};

} // namespace ffncore
