// The order in which a product reads B: which block comes next, and what the tiles prefetch of it.
#pragma once
#include "../operands/operand.h"
#include "fetch.h"
#include "walk.h"

namespace ffncore {

// What the driver (gemm.h) works on: some steps of a strip, which are one block of the sum or
// several.
struct Block {
    RowRange rows;
    PanelRange panels;
    Steps steps;
    int term;
    bool add, last; // it is added to the sums that are there, else stored; it ends the whole sum
    bool later;     // it belongs to a partial sum after the first one
    bool ends;      // it is the end of such a partial sum
    // For a slice of a block: whether there are earlier slices of the block, and later ones.
    bool resumes = false, rests = false;
};

// A block of a panel of B that is read later. A packed panel may hold the columns of several tiles
// (`share`). Then each of them prefetches a part of it, and this one has number `part`.
template <class B> struct Later {
    const B *b = nullptr;
    int64_t panel = 0;
    Steps steps{};
    int64_t part = 0, share = 1;
};

// What the tiles of a panel prefetch into L2, each its part; with the distances in bytes from one
// tile to the next, from one step of k to the next, and from one run to the next.
struct Ahead {
    const char *data = nullptr;
    int64_t tile = 0, step = 0, run = 0;
    bool soon = false; // fetch_soon()
};

template <class T, class B> struct Order {
    const Walk<T> &walk;
    const B *b; // of the first term
    int terms;
    int64_t end = 0; // of the panels of this call

    // Whether packed panels are read one by one, each through its whole sum: in the order of
    // memory.
    bool one_by_one() const { return SharesPanels<B> && !walk.rows_outer && walk.strip == 1; }

    // The block of B that is read after this block of `panel`. It belongs to the next panel of the
    // strip; after the last one to the first panel, for the next term or block; after the last
    // block to the next strip.
    Later<B> after(const Block &block, int64_t panel) const {
        Later<B> later{b + block.term, panel, block.steps};
        if constexpr (SharesPanels<B>) {
            later.share = later.b->share();
            later.part = panel % later.share;
        }
        const int64_t next = panel - later.part + later.share;
        const int64_t end_of_block = block.steps.end(), rest = walk.depth - end_of_block;
        auto at = [&](int term, int64_t p, Steps steps) {
            later.b = b + term, later.panel = p, later.steps = steps;
            return later;
        };
        if (one_by_one()) return at(0, panel, {end_of_block, block.steps.count});
        if (next < block.panels.end()) return at(block.term, next, block.steps);
        if (block.term + 1 < terms) return at(block.term + 1, block.panels.first, block.steps);
        if (rest > 0) return at(0, block.panels.first, {end_of_block, std::min(walk.step, rest)});
        if (next < end) return at(0, next, {0, std::min(walk.step, walk.depth)});
        return {};
    }

    // The slice that is read after a slice: the next one of the block, or the first one of what
    // follows the block.
    Later<B> after_slice(const Block &block) const {
        Later<B> later = after(block, block.panels.end() - 1);
        if (block.rests)
            later = {b + block.term, block.panels.first, {block.steps.end(), 0}};
        else if (later.panel == block.panels.first)
            later.steps.first = later.steps.first / kBlock * kBlock;
        later.steps.count = walk.slice;
        return later;
    }

    // For the tiles of a panel and a block.
    Ahead fetch_plan(const Block &block, int64_t p, const Panel &panel, int64_t tiles) const {
        if constexpr (ReadInOrder<B>) {
            const Later<B> next = after(block, p);
            const int64_t line = b->line_step(), depth = block.steps.count;
            const char *data = next.b ? next.b->line(next.panel, next.steps.first) : nullptr;
            if (line != b->line_bytes()) {             // the lines of B lie far apart
                if (panel.ld == walk.panel) return {}; // but this panel is a copy
                return {data ? data : (const char *)panel.data, 0, 0, 0, true};
            }
            if (!data || depth == 0) return {};
            // Where one tile reads a whole panel, memory is the limit.
            if (tiles == 1 && one_by_one()) {
                if (!walk.streams.ahead) return {};
                return {(const char *)panel.data + walk.streams.ahead, 0, line, kRunLength * line};
            }
            const int64_t all = next.steps.count * line;
            const int64_t bytes = all / (tiles * next.share); // every tile prefetches the same part
            return {data + next.part * tiles * bytes, bytes, bytes / depth,
                    kRunLength * bytes / depth};
        }
        return {};
    }

    // Tile i of a slice prefetches its part of the next slice, whose rows are as long as the strip
    // is wide.
    void fetch_slice(const Block &block, int64_t i, int64_t tiles, TileArgs<T> &t) const {
        if constexpr (ReadInOrder<B>) {
            const Later<B> next = after_slice(block);
            const int64_t depth = block.steps.count;
            if (!next.b || depth == 0) return;
            const PanelRange panels = block.panels;
            const int64_t row =
                std::min(panels.end() * walk.panel, walk.cols) - panels.first * walk.panel;
            const int64_t bytes = row * next.b->line_bytes() / walk.panel;
            const int64_t part = next.steps.count * bytes / (panels.count * tiles), at = i * part;
            t.prefetch = next.b->line(next.panel, next.steps.first + at / bytes) + at % bytes;
            t.prefetch_step = part / depth;
            t.prefetch_run = kRunLength * part / depth;
        }
    }
};

} // namespace ffncore
