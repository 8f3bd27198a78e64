// One driver for every product of the engine:  C [rows, cols] = sum over terms of A B.
//
// Operands. A gives the rows of a tile, addressed in place (weight rows, token rows, panels of
// hidden units) or copied block by block. B gives panels [k][panel width]: prepared, or packed
// block by block just before use. Which side is the weights is the caller's choice; the bits are
// the same.
//
// Loops. The summed dimension is cut into blocks of 512 (kBlock), and after 64 of these a new
// partial sum begins (kPartialSum): the contract. One side of a task stays in L2, the other streams
// past it: few panels of tokens stay while weight rows stream; many pass by a strip of rows that
// stays; token rows stay while packed weights stream. The running sums of a strip stay in scratch,
// in L2; one block needs none, and its tiles live in L1. When the last block of a tile is done, the
// epilogue gets the tile. What comes next is fetched into L2 by the micro-kernel while it works.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../operands/operand.h"
#include "fetch.h"
#include "walk.h"

namespace ffncore {

inline std::atomic<int64_t> counted_flops{0}; // what the products did, for tests

template <class T, class A, class B, class Epilogue> class Multiply {
  public:
    Multiply(const Kernels<T> &kernels, const Walk<T> &walk, const A *a, const B *b, int terms,
             const Scratch<T> &scratch, const Epilogue &epilogue)
        : k_(kernels), w_(walk), a_(a), b_(b), terms_(terms), s_(scratch), epilogue_(epilogue),
          unit_(walk.pair ? 2 : 1) {}

    // Units [r0, r1) of A times panels [p0, p1) of B.
    void operator()(int64_t r0, int64_t r1, int64_t p0, int64_t p1) {
        end_ = p1;
        if (w_.rows_outer) {
            for (int64_t r = r0; r < r1; r += std::min(w_.strip, r1 - r))
                strip(r, r + std::min(w_.strip, r1 - r), p0, p1);
        } else {
            for (int64_t p = p0; p < p1; p += std::min(w_.strip, p1 - p))
                strip(r0, r1, p, p + std::min(w_.strip, p1 - p));
        }
        const int64_t cols = std::min(w_.cols, p1 * w_.panel) - p0 * w_.panel;
        const int64_t sums = (r1 - r0) * unit_ * cols, steps = w_.depth * (w_.pairs ? 2 : 1);
        counted_flops.fetch_add(2 * sums * steps * terms_, std::memory_order_relaxed);
    }

  private:
    struct Block {              // or several, a step
        int64_t r0, r1, p0, p1; // the strip
        int64_t k, depth;
        int term;
        bool add, last;
        bool later; // it belongs to a partial sum after the first one
        bool ends;  // and is the end of it
        // Of slices: whether there are earlier ones of this block, and later ones.
        bool resumes = false, rests = false;
    };

    // A panel's block of B that is read later. A packed panel may hold the columns of several tiles
    // (`share`): then they fetch it in turn, and this is number `part`.
    struct Later {
        const B *b = nullptr;
        int64_t panel = 0, k = 0, depth = 0, part = 0, share = 1;
    };

    // What a panel's tiles fetch into L2, each its part: bytes from tile to tile, k to k, run to
    // run.
    struct Ahead {
        const char *data = nullptr;
        int64_t tile = 0, step = 0, run = 0;
        bool soon = false; // fetch_soon()
    };

    void strip(int64_t r0, int64_t r1, int64_t p0, int64_t p1) const {
        const int64_t partial = w_.partial_sum();
        Block block{};
        block.r0 = r0, block.r1 = r1, block.p0 = p0, block.p1 = p1;
        do { // an empty sum is a block, too
            const int64_t at = w_.before + block.k, in_partial = at % partial;
            block.depth = std::min({w_.step, w_.depth - block.k, partial - in_partial});
            const bool end = block.k + block.depth == w_.depth && w_.finish;
            for (block.term = 0; block.term < terms_; ++block.term) {
                const bool last_term = block.term + 1 == terms_;
                block.add = in_partial + block.term > 0;
                block.last = end && last_term;
                block.later = at >= partial;
                block.ends =
                    block.later && last_term && (end || in_partial + block.depth == partial);
                if (w_.rows_outer && !w_.rows_stay)
                    rows_outer(block);
                else if (w_.slice < kBlock)
                    slices(block);
                else
                    panels_outer(block);
            }
            block.k += block.depth;
        } while (block.k < w_.depth);
    }

    void slices(const Block &block) const {
        int64_t k = 0;
        do { // an empty sum is a slice, too
            Block slice = block;
            slice.k += k;
            slice.depth = std::min(w_.slice, block.depth - k);
            slice.resumes = k > 0;
            slice.rests = k + slice.depth < block.depth;
            panels_outer(slice);
            k += slice.depth;
        } while (k < block.depth);
    }

    void rows_outer(const Block &block) const {
        const A &a = a_[block.term];
        const B &b = b_[block.term];
        for (int64_t r = block.r0; r < block.r1;) {
            const int64_t n = a.tile_rows(r, std::min(w_.tile_rows, block.r1 - r));
            a.prepare(k_, r, r + n, block.k, block.depth, w_.tile_rows, s_.a);
            TileArgs<T> t = tile_args(block, a, r, r, n, w_.tile_rows);
            // A panel alone fetches one matrix with every other tile.
            const bool alone = block.p1 - block.p0 == 1;
            for (int64_t p = block.p0; p < block.p1; ++p) {
                fetch_rows(block, a, r + n,
                           alone ? (r - block.r0) / w_.tile_rows % unit_ : p - block.p0, t);
                const Panel panel = b.get(k_, p, block.k, block.depth, s_.b);
                one_tile(block, t, panel, r, n, p, columns_of(p));
            }
            r += n;
        }
    }

    void panels_outer(const Block &block) const {
        const A &a = a_[block.term];
        const B &b = b_[block.term];
        const int64_t tiles = ceil_div(block.r1 - block.r0, w_.tile_rows);
        // Copied tiles are alike but for the last one; others differ by a row at most.
        const int64_t height = ceil_div(block.r1 - block.r0, tiles);
        const int64_t least = (block.r1 - block.r0) / tiles, higher = (block.r1 - block.r0) % tiles;
        a.prepare(k_, block.r0, block.r1, block.k, block.depth, height, s_.a);
        if constexpr (kCopies)
            if (b.copies()) b.copy(k_, block.p0, block.p1, block.k, block.depth, s_.b);
        for (int64_t p = block.p0; p < block.p1; ++p) {
            bool turns = false;
            if constexpr (kTurns) turns = b.turns(tiles) && height <= kMaxTurned && a.contiguous();
            Panel panel = turns ? Panel{} : get(block, b, p);
            const Ahead ahead = fetch_plan(follow(block, p), panel, block.depth, tiles);
            const Columns columns = columns_of(p);
            int64_t i = 0, n;
            for (int64_t r = block.r0; r < block.r1; r += n, ++i) {
                n = a.copies() ? height : least + (i < higher);
                n = a.tile_rows(r, std::min(n, block.r1 - r));
                TileArgs<T> t = tile_args(block, a, block.r0, r, n, height);
                if (p == block.p0 && !a.copies() && w_.rows_outer) {
                    fetch_rows(block, a, r + n, 0, t);
                } else if (w_.slice < kBlock) {
                    fetch_slice(block, (p - block.p0) * tiles + i, tiles, t);
                } else if (t.jump != t.segment * t.step) {
                    fetch_across(n, t);
                } else if (ahead.soon) {
                    fetch_soon((const char *)panel.data, panel.ld,
                               i + 1 < tiles ? (const char *)panel.data : ahead.data, t);
                } else if (ahead.data) {
                    t.prefetch = ahead.data + i * ahead.tile;
                    t.prefetch_step = ahead.step;
                    t.prefetch_run = ahead.run;
                }
                if constexpr (kTurns)
                    if (turns) turned_tile(block, t, b, r, n, p);
                t.keep = s_.b;
                if (!turns) one_tile(block, t, panel, r, n, p, columns);
                if (panel.leaves) panel = {s_.b, w_.panel};
            }
        }
    }

    Panel get(const Block &block, const B &b, int64_t p) const {
        if constexpr (kCopies)
            if (b.copies()) return {s_.b + (p - block.p0) * kBlock * w_.panel, w_.panel};
        return b.get(k_, p, block.k, block.depth, s_.b);
    }

    Ahead fetch_plan(const Later &next, const Panel &panel, int64_t depth, int64_t tiles) const {
        if constexpr (kFetches) {
            const char *data = next.b ? next.b->line(next.panel, next.k) : nullptr;
            if (b_->line_step() != b_->line_bytes()) { // lines far apart
                if (panel.ld == w_.panel) return {};   // but copied
                return {data ? data : (const char *)panel.data, 0, 0, 0, true};
            }
            if (!data || depth == 0) return {};
            // One tile takes all of a panel, and memory is the limit: what comes next is near. (A
            // panel ahead, 128 KB, took 7 % longer with 8 rows of float; without, half as long
            // again.)
            constexpr int64_t kNear = 8 << 10;
            if (tiles == 1 && kPacked && !w_.rows_outer && w_.strip == 1)
                return {(const char *)panel.data + kNear, 0, b_->line_step(),
                        kRunLength * b_->line_step(), false};
            const int64_t bytes = next.depth * b_->line_step() / (tiles * next.share); // evenly
            return {data + next.part * tiles * bytes, bytes, bytes / depth,
                    kRunLength * bytes / depth, false};
        }
        return {};
    }

    // Fetches the rows from r on while a tile works: gate with the first panel, up with the second.
    void fetch_rows(const Block &block, const A &a, int64_t r, int64_t panel,
                    TileArgs<T> &t) const {
        t.prefetch = nullptr;
        if constexpr (requires { a.second; }) {
            const auto &m = panel ? a.second : a.first;
            if (r >= block.r1 || panel > 1 || t.step != 1 || !m.data) return;
            t.prefetch = m.at(r, block.k);
            t.prefetch_step = m.row * m.bytes(); // a line of each row
            t.prefetch_run = kRunLength * m.bytes();
        }
    }

    // Tile i of a slice fetches its part of the next one, whose rows are as wide as the strip.
    void fetch_slice(const Block &block, int64_t i, int64_t tiles, TileArgs<T> &t) const {
        if constexpr (kFetches) {
            const Later next = follow_slice(block);
            if (!next.b || block.depth == 0) return;
            const int64_t row = std::min(block.p1 * w_.panel, w_.cols) - block.p0 * w_.panel;
            const int64_t bytes = row * next.b->line_bytes() / w_.panel;
            const int64_t part = next.depth * bytes / ((block.p1 - block.p0) * tiles);
            const int64_t at = i * part;
            t.prefetch = next.b->line(next.panel, next.k + at / bytes) + at % bytes;
            t.prefetch_step = part / block.depth;
            t.prefetch_run = kRunLength * part / block.depth;
        }
    }
    // What is read after a slice: the block's next one, else the first of what follows.
    Later follow_slice(const Block &block) const {
        Later later = follow(block, block.p1 - 1);
        if (block.rests)
            later = {b_ + block.term, block.p0, block.k + block.depth};
        else if (later.panel == block.p0)
            later.k = later.k / kBlock * kBlock;
        later.depth = w_.slice;
        return later;
    }

    // The block of B that is read after panel p: the strip's next panel, else its first one for the
    // next term or block, else the next strip's.
    Later follow(const Block &block, int64_t p) const {
        const B *b = b_ + block.term;
        Later later{b, p, block.k, block.depth};
        if constexpr (kPacked) {
            later.share = b->share();
            later.part = p % later.share;
        }
        const int64_t next = p - later.part + later.share;
        const int64_t rest = w_.depth - block.k - block.depth; // of the sum, after this step
        auto at = [&](int term, int64_t panel, int64_t k, int64_t depth) {
            later.b = b_ + term, later.panel = panel, later.k = k, later.depth = depth;
            return later;
        };
        if constexpr (kPacked) // one by one: in memory's order
            if (!w_.rows_outer && w_.strip == 1)
                return at(0, p, block.k + block.depth, block.depth);
        if (next < block.p1) return at(block.term, next, block.k, block.depth);
        if (block.term + 1 < terms_) return at(block.term + 1, block.p0, block.k, block.depth);
        if (rest > 0) return at(0, block.p0, block.k + block.depth, std::min(w_.step, rest));
        if (next < end_) return at(0, next, 0, std::min(w_.step, w_.depth));
        return {};
    }

    // first: where prepared rows begin.
    TileArgs<T> tile_args(const Block &block, const A &a, int64_t first, int64_t r, int64_t n,
                          int64_t height) const {
        const RowTile<T> rows = a.get(r, n, first, block.k, block.depth, height, s_.a);
        TileArgs<T> t{};
        t.a0 = rows.a0;
        t.a1 = rows.a1;
        t.row = rows.row;
        t.step = rows.step;
        t.segment = rows.segment;
        t.jump = rows.jump;
        t.depth = block.depth;
        return t;
    }

    // Where the sums of the tile at unit r, panel p are: those of the first partial sum, to which
    // the later ones are added, or those of a later one.
    T *sums(const Block &block, int64_t r, int64_t p, bool later) const {
        if (w_.carry.sums)
            return (later ? w_.carry.partial : w_.carry.sums) +
                   (p * w_.carry_rows + r) * unit_ * w_.panel;
        if (terms_ == 1 && w_.depth <= w_.step) return s_.tile;
        const int64_t at = (p - block.p0) * (block.r1 - block.r0) + r - block.r0;
        return (later ? s_.partial : s_.sums) + at * unit_ * w_.panel;
    }

    // The same of a block's sums between slices: behind those of whole blocks.
    T *parts(const Block &block, int64_t r, int64_t p) const {
        const int64_t at = (p - block.p0 + w_.strip) * (block.r1 - block.r0) + r - block.r0;
        return s_.sums + at * unit_ * w_.panel;
    }

    // Of panel p: those that exist, and the vectors that hold them.
    struct Columns {
        int64_t count, vectors;
    };
    Columns columns_of(int64_t p) const {
        const int64_t count = std::min(w_.panel, w_.cols - p * w_.panel);
        return {count, ceil_div(w_.full_panels ? w_.panel : count, k_.width)};
    }

    void one_tile(const Block &block, TileArgs<T> &t, const Panel &panel, int64_t r, int64_t n,
                  int64_t p, const Columns &columns) const {
        const int64_t vectors = columns.vectors;
        t.b = panel.data;
        t.ldb = panel.ld;
        if constexpr (kDirect)
            if (!panel.narrow && epilogue_.direct(r, columns.count)) { // one block of a gradient
                const auto &out = epilogue_.of(r);
                const int64_t row = out.row * out.bytes();
                t.c = (T *)epilogue_.at(r, p * w_.panel);
                t.ldc = out.row;
                t.add = epilogue_.add;
                t.stream = epilogue_.stream && ((uintptr_t)t.c | row) % 64 == 0;
                if (!t.stream) fetch_lines((const char *)t.c, row, n, w_.panel * out.bytes());
                if (out.template holds<T>()) return tiles(panel, vectors)[n](t);
                return (w_.pairs ? k_.pairs.rounded : k_.of[out.type].rounded)[vectors][n](t);
            }
        t.ldc = w_.panel;
        t.c = sums(block, r, p, block.later);
        t.add = block.add;
        if (block.resumes) t.start = parts(block, r, p);
        if (block.rests) t.c = parts(block, r, p), t.add = false;
        if constexpr (kAnnounces)
            if (block.last && !block.rests) epilogue_.begin(r, n, p, p * w_.panel, columns.count);
        tiles(panel, vectors)[n * unit_](t);
        if (!block.rests) finish(block, r, n, p, columns);
    }

    // A block of a tile is done.
    void finish(const Block &block, int64_t r, int64_t n, int64_t p, const Columns &columns) const {
        if (!block.ends && !block.last) return;
        T *const total = sums(block, r, p, false);
        if (block.ends) {
            const T *const partial = sums(block, r, p, true);
            const int64_t cols = columns.vectors * k_.width;
            for (int64_t i = 0; i < n * unit_ * w_.panel; i += w_.panel)
                for (int64_t j = 0; j < cols; ++j) total[i + j] += partial[i + j];
        }
        if (block.last) epilogue_(r, n, p, p * w_.panel, columns.count, total);
    }

    // The same for rows of B that are turned on the way, a vector of outputs at a time.
    void turned_tile(const Block &block, const TileArgs<T> &tile, const B &b, int64_t r, int64_t n,
                     int64_t p) const {
        T *c = sums(block, r, p, block.later);
        const int64_t vectors = w_.panel / k_.width;
        TurnedArgs<T> t = b.turn(p, 0, block.k);
        for (int64_t v = 0; v < vectors; ++v) {
            const TurnedArgs<T> next = v + 1 < vectors ? b.turn(p, v + 1, block.k)
                                       : block.k + kBlock < w_.depth
                                           ? b.turn(p, 0, block.k + kBlock)
                                       : p + 1 < end_ ? b.turn(p + 1, 0, 0)
                                                      : t;
            t.ahead = ((const char *)next.b - (const char *)t.b) / element_bytes(b.type());
            t.a = tile.a0;
            t.row = tile.row;
            t.c = c + v * k_.width;
            t.ldc = w_.panel;
            t.depth = block.depth;
            t.add = block.add;
            k_.of[b.type()].turned[n](t);
            t = next;
        }
        finish(block, r, n, p, columns_of(p));
    }

    // Panels of 16-bit elements are two vectors wide.
    auto tiles(const Panel &panel, int64_t vectors) const {
        if (w_.pairs) return k_.pairs.tile[vectors];
        if constexpr (requires { b_->type(); })
            if (panel.narrow) return k_.of[b_->type()].tile[panel.packed + panel.leaves];
        return k_.tile[vectors];
    }

    static constexpr bool kTurns = requires(const B &b) { b.turns(1); };
    static constexpr bool kFetches = requires(const B &b) { b.line_bytes(); };
    static constexpr bool kPacked = requires(const B &b) { b.share(); };
    static constexpr bool kCopies = requires(const B &b) { b.copies(); };
    static constexpr bool kAnnounces = requires(const Epilogue &e) { e.begin(0, 0, 0, 0, 0); };
    static constexpr bool kDirect = requires(const Epilogue &e) { e.direct(0, 0); };

    const Kernels<T> &k_;
    const Walk<T> &w_;
    const A *a_;
    const B *b_;
    const int terms_;
    const Scratch<T> &s_;
    const Epilogue &epilogue_;
    const int64_t unit_;
    int64_t end_ = 0; // of the panels of this call
};

template <class T, class A, class B, class Epilogue>
void multiply(const Kernels<T> &kernels, const Walk<T> &walk, const A *a, const B *b, int terms,
              const Scratch<T> &scratch, int64_t r0, int64_t r1, int64_t p0, int64_t p1,
              const Epilogue &epilogue) {
    Multiply<T, A, B, Epilogue>(kernels, walk, a, b, terms, scratch, epilogue)(r0, r1, p0, p1);
}

} // namespace ffncore
