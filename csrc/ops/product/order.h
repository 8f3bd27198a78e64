// In which order a product reads B: which block comes next, so that it can be fetched in time.
#pragma once
#include "../operands/operand.h"
#include "walk.h"

namespace ffncore {

// What the driver (gemm.h) works at: some steps of a strip, a block of the sum or several.
struct Block {
    RowRange rows;
    PanelRange panels;
    Steps steps;
    int term;
    bool add, last;
    bool later; // it belongs to a partial sum after the first one
    bool ends;  // and is the end of it
    // Of slices: whether there are earlier ones of this block, and later ones.
    bool resumes = false, rests = false;
};

// A panel's block of B that is read later. A packed panel may hold the columns of several tiles
// (`share`): then they fetch it in turn, and this is number `part`.
template <class B> struct Later {
    const B *b = nullptr;
    int64_t panel = 0;
    Steps steps{};
    int64_t part = 0, share = 1;
};

template <class T, class B> struct Order {
    const Walk<T> &walk;
    const B *b; // of the first term
    int terms;
    int64_t end = 0; // of the panels of this call

    // Panels one by one, each through its whole sum: packed panels in memory's order.
    bool one_by_one() const { return SharesPanels<B> && !walk.rows_outer && walk.strip == 1; }

    // The block of B that is read after a panel's: that of the strip's next panel, else of its
    // first one for the next term or block, else of the next strip's.
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

    // What is read after a slice: the block's next one, else the first of what follows.
    Later<B> after_slice(const Block &block) const {
        Later<B> later = after(block, block.panels.end() - 1);
        if (block.rests)
            later = {b + block.term, block.panels.first, {block.steps.end(), 0}};
        else if (later.panel == block.panels.first)
            later.steps.first = later.steps.first / kBlock * kBlock;
        later.steps.count = walk.slice;
        return later;
    }
};

} // namespace ffncore
