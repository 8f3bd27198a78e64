// Products with tokens as panels [k][tokens], as jobs of a schedule. The passes of a layer and of a
// mixture consist of them.
//
//   product           weight rows * token panels -> tile [rows][tokens]
//   weight_gradient   token panels read across * panels of [tokens][columns] -> [rows][columns]
//
// Weights stream through the cores once for each chunk of tokens (plan.h), in tiles of 6 rows x 64
// tokens (AVX-512), while the panels of the chunk stay in L2. A product with a transposed weight
// matrix copies it, a block at a time, into tiles. Sums over tokens add block after block to the
// gradient itself.
//
// With an instruction that takes pairs of bfloat16, all operands are pairs along the sum: a step of
// a panel is then two terms, of d, of hidden units, or of tokens.
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

// A product that is ready to run: any thread can compute a part of it.
template <class T> struct PanelsProduct {
    const Kernels<T> *k;
    Walk<T> walk;
    std::array<WeightRows<T>, 2> rows;
    std::array<TokenPanels<T>, 2> panels;
    int terms;
    int64_t together;    // the most panels at a time
    TokenRows<T> gather; // rows that become the panels; m.data == nullptr: the panels lie ready

    // Multiplies weight rows by panels, at most `together` of them.
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
    int64_t sum_length; // counts numbers, while walk.depth may count pairs
};

// Adds the jobs of a group to the current phase of its schedule.
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

    // Rows of `depth` numbers of a weight matrix, or with `second` of two.
    WeightRows<T> rows(const Input &first, const Input &second, int64_t depth) const {
        if (!pairs) return {first, second};
        if (depth % 2 == 0 && has_pairs(first) && has_pairs(second))
            return {pair_view<T>(first), pair_view<T>(second)};
        return {first, second, depth};
    }
    // The rows of gate and up, as the forward pass reads them; and the columns of a matrix as rows,
    // as the backward pass reads it.
    WeightRows<T> up_rows(const Weights<T> &w) const {
        return rows(w.gated ? w.gate : w.up, w.gated ? w.up : Input{}, w.d);
    }
    WeightRows<T> columns(const Input &m, int64_t depth) const {
        return rows(m.transposed(), {}, depth);
    }

    // Token panels [panel][steps][width] of one chunk. The last one is as narrow as its tokens
    // allow, in whole vectors.
    TokenPanels<T> fitted(const T *data, int64_t steps, int64_t tokens) const {
        const int64_t last = std::max<int64_t>(ceil_div(tokens, width), 1) - 1;
        return {data, steps, width, last, round_up(tokens - last * width, k->width)};
    }
    // Panels that all have the full width, because the backward pass also reads them across.
    TokenPanels<T> full(const T *data, int64_t steps) const {
        return {data, steps, width, 0, width};
    }

    int64_t tile_rows(int64_t cols) const {
        const int64_t vectors = ceil_div(std::clamp<int64_t>(cols, 1, width), k->width);
        return k->max_rows[vectors];
    }

    // Packs some tokens of m [tokens, depth] into panels. A task is one block of depth of a panel.
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

    // Weight rows * token panels. With two terms, the blocks of the two sums alternate. With
    // `gather`, every task makes its panels itself, from the rows of tokens.
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
        const bool tiles = !a[0].by_rows() || !a[1].by_rows(); // copies are tiles, not rows
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

    // The most panels that a task gathers: 4 MiB for each thread.
    int64_t gathered_panels(int64_t depth) const {
        return std::max<int64_t>((4 << 20) / std::max<int64_t>(depth * width * kBytes, 1), 1);
    }

    // Computes h alone, from the preactivations, where dh is not needed: calls the epilogue of the
    // backward pass without a product.
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

    // Weight gradients. out [rows, cols] (+)= A B, the sum over the tokens of the chunk; the rows
    // from `cut` on belong to `second` instead of `out`. rows_from(t) and panels_from(t) give A and
    // B for the tokens from t on. A gradient of T takes the blocks of tokens one by one. For a
    // 16-bit gradient they are added in scratch memory first.
    struct Gradient : GradientSize {
        Output out, second;
        int64_t cut;
        bool add;
    };

    // Panels are the outer loop: each panel of B is made once, and all rows stream past it. The
    // gradient is written a panel at a time.
    template <class RowsFrom, class PanelsFrom>
    void weight_gradient(const Gradient &g, const RowsFrom &rows_from,
                         const PanelsFrom &panels_from) const {
        Walk<T> walk = gradient_walk(g);
        walk.rows_outer = false;
        walk.strip = 1;
        const Grid grid(
            {.rows = g.rows, .quantum = walk.tile_rows, .panels = ceil_div(g.cols, width)},
            build.call.threads, build.share);
        // So many rows at a time that their running sums stay in half of L2.
        const int64_t tiles = build.call.l2 / 2 / (width * kBytes * walk.tile_rows);
        const int64_t most = one_block(g) ? g.rows : std::max<int64_t>(tiles, 1) * walk.tile_rows;
        build.scratch.need({.b = kBlock * width, .sums = one_block(g) ? 0 : most * width});
        gradient(g, walk, grid, most, rows_from, panels_from);
    }

    // Strips of rows are the outer loop: a block of a strip stays in L2, and all panels, which are
    // made anew for each strip, stream past it. So the gradient is written by whole rows, in the
    // order of memory. copied: elements of scratch memory that A needs for its copies.
    static constexpr int64_t kStripTiles = 16; // a block of a strip, 512 x 96 floats, is 192 KiB
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

    // The same where A are the columns of m [tokens, rows], which are copied, and B is b [tokens,
    // cols].
    void columns_gradient(const Gradient &g, const TokenRows<T> &m, const Input &b) const {
        const int64_t ld = kStripTiles * tile_rows(g.cols) + 16; // spreads over the sets of L1
        strips_gradient(
            g, [=](int64_t t) { return TokenColumns<T>{m.from(t), ld}; },
            [=, cols = g.cols, width = width](int64_t t) {
                return MatrixPanels<T>{b.from(t), cols, width, Reading::kInPlace};
            },
            kBlock * ld);
    }

    // A bias gradient: out[j] (+)= the sum of element (t, j) over the tokens t of the chunk, block
    // by block. m is token panels of panel_rows units; or rows of tokens, if panel_rows is 0.
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
    // The same for rows that have to be gathered, [tokens, cols]. Each is multiplied by its factor,
    // unless factors is nullptr.
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
    // Whether each product sums over one block, which goes straight into the gradient. This is so
    // for a gradient of T. A 16-bit gradient is rounded once, so its product sums over all tokens.
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
    // most: the most rows at a time.
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

    // sum(tokens, units, sums) adds the elements of these units over these tokens to sums.
    template <class Sum>
    void add_bias_gradient(int64_t rows, int64_t tokens, const Output &out, bool add,
                           const Sum &sum) {
        constexpr int64_t kUnits = kBiasUnits;
        s.job(ceil_div(rows, kUnits), [=, k = k](int64_t task, int) {
            const int64_t j0 = task * kUnits, n = std::min(kUnits, rows - j0);
            const Access<T> &to = k->of[out.type];
            T total[kUnits] = {}, partial[kUnits];
            // In a 16-bit gradient the old number is added last, so that the result is rounded
            // once.
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
