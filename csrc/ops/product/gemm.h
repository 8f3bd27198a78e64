// The driver of every product of the engine: C [rows, cols] = the sum over one or two terms of A B.
//
// Operands. A gives the rows of a tile, in place (weight rows, token rows, panels of hidden units)
// or copied a block at a time. B gives panels [k][panel width], which lie ready, or are packed a
// block at a time just before use. The caller chooses which side the weights are on; the bits are
// the same.
//
// Loops. The summed dimension is cut into blocks of 512 (kBlock), and after 64 blocks a new partial
// sum begins (kPartialSum), as the arithmetic contract says. One side of a task stays in L2 while
// the other streams past it: few token panels stay while weight rows stream; a strip of weight rows
// stays while many token panels stream; token rows stay while packed weights stream. The running
// sums of a strip are in scratch memory, in L2. A sum of one block needs none; its tile is in L1.
// When the last block of a tile is done, the epilogue gets the tile. While the micro-kernel
// computes a tile, it prefetches what comes next into L2.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../operands/operand.h"
#include "across.h"
#include "epilogue.h"
#include "fetch.h"
#include "order.h"
#include "walk.h"

namespace ffncore {

inline std::atomic<int64_t> counted_flops{0}; // FLOPs of all products so far, for tests

template <class T, RowOperand<T> A, PanelOperand<T> B, TakesTiles<T> Epilogue> class Multiply {
  public:
    Multiply(const Kernels<T> &kernels, const Walk<T> &walk, const A *a, const B *b, int terms,
             const Scratch<T> &scratch, const Epilogue &epilogue)
        : k_(kernels), w_(walk), a_(a), b_(b), terms_(terms), s_(scratch), epilogue_(epilogue),
          unit_(walk.pair ? 2 : 1), order_{walk, b, terms} {}

    // Multiplies rows of A, counted in units, by panels of B.
    void operator()(RowRange rows, PanelRange panels) {
        order_.end = panels.end();
        if (w_.rows_outer) {
            each_part(rows, w_.strip, [&](RowRange some) { strip(some, panels); });
        } else {
            // `across` takes full panels alone, so one that is not full is a strip of its own.
            const int64_t whole = std::max(w_.cols / w_.panel, panels.first);
            const int64_t cut = ReadsAcross<B> ? std::min(whole, panels.end()) : panels.end();
            for (PanelRange part : {PanelRange{panels.first, cut - panels.first},
                                    PanelRange{cut, panels.end() - cut}})
                each_part(part, w_.strip, [&](PanelRange some) { strip(rows, some); });
        }
        const int64_t cols = std::min(w_.cols, panels.end() * w_.panel) - panels.first * w_.panel;
        const int64_t sums = rows.count * unit_ * cols, steps = w_.depth * (w_.pairs ? 2 : 1);
        counted_flops.fetch_add(2 * sums * steps * terms_, std::memory_order_relaxed);
    }

  private:
    void strip(RowRange rows, PanelRange panels) const {
        const int64_t partial = w_.partial_sum();
        bool reads_across = false; // all terms at once
        if constexpr (ReadsAcross<B>)
            reads_across = b_->turned && panels.end() * w_.panel <= w_.cols && a_[0].contiguous() &&
                           a_[terms_ - 1].contiguous();
        const int terms = reads_across ? 1 : terms_;
        Block block{};
        block.rows = rows, block.panels = panels;
        Steps &steps = block.steps;
        do { // an empty sum is one block, too: its tiles are zero
            const int64_t at = w_.before + steps.first, in_partial = at % partial;
            steps.count = std::min({w_.step, w_.depth - steps.first, partial - in_partial});
            const bool end = steps.end() == w_.depth && w_.finish;
            for (block.term = 0; block.term < terms; ++block.term) {
                const bool last_term = block.term + 1 == terms;
                block.add = in_partial + block.term > 0;
                block.last = end && last_term;
                block.later = at >= partial;
                block.ends =
                    block.later && last_term && (end || in_partial + steps.count == partial);
                if (reads_across) {
                    if constexpr (ReadsAcross<B>) across(block);
                } else if (w_.groups) {
                    if constexpr (SharesPanels<B>) groups(block);
                    if constexpr (SumsFew<B, T>) few(block);
                } else if (w_.rows_outer && !w_.rows_stay) {
                    rows_outer(block);
                } else if (w_.slice < kBlock) {
                    slices(block);
                } else {
                    panels_outer(block);
                }
            }
            steps = {steps.end(), 0};
        } while (steps.first < w_.depth);
    }

    void slices(const Block &block) const {
        int64_t k = 0;
        do { // an empty block is one slice, too
            Block slice = block;
            slice.steps = {block.steps.first + k, std::min(w_.slice, block.steps.count - k)};
            slice.resumes = k > 0;
            slice.rests = slice.steps.end() < block.steps.end();
            panels_outer(slice);
            k += slice.steps.count;
        } while (k < block.steps.count);
    }

    void rows_outer(const Block &block) const {
        const A &a = a_[block.term];
        const B &b = b_[block.term];
        const PanelRange panels = block.panels;
        for (int64_t r = block.rows.first; r < block.rows.end();) {
            const RowRange rows = first_tile(a, {r, std::min(w_.tile_rows, block.rows.end() - r)});
            const Strip<T> strip{rows, block.steps, w_.tile_rows, s_.a};
            a.prepare(k_, strip);
            TileArgs<T> t = tile_args(a, rows, strip);
            for (int64_t p = panels.first; p < panels.end(); ++p) {
                // The panels prefetch a matrix each. A single panel prefetches the two matrices in
                // turn, one with each tile.
                const int64_t matrix = panels.count == 1
                                           ? (r - block.rows.first) / w_.tile_rows % unit_
                                           : p - panels.first;
                fetch_rows(block, a, rows.end(), matrix, t);
                const Panel panel = b.get(k_, p, block.steps, s_.b);
                const Tile tile{rows, p, columns_of(p)};
                one_tile(block, t, panel, tile, vectors_of(tile.cols));
            }
            r = rows.end();
        }
    }

    void panels_outer(const Block &block) const {
        const A &a = a_[block.term];
        const B &b = b_[block.term];
        const int64_t all = block.rows.count, tiles = ceil_div(all, w_.tile_rows);
        // Copied tiles all have the same height except the last one. Other tiles differ by at most
        // one row.
        const int64_t height = ceil_div(all, tiles), least = all / tiles, higher = all % tiles;
        const Strip<T> strip{block.rows, block.steps, height, s_.a};
        a.prepare(k_, strip);
        if constexpr (CopiesStrips<B, T>)
            if (b.copies()) b.copy(k_, block.panels, block.steps, s_.b);
        for (int64_t p = block.panels.first; p < block.panels.end(); ++p) {
            bool turns = false;
            if constexpr (TurnsInRegisters<B, T>)
                turns = b.turns(tiles) && height <= kMaxTurned && a.contiguous();
            Panel panel = turns ? Panel{} : get(block, b, p);
            const Ahead ahead = order_.fetch_plan(block, p, panel, tiles);
            Tile tile{{}, p, columns_of(p)};
            const int64_t vectors = vectors_of(tile.cols);
            int64_t i = 0;
            for (int64_t r = block.rows.first; r < block.rows.end(); ++i) {
                const int64_t most = a.copies() ? height : least + (i < higher);
                const RowRange rows = first_tile(a, {r, std::min(most, block.rows.end() - r)});
                tile.rows = rows;
                TileArgs<T> t = tile_args(a, rows, strip);
                if (p == block.panels.first && !a.copies() && w_.rows_outer) {
                    fetch_rows(block, a, rows.end(), 0, t);
                } else if (w_.slice < kBlock) {
                    order_.fetch_slice(block, (p - block.panels.first) * tiles + i, tiles, t);
                } else if (t.jump != t.segment * t.step) {
                    fetch_across(rows.count, t);
                } else if (ahead.soon) {
                    fetch_soon((const char *)panel.data, panel.ld,
                               i + 1 < tiles ? (const char *)panel.data : ahead.data, t);
                } else if (ahead.data) {
                    t.prefetch = ahead.data + i * ahead.tile;
                    t.prefetch_step = ahead.step;
                    t.prefetch_run = ahead.run;
                }
                if constexpr (TurnsInRegisters<B, T>)
                    if (turns) turned_tile(block, t, b, tile);
                t.keep = s_.b;
                if (!turns) one_tile(block, t, panel, tile, vectors);
                if (panel.leaves) panel = {s_.b, w_.panel};
                r = rows.end();
            }
        }
    }

    // One tile of rows times the packed panels of a strip, as many side by side as there are
    // kernels for. Each panel is a stream of its own from memory, with its own chains of fma.
    void groups(const Block &block) const {
        const A &a = a_[block.term];
        const B &b = b_[block.term];
        const RowRange rows = block.rows;
        const Strip<T> strip{rows, block.steps, rows.count, s_.a};
        TileArgs<T> t = tile_args(a, rows, strip);
        t.panel = b.panel_stride();
        t.ahead = w_.streams.ahead;
        t.c_panel = (w_.carry.sums ? w_.carry_rows : rows.count) * w_.panel;
        const GroupTiles<T> &kernels = b.groups(k_);
        for (int64_t p = block.panels.first, n; p < block.panels.end(); p += n) {
            n = std::min<int64_t>(block.panels.end() - p, w_.strip);
            while (n > 1 && (p % b.share() || !kernels[n][rows.count])) --n;
            const Panel panel = b.get(k_, p, block.steps, s_.b);
            const Tile tile{rows, p, columns_of(p)};
            const int64_t vectors = vectors_of(tile.cols);
            if (n > 1) {
                t.b = panel.data;
                t.ldb = panel.ld;
                sum_block(block, t, tile, vectors, kernels[n][rows.count], n);
                continue;
            }
            if (w_.streams.ahead) t.prefetch = (const char *)panel.data + w_.streams.ahead;
            t.prefetch_step = b.line_step();
            t.prefetch_run = kRunLength * b.line_step();
            one_tile(block, t, panel, tile, vectors);
        }
    }

    // A few rows times the panels of a strip, by an operand that sums them itself.
    void few(const Block &block) const {
        const RowRange rows = block.rows;
        const Tile first{rows, block.panels.first, {}};
        const RowTile<T> at = a_[block.term].get(rows, {rows, block.steps, rows.count, s_.a});
        const int64_t c_panel = (w_.carry.sums ? w_.carry_rows : rows.count) * w_.panel;
        b_[block.term].sum(k_, block.panels, block.steps, at, rows.count,
                           sums(block, first, block.later), c_panel, block.add);
        for (Tile tile = first; tile.panel < block.panels.end(); ++tile.panel) {
            tile.cols = columns_of(tile.panel);
            if constexpr (AnnouncedTiles<Epilogue>)
                if (block.last) epilogue_.begin(tile);
            finish(block, tile, vectors_of(tile.cols));
        }
    }

    void across(const Block &block) const {
        const Across<T, A, B> terms{k_, w_, a_, *b_, terms_, block};
        T *const parts = s_.sums + in_strip(block, {block.rows, block.panels.end(), {}}, 0);
        terms.sum(parts);
        for (int64_t p = block.panels.first; p < block.panels.end(); ++p)
            each_part(block.rows, w_.tile_rows, [&](RowRange rows) {
                const Tile tile{rows, p, columns_of(p)};
                terms.add(parts, tile, sums(block, tile, block.later));
                finish(block, tile, vectors_of(tile.cols));
            });
    }

    Panel get(const Block &block, const B &b, int64_t p) const {
        if constexpr (CopiesStrips<B, T>)
            if (b.copies()) return {s_.b + (p - block.panels.first) * kBlock * w_.panel, w_.panel};
        return b.get(k_, p, block.steps, s_.b);
    }

    // Prefetches the rows from r on while a tile is computed: those of gate with the first panel,
    // those of up with the second.
    void fetch_rows(const Block &block, const A &a, int64_t r, int64_t matrix,
                    TileArgs<T> &t) const {
        t.prefetch = nullptr;
        if constexpr (HoldsMatrices<A>) {
            const Input &m = matrix ? a.second : a.first;
            if (r >= block.rows.end() || matrix > 1 || t.step != 1 || !m.data) return;
            t.prefetch = m.at(r, block.steps.first);
            t.prefetch_step = m.row * m.bytes(); // one line of each row
            t.prefetch_run = kRunLength * m.bytes();
        }
    }

    // Where the sums of a tile are kept: those of the first partial sum, to which the later ones
    // are added, or (later) those of the current later partial sum.
    T *sums(const Block &block, const Tile &tile, bool later) const {
        if (w_.carry.sums)
            return (later ? w_.carry.partial : w_.carry.sums) +
                   (tile.panel * w_.carry_rows + tile.rows.first) * unit_ * w_.panel;
        if (terms_ == 1 && w_.depth <= w_.step)
            return s_.tile + (w_.groups ? in_strip(block, tile, 0) : 0);
        return (later ? s_.partial : s_.sums) + in_strip(block, tile, 0);
    }
    int64_t in_strip(const Block &block, const Tile &tile, int64_t panels_before) const {
        const int64_t panel = panels_before + tile.panel - block.panels.first;
        const int64_t row = panel * block.rows.count + tile.rows.first - block.rows.first;
        return row * unit_ * w_.panel;
    }

    // Where the unfinished sums of a block are kept between its slices: behind those of whole
    // blocks.
    T *parts(const Block &block, const Tile &tile) const {
        return s_.sums + in_strip(block, tile, w_.strip);
    }

    // The columns of a panel that exist, and the number of vectors that a tile computes for them.
    ColumnRange columns_of(int64_t p) const {
        return {p * w_.panel, std::min(w_.panel, w_.cols - p * w_.panel)};
    }
    int64_t vectors_of(ColumnRange cols) const {
        return ceil_div(w_.full_panels ? w_.panel : cols.count, k_.width);
    }

    void one_tile(const Block &block, TileArgs<T> &t, const Panel &panel, const Tile &tile,
                  int64_t vectors) const {
        const int64_t n = tile.rows.count;
        t.b = panel.data;
        t.ldb = panel.ld;
        if constexpr (WritesTiles<Epilogue>)
            if (!panel.narrow && epilogue_.direct(tile)) { // a gradient that sums over one block
                const int64_t r = tile.rows.first;
                const Output &out = epilogue_.of(r);
                const int64_t row = out.row * out.bytes();
                t.c = (T *)epilogue_.at(r, tile.cols.first);
                t.ldc = out.row;
                t.add = epilogue_.add;
                t.stream = epilogue_.stream && ((uintptr_t)t.c | row) % 64 == 0;
                if (!t.stream) fetch_lines((const char *)t.c, row, n, w_.panel * out.bytes());
                if (out.holds<T>()) return tiles(panel, vectors)[n](t);
                return (w_.pairs ? k_.pairs.rounded : k_.of[out.type].rounded)[vectors][n](t);
            }
        sum_block(block, t, tile, vectors, tiles(panel, vectors)[n * unit_]);
    }

    // Sums a block of a tile, or of n tiles side by side from this one on.
    template <class Kernel>
    void sum_block(const Block &block, TileArgs<T> &t, const Tile &tile, int64_t vectors,
                   const Kernel &kernel, int64_t n = 1) const {
        t.ldc = w_.panel;
        t.c = sums(block, tile, block.later);
        t.add = block.add;
        if (block.resumes) t.start = parts(block, tile);
        if (block.rests) t.c = parts(block, tile), t.add = false;
        const auto each = [&](const auto &use) {
            for (Tile at = tile; at.panel < tile.panel + n; ++at.panel) {
                at.cols = columns_of(at.panel);
                use(at);
            }
        };
        if constexpr (AnnouncedTiles<Epilogue>)
            if (block.last && !block.rests) each([&](const Tile &at) { epilogue_.begin(at); });
        kernel(t);
        if (!block.rests) each([&](const Tile &at) { finish(block, at, vectors); });
    }

    // Called when a block of a tile is done: adds a partial sum that has ended, and hands the tile
    // to the epilogue after the last block.
    void finish(const Block &block, const Tile &tile, int64_t vectors) const {
        if (!block.ends && !block.last) return;
        T *const total = sums(block, tile, false);
        if (block.ends) {
            const T *const partial = sums(block, tile, true);
            const int64_t cols = vectors * k_.width;
            for (int64_t i = 0; i < tile.rows.count * unit_ * w_.panel; i += w_.panel)
                for (int64_t j = 0; j < cols; ++j) total[i + j] += partial[i + j];
        }
        if (block.last) epilogue_(tile, total);
    }

    // Computes a tile whose rows of B are transposed in registers, a vector of outputs at a time.
    void turned_tile(const Block &block, const TileArgs<T> &rows, const B &b,
                     const Tile &tile) const {
        T *c = sums(block, tile, block.later);
        const int64_t vectors = w_.panel / k_.width, p = tile.panel;
        const int64_t k = block.steps.first, later = k + kBlock;
        TurnedArgs<T> t = b.turn(p, 0, k);
        for (int64_t v = 0; v < vectors; ++v) {
            const TurnedArgs<T> next = v + 1 < vectors      ? b.turn(p, v + 1, k)
                                       : later < w_.depth   ? b.turn(p, 0, later)
                                       : p + 1 < order_.end ? b.turn(p + 1, 0, 0)
                                                            : t;
            t.ahead = 0;
            if (w_.streams.raw)
                t.ahead = ((const char *)next.b - (const char *)t.b) / element_bytes(b.type());
            t.a = rows.a0;
            t.row = rows.row;
            t.c = c + v * k_.width;
            t.ldc = w_.panel;
            t.depth = block.steps.count;
            t.add = block.add;
            k_.of[b.type()].turned[tile.rows.count](t);
            t = next;
        }
        finish(block, tile, vectors_of(tile.cols));
    }

    // The micro-kernels, by their number of rows, for a tile of so many vectors. Those for panels
    // of 16-bit elements are always two vectors wide.
    auto tiles(const Panel &panel, int64_t vectors) const {
        if (w_.pairs) return k_.pairs.tile[vectors];
        if constexpr (HasType<B>)
            if (panel.narrow) return k_.of[b_->type()].tile[panel.packed + panel.leaves];
        return k_.tile[vectors];
    }

    const Kernels<T> &k_;
    const Walk<T> &w_;
    const A *a_;
    const B *b_;
    const int terms_;
    const Scratch<T> &s_;
    const Epilogue &epilogue_;
    const int64_t unit_;
    Order<T, B> order_;
};

template <class T, class A, class B, class Epilogue>
void multiply(const Kernels<T> &kernels, const Walk<T> &walk, const A *a, const B *b, int terms,
              const Scratch<T> &scratch, RowRange rows, PanelRange panels,
              const Epilogue &epilogue) {
    Multiply<T, A, B, Epilogue>(kernels, walk, a, b, terms, scratch, epilogue)(rows, panels);
}

} // namespace ffncore
