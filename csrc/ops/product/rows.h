// Products with tokens as rows, as jobs of a schedule:
//
//   product           C [tokens, cols] = the sum over terms of A [tokens, depth] B [depth, cols]
//   weight_gradient   out [rows, cols] (+)= A^T B, the sum over tokens
//   copy              rows of tokens, copied to rows of T
//
// A tile is two vectors wide, because on AVX-512 a tile of 14 x 2 needs the fewest loads for each
// fma. The rows of tokens stay in L2. Where they fit with all their blocks, a panel of B runs
// through its whole sum at once; else they stay block by block, while a strip of panels streams.
#pragma once
#include "../operands/coded_panels.h"
#include "../operands/panel_operands.h"
#include "../operands/row_operands.h"
#include "../schedule/call.h"
#include "../schedule/grid.h"
#include "blocking.h"
#include "gemm.h"
#include "gradient_tiles.h"

#include <array>
#include <cstring>
#include <type_traits>

namespace ffncore {

// Up to so many tokens, the backward pass reads raw weights by slices (Walk::slice). Compared with
// blocks that read 128 bytes of each row, or with copied strips, slices take 20 to 35 % less time
// for 1 to 14 tokens (one tile reads a panel), 10 to 25 % less for 50, and from 12 % less to 7 %
// more for 100.
constexpr int64_t kSlicedRows = 80;
// Rows whose distance is a power of two share a few sets of L1. More than 8 rows are therefore
// copied, to rows whose distance is an odd number of cache lines, which spread over all sets.
constexpr int64_t kRowsInPlace = 8;
constexpr int64_t kCodedSlice = 128; // steps of quantised weights
// Up to so many tokens, the numbers of quantised weights never leave the registers. Their sums for
// a strip have to fit into Scratch::tile.
constexpr int64_t kFewTokens = 7;
// Up to so many tokens, the backward pass transposes packed weights in registers.
constexpr int64_t kAcrossTokens = 16;
template <class T> int64_t row_stride(int64_t cols) {
    return (round_up(cols * (int64_t)sizeof(T), 128) + 64) / (int64_t)sizeof(T);
}
// Whether a block of rows at this distance stays in L2 for a second tile. At distances of 4 KiB and
// its multiples the rows share a 32nd of the sets, or fewer.
template <class T> bool rows_spread(int64_t stride) {
    return stride * (int64_t)sizeof(T) % 4096 != 0;
}

// Which chunk of a sum a product computes.
template <class T> struct SumPart {
    Carry<T> carry;
    int64_t before = 0; // terms of earlier chunks
    bool last = true;
};

// The size of C [tokens, cols], whose elements are sums of `depth` terms.
struct ProductSize {
    int64_t tokens, depth, cols;
};

// A product that is ready to run: any thread can compute a part of it.
template <class T, class Panels> struct RowsProduct {
    const Kernels<T> *k;
    Walk<T> walk;
    std::array<StridedRows<T>, 2> rows;
    std::array<Panels, 2> panels;
    int terms;
    int64_t together; // the most tokens at a time
    ProductSize size;
    TokenRows<T> gather; // rows to be gathered; m.data == nullptr: the rows lie ready

    // Multiplies the tokens from `first` on, at most `together` of them, by some panels.
    template <class Epilogue>
    void operator()(int64_t first, PanelRange some, const Scratch<T> &mine,
                    const Epilogue &epilogue) const {
        const int64_t count = std::min(together, size.tokens - first);
        std::array<StridedRows<T>, 2> rows_of = rows;
        if (gather.m.data) {
            const int64_t ld = row_stride<T>(walk.depth);
            if (walk.pairs)
                gather.copy_pairs(*k, {first, count}, size.depth, mine.a, ld);
            else
                gather.copy(*k, {first, count}, {0, size.depth}, mine.a, ld);
            rows_of[0] = {mine.a, ld, 1, rows[0].block, first};
        }
        multiply(*k, walk, rows_of.data(), panels.data(), terms, mine, {first, count}, some,
                 epilogue);
    }
};

// Adds the jobs of a group to the current phase of its schedule.
template <class T> struct Rows {
    const Build<T> &build;
    const Kernels<T> *k;
    Schedule &s;
    const int64_t width, tile;

    explicit Rows(const Build<T> &build)
        : build(build), k(&build.call.kernels), s(build.schedule), width(2 * k->width),
          tile(k->max_rows[2]) {}

    // Copies from [tokens, cols] to `to` [tokens][ld].
    void copy(const Input &from, int64_t tokens, int64_t cols, T *to, int64_t ld) const {
        s.job(ceil_div(tokens, kRowsInPlace), [=, k = k](int64_t task, int) {
            const int64_t t = task * kRowsInPlace; // pack copies rows: its k is the token
            k->of[from.type].pack(from.at(t), from.col, from.row, cols,
                                  std::min(kRowsInPlace, tokens - t), to + t * ld, ld, cols);
        });
    }

    // Packed weights for sums of `depth` terms. A tile that widens 16-bit elements takes 8 % longer
    // for bfloat16 and 17 % for float16. Storing the widened numbers for other tiles (`leaves`)
    // costs as much as widening for two or three tiles, so it pays only for more.
    PackedPanels<T> packed(const char *panels, const Weights<T> &w, int64_t depth, int64_t tokens,
                           bool pairs) const {
        const int64_t most = w.type == kBfloat16 ? 3 : 2; // tiles that widen for themselves
        const bool leaves = w.type != kOwn<T> && !pairs && tokens > most * tile;
        return {panels, w.type, depth, width, leaves, pairs};
    }

    // Rows of bfloat16 as rows of pairs, for an instruction that takes pairs. A pair has the size
    // of one float (T). A row of odd length must be followed by +0.
    static StridedRows<T> pairs_of(const Input &rows) {
        return {(const T *)rows.data, rows.row / 2, 1, kBlock / 2};
    }
    // Copies from [tokens, cols], of bfloat16, to `to` [tokens][ld pairs].
    void copy_pairs(const Input &from, int64_t tokens, int64_t cols, T *to, int64_t ld) const {
        s.job(ceil_div(tokens, kRowsInPlace), [=](int64_t task, int) {
            const int64_t end = std::min(tokens, (task + 1) * kRowsInPlace);
            for (int64_t t = task * kRowsInPlace; t < end; ++t) {
                Bf16 *out = (Bf16 *)(to + t * ld);
                if (from.col == 1) std::memcpy(out, from.at(t), cols * sizeof *out);
                for (int64_t i = 0; from.col != 1 && i < cols; ++i)
                    out[i] = *(const Bf16 *)from.at(t, i);
                if (cols % 2) out[cols] = {};
            }
        });
    }

    // The epilogue gets each finished tile. If rows have to be gathered (`gather`), every task
    // gathers those that it needs. This spares a phase and an array of all rows.
    template <class Panels, class Epilogue>
    void product(const ProductSize &size, const std::vector<StridedRows<T>> &rows,
                 const std::vector<Panels> &panels, const SumPart<T> &part,
                 const Epilogue &epilogue, const TokenRows<T> &gather = {}) const {
        const auto ready = prepare(size, rows, panels, part, gather);
        // The "rows" of this grid are panels, which are cut finely. Its "panels" are groups of
        // tokens; a task has one.
        const Grid grid({.rows = ceil_div(size.cols, width),
                         .quantum = ready.walk.strip,
                         .panels = ceil_div(size.tokens, ready.together)},
                        build.call.threads, build.share);
        s.job(grid.tasks(), [=, buffers = &build.scratch](int64_t task, int thread) {
            const Scratch<T> mine = buffers->at(thread);
            grid.run(task, [&](RowRange panels, PanelRange group) {
                ready(group.first * ready.together, {panels.first, panels.count}, mine, epilogue);
            });
        });
    }

    template <class Panels>
    RowsProduct<T, Panels> prepare(const ProductSize &size, const std::vector<StridedRows<T>> &rows,
                                   const std::vector<Panels> &panels, const SumPart<T> &part = {},
                                   const TokenRows<T> &gather = {}) const {
        const auto [tokens, depth, cols] = size;
        const int terms = (int)rows.size();
        const std::array<StridedRows<T>, 2> a{rows[0], rows[terms - 1]};
        const std::array<Panels, 2> b{panels[0], panels[terms - 1]};
        bool copies = false;
        if constexpr (CopiesStrips<Panels, T>) copies = b[0].copies();
        Walk<T> walk{};
        walk.depth = depth;
        walk.before = part.before;
        if constexpr (std::is_same_v<Panels, PackedPanels<T>>) {
            const int64_t terms_of_step = b[0].terms();
            walk.pairs = b[0].pairs;
            // There is room for the widened numbers of one block.
            walk.step = (b[0].leaves ? kBlock : sum_step(depth)) / terms_of_step;
            walk.depth = ceil_div(depth, terms_of_step);
            walk.before = part.before / terms_of_step;
        }
        walk.panel = width;
        walk.cols = cols;
        walk.tile_rows = tile;
        RowBlocking blocks(walk, tokens, terms, copies, build.call.l2);
        bool sliced = false;
        if constexpr (std::is_same_v<Panels, MatrixPanels<T>>)
            if (b[0].reading == Reading::kSliced) {
                sliced = true;
                // Short slices where one tile reads a panel, as memory is the limit then. 16-bit
                // rows take twice as many steps, which are as many bytes.
                walk.slice = tokens <= tile && b[0].m.template holds<T>() ? 32 : 64;
                blocks.strip = sliced_strip(blocks.rows, cols);
            }
        if constexpr (std::is_same_v<Panels, CodedPanels<T>>) {
            if (tokens <= kFewTokens) {
                walk.groups = true; // and a strip is kPanelStrip panels, side by side
                blocks.strip = kPanelStrip;
            } else if (tokens <= tile && depth > kCodedSlice) {
                sliced = true; // its numbers, 16 KiB, stay in L1 for the one tile that reads them
                walk.slice = kCodedSlice;
            }
        }
        int64_t parts = 0; // sums of a strip, with those of a block that are kept until its end
        if constexpr (std::is_same_v<Panels, PackedAcross<T>>)
            if (b[0].turned) {
                blocks.strip = sliced_strip(blocks.rows, cols);
                parts = 1 + terms;
            }
        walk.rows_outer = false;
        walk.strip = blocks.strip;
        walk.full_panels = true;
        walk.streams = build.call.streams;
        if constexpr (std::is_same_v<Panels, PackedPanels<T>>) {
            if (const int64_t most = widest_group(b[0], blocks.rows)) {
                walk.groups = true;
                walk.strip = blocks.strip = most;
            } else if (blocks.rows <= tile && blocks.strip < b[0].share()) {
                // A packed panel has the columns of two tiles. Block by block both of them read a
                // line of it, before the line has left the caches.
                walk.strip = blocks.strip = b[0].share();
                walk.step = kBlock / b[0].terms();
            }
        }
        walk.carry = part.carry;
        walk.carry_rows = tokens;
        walk.finish = part.last;
        const bool sums = !part.carry.sums && (walk.depth > walk.step || terms > 1);
        const int64_t strip = blocks.rows * blocks.strip * width;
        build.scratch.need({.a = gather.m.data ? blocks.rows * row_stride<T>(walk.depth) : 0,
                            .b = (copies ? blocks.strip : 1) * kBlock * width,
                            .sums = std::max<int64_t>(sliced ? 2 : sums, parts) * strip,
                            .partial = sums && walk.long_sum() ? strip : 0});
        return {k, walk, a, b, terms, blocks.rows, size, gather};
    }

    // The most tiles that so many tokens take side by side, where a packed panel has share() of
    // them; 0: one.
    int64_t widest_group(const PackedPanels<T> &b, int64_t tokens) const {
        if (tokens > kGroupRows || b.leaves) return 0;
        int64_t most = std::min<int64_t>(kMaxGroup, build.call.streams.panels * b.share());
        while (most > 0 && !b.groups(*k)[most][tokens]) --most;
        return most;
    }

    // The panels of a strip that is read by slices: at most a page (4096 bytes) of each row of B,
    // so that memory is read in order. There are fewer for many tokens, because both sums of the
    // strip have to stay in a third of L2, and fewer where every thread would not get its tasks.
    int64_t widest_strip() const { return 4096 / (width * (int64_t)sizeof(T)); }
    int64_t sliced_strip(int64_t tokens, int64_t cols) const {
        constexpr int64_t kTasks = 2; // a thread
        const int64_t room = build.call.l2 / 3 / (2 * tokens * width * (int64_t)sizeof(T));
        const double tasks = std::max(1.0, kTasks * build.call.threads * build.share);
        const int64_t share = (int64_t)((double)ceil_div(cols, width) / tasks);
        return std::max(std::min({widest_strip(), room, share}), kPanelStrip);
    }

    // Weights for the backward pass, which sums over their rows: raw ones; and packed ones
    // (PackedAcross), which were packed for sums of `depth` terms.
    MatrixPanels<T> across(const Input &m, int64_t cols, int64_t tokens) const {
        const bool in_place = m.holds<T>() && rows_spread<T>(m.row);
        return {m, cols, width,
                tokens <= kSlicedRows ? Reading::kSliced
                : in_place            ? Reading::kInPlace
                                      : Reading::kCopied};
    }
    // size: of the product that the weights were packed for, and how many tokens there are now.
    PackedAcross<T> packed_across(const char *panels, const Weights<T> &w, const ProductSize &size,
                                  bool gated, bool upper) const {
        return {panels, w.type, packed_depth(w.type, size.depth), size.cols, width,
                gated,  upper,  size.tokens <= kAcrossTokens};
    }

    // Computes h alone, from the preactivations, where dh is not needed: calls the epilogue of the
    // backward pass without a product.
    template <class Epilogue>
    void hidden(int64_t tokens, int64_t units, const Epilogue &epilogue) const {
        const Grid grid({.rows = tokens, .quantum = tile, .panels = ceil_div(units, width)},
                        build.call.threads, build.share);
        s.job(grid.tasks(), [=, width = width, tile = tile](int64_t task, int) {
            grid.run(task, [&](RowRange rows, PanelRange panels) {
                const int64_t p = panels.first;
                const ColumnRange cols{p * width, std::min(width, units - p * width)};
                each_part(rows, tile, [&](RowRange some) { epilogue({some, p, cols}, nullptr); });
            });
        });
    }

    // out [rows, cols] (+)= the sum over tokens t of a[t][row] * b[t][col]; a holds T. The rows of
    // the gradient are written one after the other, while b stays in L1 or L2. A gradient of T
    // takes the blocks of tokens one by one. For a 16-bit gradient they are added in scratch memory
    // first.
    void weight_gradient(const Input &a, int64_t rows, const Input &b, int64_t cols, int64_t tokens,
                         const Output &out, bool add) const {
        Walk<T> walk{};
        walk.panel = width;
        walk.cols = cols;
        walk.tile_rows = tile;
        walk.full_panels = true;
        const bool narrow = !out.template holds<T>();
        const int64_t depth = narrow ? std::max(kBlock, tokens) : kBlock;
        walk.strip = depth == kBlock ? walk.strip : tile;
        const Grid grid({.rows = rows, .quantum = tile}, build.call.threads);
        const bool stream = streams(out, {rows, cols, tokens}, width, add, build.call.l2);
        build.scratch.need(
            {.b = kBlock * width, .sums = depth == kBlock ? 0 : tile * round_up(cols, width)});
        s.job(grid.tasks(),
              [=, k = k, width = width, buffers = &build.scratch](int64_t task, int thread) {
                  const Scratch<T> mine = buffers->at(thread);
                  auto block = [&](RowRange some, int64_t t) {
                      Walk<T> one = walk;
                      one.depth = std::min(depth, tokens - t);
                      const StridedRows<T> units{own<T>(a.from(t)), a.col, a.row};
                      const MatrixPanels<T> panels{b.from(t), cols, width, Reading::kInPlace};
                      const GradientTiles<T> write{
                          k, width, out, {}, INT64_MAX, add || t > 0, depth == kBlock, stream};
                      multiply(*k, one, &units, &panels, 1, mine, some, {0, ceil_div(cols, width)},
                               write);
                  };
                  grid.run(task, [&](RowRange some, PanelRange) {
                      for (int64_t t = 0; t < tokens; t += depth) block(some, t);
                  });
                  if (stream) k->drain();
              });
    }
};

} // namespace ffncore
