// Products with tokens as panels [k][tokens], as jobs of a schedule: what the passes of a layer and
// of a mixture are made of.
//
//   product           weight rows * token panels -> tile [rows][tokens]
//   weight_gradient   token panels read across * panels of [tokens][columns] -> [rows][columns]
//
// Weights stream once per chunk of tokens (plan.h), a tile of 6 rows x 64 tokens at a time
// (AVX-512); the chunk's panels stay in L2. Products with a transposed weight copy it block by
// block into tiles. Sums over tokens run in blocks of 512 into the gradient itself.
//
// With an instruction that takes pairs of bfloat16, all operands are pairs along the sum: a step of
// a panel is two terms, of d, of units, or of tokens.
#pragma once
#include "../operands/panel_operands.h"
#include "../operands/row_operands.h"
#include "../schedule/call.h"
#include "../schedule/grid.h"
#include "blocking.h"
#include "gemm.h"
#include "gradient_tiles.h"

#include <array>

namespace ffncore {

template <class T> Walk<T> walk_of(int64_t depth, int64_t tokens) {
    Walk<T> walk{};
    walk.depth = depth;
    walk.cols = tokens;
    return walk;
}

// A product that any thread can do a part of.
template <class T> struct PanelsProduct {
    const Kernels<T> *k;
    Walk<T> walk;
    std::array<WeightRows<T>, 2> rows;
    std::array<TokenPanels<T>, 2> panels;
    int terms;
    int64_t together;    // panels at a time
    TokenRows<T> gather; // m.data == nullptr: the panels lie ready

    // Weight rows times panels, at most `together` of these.
    template <class Epilogue>
    void operator()(RowRange some, PanelRange of, const Scratch<T> &mine,
                    const Epilogue &epilogue) const {
        std::array<TokenPanels<T>, 2> b = panels;
        if (gather.m.data) {
            b[0].data = mine.b;
            b[0].first = of.first;
            const int64_t per_step = walk.pairs ? 2 : 1;
            const auto pack = walk.pairs ? k->pairs.pack : k->of[gather.m.type].pack;
            for (int64_t p = of.first; p < of.end(); ++p) {
                const Panel to = b[0].at(p, 0);
                const int64_t first = p * walk.panel;
                gather.panel(*k, pack, per_step, {first, std::min(walk.panel, walk.cols - first)},
                             sum_length, (T *)to.data, to.ld);
            }
        }
        multiply(*k, walk, rows.data(), b.data(), terms, mine, some, of, epilogue);
    }
    int64_t sum_length; // in numbers, where walk.depth counts pairs
};

// The jobs that a group's phases are made of.
template <class T> struct Panels {
    const Build<T> &build;
    const Kernels<T> *k;
    Schedule &s;
    const int64_t width; // tokens of a token panel, columns of a weight gradient's panel
    const bool pairs;
    const int64_t per_step; // terms of a step
    static constexpr int64_t kBytes = sizeof(T);

    explicit Panels(const Build<T> &build, bool pairs = false)
        : Panels(build, pairs, build.call.kernels.vectors * build.call.kernels.width) {}
    Panels(const Build<T> &build, bool pairs, int64_t width)
        : build(build), k(&build.call.kernels), s(build.schedule), width(width), pairs(pairs),
          per_step(pairs ? 2 : 1) {}

    int64_t steps(int64_t depth) const { return ceil_div(depth, per_step); }

    // Rows of `depth` numbers, of a weight matrix or (`second`) two.
    WeightRows<T> rows(const Input &first, const Input &second, int64_t depth) const {
        if (!pairs) return {first, second};
        if (depth % 2 == 0 && has_pairs(first) && has_pairs(second))
            return {pair_view<T>(first), pair_view<T>(second)};
        return {first, second, depth};
    }
    // gate and up as the forward pass reads them, and a matrix's columns as the backward pass does.
    WeightRows<T> up_rows(const Weights<T> &w) const {
        return rows(w.gated ? w.gate : w.up, w.gated ? w.up : Input{}, w.d);
    }
    WeightRows<T> columns(const Input &m, int64_t depth) const {
        return rows(m.transposed(), {}, depth);
    }

    // Token panels [panel][steps][width] of one chunk; the last is as wide as its tokens need.
    TokenPanels<T> fitted(const T *data, int64_t steps, int64_t tokens) const {
        const int64_t last = std::max<int64_t>(ceil_div(tokens, width), 1) - 1;
        return {data, steps, width, last, round_up(tokens - last * width, k->width)};
    }
    // Panels that are all of full width: the backward pass reads them across, too.
    TokenPanels<T> full(const T *data, int64_t steps) const {
        return {data, steps, width, 0, width};
    }

    int64_t tile_rows(int64_t cols) const {
        const int64_t vectors = ceil_div(std::clamp<int64_t>(cols, 1, width), k->width);
        return k->max_rows[vectors];
    }

    // Some tokens of m [., depth] into panels. Tasks: a panel, a block of depth.
    void pack(const Input &m, int64_t depth, TokenRange tokens, const TokenPanels<T> &panels) {
        const int64_t blocks = std::max<int64_t>(ceil_div(depth, kBlock), 1);
        const auto pack = pairs ? k->pairs.pack : k->of[m.type].pack;
        s.job(ceil_div(tokens.count, width) * blocks,
              [=, width = width, per_step = per_step](int64_t task, int) {
                  const int64_t p = task / blocks, i = task % blocks * kBlock;
                  const Panel panel = panels.at(p, i / per_step);
                  pack(m.at(tokens.first + p * width, i), m.row, m.col,
                       std::min(width, tokens.count - p * width), std::min(kBlock, depth - i),
                       (T *)panel.data, panel.ld, panel.ld);
              });
    }

    // Weight rows x tokens: the rows stream past the panels, which stay in L2. With two terms, the
    // blocks of the two sums alternate. With `gather` the panels' data is made by every task for
    // itself.
    template <class Epilogue>
    void product(const Walk<T> &walk, int64_t rows, const std::vector<WeightRows<T>> &terms,
                 const std::vector<TokenPanels<T>> &panels, Epilogue epilogue,
                 const TokenRows<T> &gather = {}) {
        const PanelsProduct<T> ready = prepare(walk, terms, panels, gather);
        const Grid grid({.rows = rows,
                         .quantum = ready.walk.tile_rows,
                         .panels = ceil_div(walk.cols, width),
                         .together = ready.together},
                        build.call.threads, build.share);
        s.job(grid.tasks(), [=, buffers = &build.scratch](int64_t task, int thread) {
            const Scratch<T> mine = buffers->at(thread);
            grid.run(task, [&](RowRange some, PanelRange of) { ready(some, of, mine, epilogue); });
        });
    }

    PanelsProduct<T> prepare(Walk<T> walk, const std::vector<WeightRows<T>> &terms,
                             const std::vector<TokenPanels<T>> &panels,
                             const TokenRows<T> &gather = {}) {
        const int64_t sum_length = walk.depth;
        const int n = (int)terms.size();
        std::array<WeightRows<T>, 2> a{terms[0], terms[n - 1]};
        const std::array<TokenPanels<T>, 2> b{panels[0], panels[n - 1]};
        walk.depth = steps(walk.depth);
        walk.step = kBlock / per_step;
        walk.pairs = pairs;
        walk.pair = a[0].pair();
        const int64_t unit = walk.pair ? 2 : 1;
        walk.panel = width;
        const bool copies = a[0].copies() || a[1].copies();
        const bool tiles = !a[0].by_rows() || !a[1].by_rows(); // of a copy
        walk.tile_rows = tile_rows(walk.cols) / unit;
        if (tiles) walk.tile_rows = std::min<int64_t>(walk.tile_rows, kTileStride);
        const Blocking<T> blocks(walk, n, tiles, build.call.l2);
        walk.strip = blocks.strip;
        walk.rows_stay = blocks.rows_stay;
        const int64_t copied = walk.rows_stay ? walk.strip : walk.tile_rows;
        const int64_t copy = WeightRows<T>::copy_size(copied, walk.tile_rows, tiles);
        a[0].second_offset = a[1].second_offset = copy;
        int64_t together = blocks.together;
        if (gather.m.data) together = std::min(together, gathered_panels(walk.depth));
        const int64_t sums = walk.strip * unit * together * width;
        build.scratch.need({.a = copies ? copy * unit : 0,
                            .b = gather.m.data ? together * width * walk.depth : 0,
                            .sums = sums,
                            .partial = !walk.carry.sums && walk.long_sum() ? sums : 0});
        return {k, walk, a, b, n, together, gather, sum_length};
    }

    // Panels that a task gathers at most: 4 MiB a thread.
    int64_t gathered_panels(int64_t depth) const {
        return std::max<int64_t>((4 << 20) / std::max<int64_t>(depth * width * kBytes, 1), 1);
    }

    // h from saved preactivations alone, where no product is needed: the epilogue without its dh.
    template <class Epilogue> void hidden(int64_t rows, int64_t tokens, const Epilogue &epilogue) {
        const Grid grid({.rows = rows, .panels = ceil_div(tokens, width)}, build.call.threads);
        s.job(grid.tasks(), [=, width = width](int64_t task, int) {
            grid.run(task, [&](RowRange some, PanelRange panels) {
                const int64_t p = panels.first;
                const ColumnRange cols{p * width, std::min(width, tokens - p * width)};
                each_part(some, kMaxRows,
                          [&](RowRange tile) { epilogue({tile, p, cols}, nullptr); });
            });
        });
    }

    // Weight gradients: out [rows, cols] (+)= the sum over the chunk's tokens of a row's value
    // times a column's; rows from `cut` on go to `second`. rows_from(t) gives A, panels_from(t) B
    // for the block from token t on. Blocks of tokens are added in a gradient of T itself, else in
    // scratch.
    struct Gradient : GradientSize {
        Output out, second;
        int64_t cut;
        bool add;
    };

    // Panels outermost: those of B are made once, the rows stream past each. A panel of a gradient
    // is written at a time.
    template <class RowsFrom, class PanelsFrom>
    void weight_gradient(const Gradient &g, const RowsFrom &rows_from,
                         const PanelsFrom &panels_from) const {
        Walk<T> walk = gradient_walk(g);
        walk.rows_outer = false;
        walk.strip = 1;
        const Grid grid(
            {.rows = g.rows, .quantum = walk.tile_rows, .panels = ceil_div(g.cols, width)},
            build.call.threads, build.share);
        // Rows whose running sums stay in half of L2.
        const int64_t tiles = build.call.l2 / 2 / (width * kBytes * walk.tile_rows);
        const int64_t most = one_block(g) ? g.rows : std::max<int64_t>(tiles, 1) * walk.tile_rows;
        build.scratch.need({.b = kBlock * width, .sums = one_block(g) ? 0 : most * width});
        gradient(g, walk, grid, most, rows_from, panels_from);
    }

    // Rows outermost, in strips: a strip's block stays in L2, all panels pass by it, made for each
    // anew. So a gradient is written by whole rows, in memory's order. copied: rows that are
    // copied, ld elements from token to token.
    static constexpr int64_t kStripTiles = 16; // a strip's block, 512 x 96 floats, a tenth of L2
    template <class RowsFrom, class PanelsFrom>
    void strips_gradient(const Gradient &g, const RowsFrom &rows_from,
                         const PanelsFrom &panels_from, int64_t copied = 0) const {
        Walk<T> walk = gradient_walk(g);
        walk.strip = kStripTiles * walk.tile_rows;
        walk.rows_stay = true;
        const int64_t panels = ceil_div(g.cols, width);
        const Grid grid(
            {.rows = g.rows, .quantum = walk.strip, .panels = panels, .together = panels},
            build.call.threads, build.share);
        build.scratch.need({.a = copied,
                            .b = kBlock * width,
                            .sums = one_block(g) ? 0 : walk.strip * panels * width});
        gradient(g, walk, grid, g.rows, rows_from, panels_from);
    }

    // The same of columns of m [tokens, rows], which are copied, and of b [tokens, cols].
    void columns_gradient(const Gradient &g, const TokenRows<T> &m, const Input &b) const {
        const int64_t ld = kStripTiles * tile_rows(g.cols) + 16; // spread over the sets of L1
        strips_gradient(
            g, [=](int64_t t) { return TokenColumns<T>{m.from(t), ld}; },
            [=, cols = g.cols, width = width](int64_t t) {
                return MatrixPanels<T>{b.from(t), cols, width, Reading::kInPlace};
            },
            kBlock * ld);
    }

    // A bias gradient: out[j] (+)= the chunk's sum over tokens of element (t, j), in blocks. m is
    // token panels of panel_rows units, or (0) rows.
    void bias_gradient(const Input &m, int64_t panel_rows, int64_t rows, int64_t tokens,
                       const Output &out, bool add) {
        add_bias_gradient(rows, tokens, out, add,
                          [=, k = k, width = width](TokenRange tokens, UnitRange units, T *sums) {
                              const Access<T> &of = k->of[m.type];
                              const int64_t unit = units.first, n = units.count;
                              if (panel_rows == 0)
                                  return of.sum_along(m.at(tokens.first, unit), m.col, m.row, n,
                                                      tokens.count, sums);
                              each_part(tokens, width, [&](TokenRange some) {
                                  const int64_t at = some.first * panel_rows + unit * width;
                                  of.sum_along(m.data + at * m.bytes(), width, 1, n, some.count,
                                               sums);
                              });
                          });
    }
    // The same of rows that have to be gathered, [tokens, cols], each times its factor (or
    // nullptr).
    void gathered_bias_gradient(const TokenRows<T> &m, const T *factors, int64_t cols,
                                int64_t tokens, const Output &out, bool add) {
        add_bias_gradient(cols, tokens, out, add,
                          [=, k = k](TokenRange tokens, UnitRange units, T *sums) {
                              const int64_t n = units.count;
                              for (int64_t i = tokens.first; i < tokens.end(); ++i) {
                                  T row[kBiasUnits];
                                  m.copy(*k, {i, 1}, {units.first, n}, row, n);
                                  if (factors) k->scale(row, n, factors + i, 1, n, row, n);
                                  for (int64_t j = 0; j < n; ++j) sums[j] += row[j];
                              }
                          });
    }

  private:
    // Whether a product is of one block, which goes straight into the gradient: one of 16 bits is
    // rounded once, from the sum of all blocks.
    bool one_block(const Gradient &g) const {
        const bool narrow =
            !g.out.template holds<T>() || (g.second.data && !g.second.template holds<T>());
        return !narrow || g.tokens <= kBlock;
    }
    Walk<T> gradient_walk(const Gradient &g) const {
        Walk<T> walk{};
        walk.panel = width;
        walk.cols = g.cols;
        walk.step = kBlock / per_step;
        walk.pairs = pairs;
        walk.tile_rows = tile_rows(g.cols);
        return walk;
    }
    // most: rows at a time.
    template <class RowsFrom, class PanelsFrom>
    void gradient(const Gradient &g, const Walk<T> &walk, const Grid &grid, int64_t most,
                  const RowsFrom &rows_from, const PanelsFrom &panels_from) const {
        const int64_t depth = one_block(g) ? kBlock : g.tokens;
        const bool stream = streams(g.out, g, width, g.add, build.call.l2);
        s.job(grid.tasks(), [=, k = k, width = width, per_step = per_step,
                             buffers = &build.scratch](int64_t task, int thread) {
            const Scratch<T> mine = buffers->at(thread);
            auto part = [&](RowRange some, PanelRange of) {
                for (int64_t t = 0; t < g.tokens; t += depth) {
                    Walk<T> block = walk;
                    block.depth = ceil_div(std::min(depth, g.tokens - t), per_step);
                    const auto rows = rows_from(t);
                    const auto panels = panels_from(t);
                    const GradientTiles<T> write{k,     width,          g.out,           g.second,
                                                 g.cut, g.add || t > 0, depth == kBlock, stream};
                    multiply(*k, block, &rows, &panels, 1, mine, some, of, write);
                }
            };
            grid.run(task, [&](RowRange all, PanelRange of) {
                each_part(all, most, [&](RowRange some) { part(some, of); });
            });
            if (stream) k->drain();
        });
    }

    static constexpr int64_t kBiasUnits = 64; // per task

    // sum(tokens, units, sums): adds these units' elements up over these tokens.
    template <class Sum>
    void add_bias_gradient(int64_t rows, int64_t tokens, const Output &out, bool add,
                           const Sum &sum) {
        constexpr int64_t kUnits = kBiasUnits;
        s.job(ceil_div(rows, kUnits), [=, k = k](int64_t task, int) {
            const int64_t j0 = task * kUnits, n = std::min(kUnits, rows - j0);
            const Access<T> &to = k->of[out.type];
            T total[kUnits] = {}, partial[kUnits];
            // Into 16 bits the old number goes last, so that it and the sum are rounded once.
            const bool first = add && out.template holds<T>(), last = add && !first;
            if (first) to.pack(out.at(j0), out.row, 0, n, 1, total, n, n);
            auto add_to = [n](T *to, const T *sums, bool adds) {
                for (int64_t j = 0; j < n; ++j) to[j] = adds ? to[j] + sums[j] : sums[j];
            };
            for (int64_t t = 0; t < tokens; t += kBlock) {
                T sums[kUnits] = {};
                sum(TokenRange{t, std::min(kBlock, tokens - t)}, UnitRange{j0, n}, sums);
                if (t < kPartialSum) {
                    add_to(total, sums, first || t > 0);
                    continue;
                }
                add_to(partial, sums, t % kPartialSum > 0);
                if ((t + kBlock) % kPartialSum == 0 || t + kBlock >= tokens)
                    add_to(total, partial, true);
            }
            to.store(total, n, 1, n, nullptr, 0, 0, out.at(j0), 0, out.row, last);
        });
    }
};

} // namespace ffncore
