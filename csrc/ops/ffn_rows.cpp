// Forward with tokens as rows: x, h and y keep their natural layout, the weights are panels.
//
//   up    [tokens x d] * panels [d][P]  -> tile [tokens][gate | up] -> h [tokens, f]
//   down  [tokens x f] * panels [f][P]  -> tile [tokens][outputs]   -> y [tokens, d]
//
// Packed weights stream once through the cores, whatever their number of tokens; raw ones are
// turned in registers on the way (kernels.h), which pays for few tokens only. A tile is two vectors
// wide. The tokens' rows stay in L2: with all their blocks where they fit (then a panel runs
// through its whole sum at once, in memory order), else block by block with a strip of panels.
#include "ffn.h"
#include "operands.h"

#include <cstring>

namespace ffncore {

namespace {

// A panel strip's running sums: 4 panels x 504 rows x 128 bytes = 258 KB of L2.
constexpr int64_t kPanelStrip = 4;
// Rows whose distance is a power of two share a few sets of L1: beyond 8 they are copied, with a
// cache line in between.
constexpr int64_t kRowsInPlace = 8;

struct RowBlocking {
    int64_t rows;  // tokens a task
    int64_t strip; // panels a strip
    int64_t tile;

    RowBlocking(int64_t tokens, int64_t depth, int64_t tile_rows, int64_t element, int64_t l2)
        : tile(tile_rows) {
        const int64_t whole = l2 / 2 / std::max<int64_t>(depth * element, 1);
        if (depth <= kBlock || whole >= std::min<int64_t>(tokens, 256)) {
            rows = std::max<int64_t>(whole / tile, 1) * tile;
            strip = 1;
        } else {
            rows = std::max<int64_t>(l2 / 2 / (kBlock * element) / tile, 1) * tile;
            strip = kPanelStrip;
        }
        rows = std::min(rows, std::max<int64_t>(tokens, 1));
        rows = ceil_div(tokens, std::max<int64_t>(ceil_div(tokens, rows), 1));
        rows = std::max<int64_t>(rows, 1);
    }
    // Rows of tiles whose sums run in scratch: one block needs none, and a carry holds its own.
    int64_t sums(int64_t depth, bool carry) const {
        return depth <= kBlock || carry ? 0 : rows * strip;
    }
};

// Tasks: the tokens in runs of `rows`, each with shares of the panels.
struct RowGrid {
    Grid grid; // "rows" of the grid are panels here: they are what is cut finely
    RowGrid(int64_t tokens, int64_t rows, int64_t panels, int64_t strip, int threads)
        : grid(panels, strip, ceil_div(tokens, rows), 1, threads), tokens(tokens), rows(rows) {}
    int64_t tokens, rows;
    template <class Run> void run(int64_t task, const Run &body) const {
        grid.run(task, [&](int64_t p0, int64_t p1, int64_t g, int64_t) {
            body(g * rows, std::min((g + 1) * rows, tokens), p0, p1);
        });
    }
};

} // namespace

template <class T> void add_forward_rows(const Build<T> &build, const ForwardGroup<T> &g) {
    Schedule &s = build.schedule;
    Arena &arena = build.arena;
    const Call<T> &call = build.call;
    const Kernels<T> &k = call.kernels;
    const Weights<T> &w = g.weights;
    const Plan plan = make_plan(forward_request(call, g));
    const int64_t width = 2 * k.width, tile = k.max_rows[2];
    const int64_t neurons = w.gated ? width / 2 : width; // of a tile
    const int64_t chunk = std::min(plan.token_chunk, std::max<int64_t>(g.tokens, 1));
    const bool copy = g.x.col != 1 || chunk > kRowsInPlace;
    const int64_t ldx = w.d + 64 / (int64_t)sizeof(T);
    const int64_t ldh = plan.ff_chunk + 64 / (int64_t)sizeof(T);
    T *copied = copy ? arena.take<T>(chunk * ldx) : nullptr;
    T *h = arena.take<T>(chunk * ldh);
    const int64_t out_panels = ceil_div(w.d, width);
    T *carry = plan.carry ? arena.take<T>(out_panels * width * chunk) : nullptr;

    const RowBlocking up_blocks(chunk, w.d, tile, sizeof(T), call.l2);
    const RowBlocking down_blocks(chunk, plan.ff_chunk, tile, sizeof(T), call.l2);
    build.scratch.need(
        0, w.packed() ? 0 : kBlock * width,
        std::max(up_blocks.sums(w.d, false), down_blocks.sums(plan.ff_chunk, plan.carry)) * width);
    const ScratchSet<T> *scratch = &build.scratch;

    for (int64_t t0 = 0; t0 < g.tokens; t0 += chunk) {
        const int64_t tokens = std::min(chunk, g.tokens - t0);
        const Matrix<const T> from{g.x.data + t0 * g.x.row, g.x.row, g.x.col};
        if (copy) {
            s.phase();
            s.job(ceil_div(tokens, kRowsInPlace), [=](int64_t task, int) {
                const int64_t end = std::min(tokens, (task + 1) * kRowsInPlace);
                for (int64_t t = task * kRowsInPlace; t < end; ++t) {
                    const T *row = from.data + t * from.row;
                    T *to = copied + t * ldx;
                    if (from.col == 1) std::memcpy(to, row, w.d * sizeof(T));
                    for (int64_t i = 0; from.col != 1 && i < w.d; ++i) to[i] = row[i * from.col];
                }
            });
        }
        const StridedRows<T> x =
            copy ? StridedRows<T>{copied, ldx} : StridedRows<T>{from.data, from.row};

        for (int64_t f0 = 0; f0 < w.f; f0 += plan.ff_chunk) {
            const Weights<T> part = slice_units(w, f0, std::min(plan.ff_chunk, w.f - f0));
            const bool last = f0 + part.f == w.f;

            Walk<T> up{};
            up.depth = w.d;
            up.panel = width;
            up.cols = ceil_div(part.f, neurons) * width;
            up.tile_rows = tile;
            up.rows_outer = false;
            up.strip = up_blocks.strip;
            up.full_panels = true;
            const RowGrid up_grid(tokens, up_blocks.rows, ceil_div(part.f, neurons),
                                  up_blocks.strip, call.threads);
            const Kernels<T> *kernels = &k;
            const ActivationParams act = call.activation;
            auto hidden = [=](int64_t r, int64_t n, int64_t p, int64_t, int64_t, T *c) {
                ActForwardArgs<T> a{};
                if (part.packed() && w.gated && kernels->split_groups)
                    kernels->split_groups(c, width, n);
                const int64_t first = p * neurons;
                a.rows = n;
                a.cols = std::min(neurons, part.f - first);
                a.gate = w.gated ? c : nullptr;
                a.up = w.gated ? c + neurons : c;
                a.ld = width;
                a.b_gate = part.b_gate ? part.b_gate + first : nullptr;
                a.b_up = part.b_up ? part.b_up + first : nullptr;
                a.bias_col = 1;
                a.h = h + r * ldh + first;
                a.ldh = ldh;
                kernels->act_forward(act, a);
            };
            auto product = [=](const Walk<T> &walk, const RowGrid &grid, auto a, auto panels,
                               auto epilogue) {
                return [=](int64_t task, int thread) {
                    const Scratch<T> mine = scratch->at(thread);
                    grid.run(task, [&](int64_t r0, int64_t r1, int64_t p0, int64_t p1) {
                        multiply(*kernels, walk, &a, &panels, 1, mine, r0, r1, p0, p1, epilogue);
                    });
                };
            };
            s.phase();
            if (w.packed())
                s.job(up_grid.grid.tasks(),
                      product(up, up_grid, x, PackedPanels<T>{part.packed_up, w.d, width}, hidden));
            else
                s.job(up_grid.grid.tasks(),
                      product(up, up_grid, x, RawPanels<T>{part, false, width}, hidden));

            Walk<T> down{};
            down.depth = part.f;
            down.panel = width;
            down.cols = w.d;
            down.tile_rows = tile;
            down.rows_outer = false;
            down.strip = down_blocks.strip;
            down.full_panels = true;
            down.carry = carry;
            down.carry_rows = tokens;
            down.carried = f0 > 0;
            down.finish = last;
            const RowGrid down_grid(tokens, down_blocks.rows, out_panels, down_blocks.strip,
                                    call.threads);
            const Matrix<T> y{g.y.data + t0 * g.y.row, g.y.row, g.y.col};
            auto output = [=](int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) {
                kernels->store(c, width, n, cols, w.b_down ? w.b_down + col : nullptr, 0, 1,
                               y.data + r * y.row + col * y.col, y.row, y.col, false);
            };
            const StridedRows<T> rows{h, ldh};
            s.phase();
            if (w.packed())
                s.job(down_grid.grid.tasks(),
                      product(down, down_grid, rows, PackedPanels<T>{part.packed_down, w.f, width},
                              output));
            else
                s.job(down_grid.grid.tasks(),
                      product(down, down_grid, rows, RawPanels<T>{part, true, width}, output));
        }
    }
}

template void add_forward_rows<float>(const Build<float> &, const ForwardGroup<float> &);
template void add_forward_rows<double>(const Build<double> &, const ForwardGroup<double> &);

} // namespace ffncore
