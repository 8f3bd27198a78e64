// Products with tokens as rows, as jobs of a schedule:
//
//   product           C [tokens, cols] = the sum over terms of A [tokens, depth] B [depth, cols]
//   weight_gradient   out [rows, cols] (+)= A^T B, summed over tokens
//   copy
//
// A tile is two vectors wide: on AVX-512 14 x 2 needs fewest loads an fma. The tokens' rows stay in
// L2, with all their blocks where they fit (then a panel of B runs through its whole sum at once),
// else block by block with a strip of panels.
#pragma once
#include "ffn.h"
#include "operands.h"

#include <array>
#include <cstring>
#include <type_traits>

namespace ffncore {

// A panel strip's running sums: 4 panels x 512 rows x 128 bytes = 258 KB of L2.
constexpr int64_t kPanelStrip = 4;
// Rows whose distance is a power of two share a few sets of L1: beyond 8 they are copied, to rows
// whose distance is an odd number of cache lines, which spread over all sets.
constexpr int64_t kRowsInPlace = 8;
template <class T> int64_t row_stride(int64_t cols) {
    return (round_up(cols * (int64_t)sizeof(T), 128) + 64) / (int64_t)sizeof(T);
}
// Whether a block of rows at such a distance stays in L2 for a second tile: distances of 4 KiB, and
// multiples, leave it a 32nd of the sets, or less.
template <class T> bool rows_spread(int64_t stride) {
    return stride * (int64_t)sizeof(T) % 4096 != 0;
}

// The step of a sum over packed weights, which hold it in one piece. In half of 2 MB of L2, 1536
// leaves room for 170 rows of float, so that a longer sum goes by 1024, with 256 rows.
inline int64_t sum_step(int64_t depth) {
    constexpr int64_t kWhole = 3 * kBlock, kPart = 2 * kBlock;
    return depth <= kWhole ? round_up(std::max<int64_t>(depth, 1), kBlock) : kPart;
}

struct RowBlocking {
    int64_t rows;  // tokens a task
    int64_t strip; // panels a strip

    // copies: panels are copied, a strip at a time, for each task.
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

// Running sums that outlive a chunk of the summed dimension: [panel][tokens][panel width].
template <class T> struct Carry {
    T *sums = nullptr; // or nullptr: one chunk is all
    bool first = true, last = true;
};

template <class T> struct Rows {
    const Build<T> &build;
    const Kernels<T> *k;
    Schedule &s;
    const int64_t width, tile;

    explicit Rows(const Build<T> &build)
        : build(build), k(&build.call.kernels), s(build.schedule), width(2 * k->width),
          tile(k->max_rows[2]) {}

    // from [tokens, cols] -> to [tokens][ld]
    void copy(Matrix<const T> from, int64_t tokens, int64_t cols, T *to, int64_t ld) const {
        s.job(ceil_div(tokens, kRowsInPlace), [=](int64_t task, int) {
            const int64_t end = std::min(tokens, (task + 1) * kRowsInPlace);
            for (int64_t t = task * kRowsInPlace; t < end; ++t) {
                const T *row = from.data + t * from.row;
                T *out = to + t * ld;
                if (from.col == 1) std::memcpy(out, row, cols * sizeof(T));
                for (int64_t i = 0; from.col != 1 && i < cols; ++i) out[i] = row[i * from.col];
            }
        });
    }

    // epilogue(row, rows, panel, column, columns, tile) gets each finished tile.
    template <class Panels, class Epilogue>
    void product(int64_t tokens, int64_t depth, int64_t cols,
                 const std::vector<StridedRows<T>> &rows, const std::vector<Panels> &panels,
                 const Carry<T> &carry, const Epilogue &epilogue) const {
        const int terms = (int)rows.size();
        const std::array<StridedRows<T>, 2> a{rows[0], rows[terms - 1]};
        const std::array<Panels, 2> b{panels[0], panels[terms - 1]};
        bool copies = false;
        if constexpr (requires { b[0].copies(); }) copies = b[0].copies();
        Walk<T> walk{};
        walk.depth = depth;
        if (std::is_same_v<Panels, PackedPanels<T>>) walk.step = sum_step(depth);
        walk.panel = width;
        walk.cols = cols;
        walk.tile_rows = tile;
        const RowBlocking blocks(walk, tokens, terms, copies, build.call.l2);
        walk.rows_outer = false;
        walk.strip = blocks.strip;
        walk.full_panels = true;
        walk.carry = carry.sums;
        walk.carry_rows = tokens;
        walk.carried = !carry.first;
        walk.finish = carry.last;
        const bool sums = !carry.sums && (depth > walk.step || terms > 1);
        build.scratch.need(0, (copies ? blocks.strip : 1) * kBlock * width,
                           sums ? blocks.rows * blocks.strip * width : 0);
        // The grid's "rows" are panels here: they are what is cut finely.
        const Grid grid(ceil_div(cols, width), blocks.strip, ceil_div(tokens, blocks.rows), 1,
                        build.call.threads);
        s.job(grid.tasks(), [=, k = k, buffers = &build.scratch](int64_t task, int thread) {
            const Scratch<T> mine = buffers->at(thread);
            grid.run(task, [&](int64_t p0, int64_t p1, int64_t g, int64_t) {
                multiply(*k, walk, a.data(), b.data(), terms, mine, g * blocks.rows,
                         std::min((g + 1) * blocks.rows, tokens), p0, p1, epilogue);
            });
        });
    }

    // out [rows, cols] (+)= the sum over tokens t of a[t][row] * b[t][col]. Rows stream and are
    // written whole, while b stays in L1 or L2.
    void weight_gradient(Matrix<const T> a, int64_t rows, Matrix<const T> b, int64_t cols,
                         int64_t tokens, Matrix<T> out, bool add) const {
        Walk<T> walk{};
        walk.panel = width;
        walk.cols = cols;
        walk.tile_rows = tile;
        walk.full_panels = true;
        const Grid grid(rows, tile, 1, 1, build.call.threads);
        build.scratch.need(0, kBlock * width, 0);
        s.job(grid.tasks(),
              [=, k = k, width = width, buffers = &build.scratch](int64_t task, int thread) {
                  const Scratch<T> mine = buffers->at(thread);
                  auto block = [&](int64_t r0, int64_t r1, int64_t t) {
                      Walk<T> one = walk;
                      one.depth = std::min(kBlock, tokens - t);
                      const StridedRows<T> units{from_row(a, t).data, a.col, a.row};
                      const MatrixPanels<T> panels{from_row(b, t), cols, width, true};
                      const GradientTiles<T> write{k, width, out, {}, INT64_MAX, add || t > 0};
                      multiply(*k, one, &units, &panels, 1, mine, r0, r1, 0, ceil_div(cols, width),
                               write);
                  };
                  grid.run(task, [&](int64_t r0, int64_t r1, int64_t, int64_t) {
                      for (int64_t t = 0; t < tokens; t += kBlock) block(r0, r1, t);
                  });
              });
    }
};

} // namespace ffncore
