// Products with tokens as panels [k][tokens], as jobs of a schedule: what ffn_panels.cpp and
// ffn_backward_panels.cpp are made of.
//
//   product           weight rows * token panels -> tile [rows][tokens]
//   weight_gradient   token panels read across * panels of [tokens][columns] -> [rows][columns]
//
// Weights stream once per chunk of tokens (plan.h), a tile of 6 rows x 64 tokens at a time
// (AVX-512); the chunk's panels stay in L2. Products with a transposed weight copy it block by
// block into tiles. Sums over tokens run in blocks of 512 into the gradient itself.
#pragma once
#include "ffn.h"
#include "operands.h"

#include <array>

namespace ffncore {

// Token panels [panel][depth][width] of one chunk; the last is as wide as its tokens need.
template <class T>
TokenPanels<T> token_panels(const T *data, int64_t depth, int64_t tokens, int64_t width,
                            int64_t vector) {
    const int64_t last = std::max<int64_t>(ceil_div(tokens, width), 1) - 1;
    return {data, depth, width, last, round_up(tokens - last * width, vector)};
}

// The jobs that a group's phases are made of.
template <class T> struct Panels {
    const Build<T> &build;
    const Kernels<T> *k;
    Schedule &s;
    const int64_t width; // tokens of a token panel, columns of a weight gradient's panel

    explicit Panels(const Build<T> &build)
        : build(build), k(&build.call.kernels), s(build.schedule), width(k->vectors * k->width) {}

    // Panels that are all of full width: the backward pass reads them across, too.
    TokenPanels<T> full(const T *data, int64_t depth) const {
        return {data, depth, width, 0, width};
    }

    int64_t tile_rows(int64_t cols) const {
        const int64_t vectors = ceil_div(std::clamp<int64_t>(cols, 1, width), k->width);
        return k->max_rows[vectors];
    }

    // Tokens [t0, t0 + tokens) of m [., depth] into panels. Tasks: a panel, a block of depth.
    void pack(const Matrix<const T> &m, int64_t t0, int64_t tokens, const TokenPanels<T> &panels) {
        const int64_t depth = panels.depth, blocks = std::max<int64_t>(ceil_div(depth, kBlock), 1);
        s.job(ceil_div(tokens, width) * blocks, [=, k = k, width = width](int64_t task, int) {
            const int64_t p = task / blocks, i = task % blocks * kBlock;
            const Panel<T> panel = panels.get(*k, p, i, 0, nullptr);
            k->pack(m.data + (t0 + p * width) * m.row + i * m.col, m.row, m.col,
                    std::min(width, tokens - p * width), std::min(kBlock, depth - i),
                    const_cast<T *>(panel.data), panel.ld, panel.ld);
        });
    }

    // Weight rows x tokens: the rows stream past the panels, which stay in L2. With two terms, the
    // blocks of the two sums alternate.
    template <class Epilogue>
    void product(Walk<T> walk, int64_t rows, const std::vector<WeightRows<T>> &terms,
                 const std::vector<TokenPanels<T>> &panels, Epilogue epilogue) {
        const int n = (int)terms.size();
        std::array<WeightRows<T>, 2> a{terms[0], terms[n - 1]};
        const std::array<TokenPanels<T>, 2> b{panels[0], panels[n - 1]};
        walk.pair = a[0].pair();
        const int64_t unit = walk.pair ? 2 : 1, count = ceil_div(walk.cols, width);
        walk.panel = width;
        const bool copies = a[0].copies() || a[1].copies();
        walk.tile_rows = tile_rows(walk.cols) / unit;
        if (copies) walk.tile_rows = std::min<int64_t>(walk.tile_rows, kTileStride);
        const Blocking<T> blocks(walk.depth * n, width, count, walk.tile_rows, unit, copies,
                                 build.call.l2);
        walk.strip = blocks.strip;
        walk.rows_stay = blocks.rows_stay;
        const int64_t copy = WeightRows<T>::copy_size(walk.strip, walk.tile_rows);
        a[0].second_offset = a[1].second_offset = copy;
        build.scratch.need(copies ? copy * unit : 0, 0,
                           walk.strip * unit * blocks.together * width);
        const Grid grid(rows, walk.tile_rows, count, blocks.together, build.call.threads);
        s.job(grid.tasks(), [=, k = k, buffers = &build.scratch](int64_t task, int thread) {
            const Scratch<T> mine = buffers->at(thread);
            grid.run(task, [&](int64_t r0, int64_t r1, int64_t p0, int64_t p1) {
                multiply(*k, walk, a.data(), b.data(), n, mine, r0, r1, p0, p1, epilogue);
            });
        });
    }

    // h from saved preactivations alone, where no product is needed: the epilogue without its dh.
    template <class Epilogue> void hidden(int64_t rows, int64_t tokens, const Epilogue &epilogue) {
        const Grid grid(rows, 1, ceil_div(tokens, width), 1, build.call.threads);
        s.job(grid.tasks(), [=, width = width](int64_t task, int) {
            grid.run(task, [&](int64_t r0, int64_t r1, int64_t p, int64_t) {
                const int64_t col = p * width;
                epilogue(r0, r1 - r0, p, col, std::min(width, tokens - col), nullptr);
            });
        });
    }

    // A weight gradient: out [rows, cols] (+)= the sum over the chunk's tokens of a row's value
    // times a column's; rows from a.cut on go to `second`. `make` gives B for the block from token
    // t on.
    template <class MakePanels>
    void weight_gradient(PanelRows<T> a, int64_t rows, int64_t cols, int64_t tokens,
                         const MakePanels &make, Matrix<T> out, Matrix<T> second, bool add) {
        Walk<T> walk{};
        walk.panel = width;
        walk.cols = cols;
        walk.rows_outer = false;
        walk.strip = 1;
        walk.tile_rows = tile_rows(cols);
        const int64_t panels = ceil_div(cols, width);
        const Grid grid(rows, walk.tile_rows, panels, 1, build.call.threads);
        build.scratch.need(0, kBlock * width, 0);
        s.job(grid.tasks(),
              [=, k = k, width = width, buffers = &build.scratch](int64_t task, int thread) {
                  const Scratch<T> mine = buffers->at(thread);
                  grid.run(task, [&](int64_t r0, int64_t r1, int64_t p0, int64_t p1) {
                      for (int64_t t = 0; t < tokens; t += kBlock) {
                          Walk<T> block = walk;
                          block.depth = std::min(kBlock, tokens - t);
                          PanelRows<T> from = a;
                          from.data += t * a.rows;
                          const auto panel = make(t);
                          const GradientTiles<T> write{k, width, out, second, a.cut, add || t > 0};
                          multiply(*k, block, &from, &panel, 1, mine, r0, r1, p0, p1, write);
                      }
                  });
              });
    }

    // A bias gradient: out[j] (+)= the chunk's sum over tokens of element (t, j), in blocks. m is
    // token panels of panel_rows units, or (0) the caller's rows.
    void bias_gradient(Matrix<const T> m, int64_t panel_rows, int64_t rows, int64_t tokens,
                       Matrix<T> out, bool add) {
        constexpr int64_t kUnits = 64; // per task
        s.job(ceil_div(rows, kUnits), [=, k = k, width = width](int64_t task, int) {
            const int64_t j0 = task * kUnits, n = std::min(kUnits, rows - j0);
            for (int64_t t = 0; t < tokens; t += kBlock) {
                T sums[kUnits] = {};
                const int64_t depth = std::min(kBlock, tokens - t);
                if (panel_rows == 0)
                    k->sum_along(m.data + j0 * m.col + t * m.row, m.col, m.row, n, depth, sums);
                for (int64_t i = 0; panel_rows && i < depth; i += width)
                    k->sum_along(m.data + (t + i) * panel_rows + j0 * width, width, 1, n,
                                 std::min(width, depth - i), sums);
                for (int64_t j = 0; j < n; ++j) {
                    T *to = out.data + (j0 + j) * out.row;
                    *to = add || t > 0 ? *to + sums[j] : sums[j];
                }
            }
        });
    }
};

// Weight rows as the forward pass reads them, and their columns as the backward pass does.
template <class T> WeightRows<T> up_rows(const Weights<T> &w) {
    return {w.gated ? w.gate : w.up, w.gated ? w.up : Matrix<const T>{}};
}
template <class T> WeightRows<T> columns(const Matrix<const T> &m) { return {transposed(m), {}}; }

// Preactivations -> h (and saved). Called by the up phase for each finished tile.
template <class T> struct HiddenEpilogue {
    const Kernels<T> *k;
    ActivationParams act;
    Weights<T> w; // of the chunk
    int64_t width;
    TokenPanels<T> h;        // data == nullptr: not needed
    Preactivations<T> saved; // up == nullptr: not saved
    void operator()(int64_t r, int64_t n, int64_t p, int64_t col, int64_t cols, T *c) const {
        ActForwardArgs<T> a{};
        a.rows = n;
        a.cols = round_up(cols, k->width); // no stale numbers in lanes that the next product reads
        a.gate = w.gated ? c : nullptr;
        a.up = w.gated ? c + n * width : c;
        a.ld = width;
        a.b_gate = w.b_gate ? w.b_gate + r : nullptr;
        a.b_up = w.b_up ? w.b_up + r : nullptr;
        a.bias_row = 1;
        if (h.data) {
            const Panel<T> to = h.get(*k, p, r, 0, nullptr);
            a.h = const_cast<T *>(to.data);
            a.ldh = to.ld;
        }
        if (!saved.up) return k->act_forward(act, a);
        // A saved panel is at least as wide as a token panel, and begins where one begins.
        const int64_t at = saved.at(col, r);
        a.save_gate = w.gated ? saved.gate + at : nullptr;
        a.save_up = saved.up + at;
        a.ld_save = saved.width(col);
        k->act_forward(act, a);
    }
};

// y or dx: the tile [outputs][tokens] goes out turned.
template <class T> struct OutputEpilogue {
    const Kernels<T> *k;
    Matrix<T> out; // of the chunk
    const T *bias;
    int64_t width;
    bool add;
    void operator()(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) const {
        k->store(c, width, n, cols, bias ? bias + r : nullptr, 1, 0,
                 out.data + col * out.row + r * out.col, out.col, out.row, add);
    }
};

template <class T> Walk<T> walk_of(int64_t depth, int64_t tokens) {
    Walk<T> walk{};
    walk.depth = depth;
    walk.cols = tokens;
    return walk;
}

} // namespace ffncore
