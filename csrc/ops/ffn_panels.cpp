// The FFN with tokens as panels [k][tokens]: raw weights are read in place, forward and backward.
//
//   forward   [gate | up] rows * x panels          -> tile [units][tokens] -> h, a panel of down's
//             down rows * h panels                 -> tile [outputs][tokens] -> y
//   backward  down^T rows * dy panels              -> dh -> dgate, dup, h, panels of the next two
//             gate^T rows * dgate + up^T * dup     -> dx
//             dgate, dup across * x rows           -> dW_gate, dW_up  [units][d]
//             dy across * h turned                 -> dW_down [d][units]
//
// Weights stream once per chunk of tokens (plan.h), a tile of 6 rows x 64 tokens at a time
// (AVX-512); the chunk's panels stay in L2. Products with a transposed weight copy it block by
// block into tiles. Sums over tokens run in blocks of 512 into the gradient itself.
#include "ffn.h"
#include "operands.h"

#include <array>
#include <utility>

namespace ffncore {

namespace {

// Token panels [panel][depth][width] of one chunk; the last is as wide as its tokens need.
template <class T>
TokenPanels<T> token_panels(const T *data, int64_t depth, int64_t tokens, int64_t width,
                            int64_t vector) {
    const int64_t last = std::max<int64_t>(ceil_div(tokens, width), 1) - 1;
    return {data, depth, width, last, round_up(tokens - last * width, vector)};
}

// Where the saved preactivations of token t, unit 0 lie: [f][width] panels.
template <class T> struct Saved {
    T *gate, *up;
    int64_t f, tokens;
    int64_t width(int64_t t) const {
        const int64_t first = t / kSavedPanel * kSavedPanel;
        return std::min(kSavedPanel, round_up(tokens - first, kSavedGrain));
    }
    int64_t at(int64_t t, int64_t unit) const {
        return t / kSavedPanel * kSavedPanel * f + unit * width(t) + t % kSavedPanel;
    }
};

template <class T> Saved<T> saved_view(T *saved, int64_t tokens, int64_t f, bool gated) {
    T *up = saved && gated ? saved + round_up(tokens, kSavedGrain) * f : saved;
    return {gated ? saved : nullptr, up, f, tokens};
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
                          auto write = [&](int64_t r, int64_t n, int64_t, int64_t col, int64_t cols,
                                           T *c) {
                              const Matrix<T> &m = r < a.cut ? out : second;
                              k->store(c, width, n, cols, nullptr, 0, 0,
                                       m.data + (r < a.cut ? r : r - a.cut) * m.row + col * m.col,
                                       m.row, m.col, add || t > 0);
                          };
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

// Weight rows as the forward pass reads them, and their transposes as the backward pass does.
template <class T> WeightRows<T> up_rows(const Weights<T> &w) {
    WeightRows<T> a{};
    a.first = w.gated ? w.gate : w.up;
    a.second = w.gated ? w.up : Matrix<const T>{};
    a.packed = w.packed_up;
    a.packed_depth = w.d;
    a.gated = w.gated;
    return a;
}
template <class T> WeightRows<T> down_rows(const Weights<T> &w, int64_t whole_f) {
    WeightRows<T> a{};
    a.first = w.down;
    a.packed = w.packed_down;
    a.packed_depth = whole_f;
    return a;
}
template <class T> WeightRows<T> transposed(WeightRows<T> a, bool upper) {
    const Matrix<const T> m = upper && !a.packed ? a.second : a.first;
    a.first = {m.data, m.col, m.row};
    a.second = {};
    a.transposed = true;
    a.upper = upper;
    return a;
}

// Preactivations -> h (and saved). Called by the up phase for each finished tile.
template <class T> struct HiddenEpilogue {
    const Kernels<T> *k;
    ActivationParams act;
    Weights<T> w; // of the chunk
    int64_t width;
    TokenPanels<T> h; // data == nullptr: not needed
    Saved<T> saved;   // up == nullptr: not saved
    int64_t t0, f0;
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
        const int64_t at = saved.at(t0 + col, f0 + r);
        a.save_gate = w.gated ? saved.gate + at : nullptr;
        a.save_up = saved.up + at;
        a.ld_save = saved.width(t0 + col);
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

} // namespace

template <class T> void add_forward_panels(const Build<T> &build, const ForwardGroup<T> &g) {
    Panels<T> panels(build);
    const Weights<T> &w = g.weights;
    const int64_t width = panels.width, vector = panels.k->width;
    const Plan plan = make_plan(forward_request(build.call, g));
    const int64_t held = round_up(std::min(plan.token_chunk, g.tokens), width);
    T *x = build.arena.template take<T>(held * w.d);
    T *h = build.arena.template take<T>(held * plan.ff_chunk);
    T *carry = plan.carry ? build.arena.template take<T>(held * w.d) : nullptr;
    const Saved<T> saved = saved_view(g.saved, g.tokens, w.f, w.gated);

    build.schedule.phase();
    auto pack_x = [&](int64_t t0) {
        const int64_t tokens = std::min(plan.token_chunk, g.tokens - t0);
        panels.pack(g.x, t0, tokens, token_panels<T>(x, w.d, tokens, width, vector));
    };
    pack_x(0);
    for (int64_t t0 = 0; t0 < g.tokens; t0 += plan.token_chunk) {
        const int64_t tokens = std::min(plan.token_chunk, g.tokens - t0);
        for (int64_t f0 = 0; f0 < w.f; f0 += plan.ff_chunk) {
            const Weights<T> part = slice_units(w, f0, std::min(plan.ff_chunk, w.f - f0));
            const bool last = f0 + part.f == w.f;
            const TokenPanels<T> hidden = token_panels<T>(h, part.f, tokens, width, vector);
            build.schedule.phase();
            panels.product(walk_of<T>(w.d, tokens), part.f, {up_rows(part)},
                           {token_panels<T>(x, w.d, tokens, width, vector)},
                           HiddenEpilogue<T>{panels.k, build.call.activation, part, width, hidden,
                                             saved, t0, f0});
            Walk<T> down = walk_of<T>(part.f, tokens);
            down.carry = carry;
            down.carry_rows = w.d;
            down.carried = f0 > 0;
            down.finish = last;
            build.schedule.phase();
            panels.product(
                down, w.d, {down_rows(part, w.f)}, {hidden},
                OutputEpilogue<T>{
                    panels.k, {g.y.data + t0 * g.y.row, g.y.row, g.y.col}, w.b_down, width, false});
            // The next chunk's x is packed beside the last product of this one.
            if (last && t0 + plan.token_chunk < g.tokens) pack_x(t0 + plan.token_chunk);
        }
    }
}

namespace {

// What a backward pass has to compute, from what is asked for.
template <class T> struct Needs {
    bool gate, up, down, x; // gradients
    bool b_gate, b_up, b_down, xielu;
    bool dh;            // dgate or dup
    bool h;             // for dW_down
    bool preactivation; // gate and up
    explicit Needs(const BackwardGroup<T> &g)
        : gate(g.grad_gate.data), up(g.grad_up.data), down(g.grad_down.data), x(g.grad_x.data),
          b_gate(g.grad_b_gate.data), b_up(g.grad_b_up.data), b_down(g.grad_b_down.data),
          xielu(g.xielu), dh(gate || up || x || b_gate || b_up || xielu), h(down),
          preactivation(dh || h) {}
};

// dh -> dgate, dup, h of the chunk. Panels are of full width: h [token panel][units][width], and
// dgate and dup one behind the other in [token panel][units of both][width].
template <class T> struct HiddenGradientEpilogue {
    const Kernels<T> *k;
    ActivationParams act;
    Saved<const T> saved;      // saved by the caller, or recomputed for the chunk
    int64_t width, t0, f0;     // of the chunk, within `saved`
    int64_t slice0;            // first token of the slice, within the chunk
    int64_t units, grad_units; // of a panel of h, and of dgate and dup together
    T *dgate, *dup, *h;
    T *xielu_p, *xielu_n; // [units][groups of tokens]
    int64_t ld_xielu;
    void operator()(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) const {
        const int64_t t = slice0 + col, at = t * units + r * width;
        const int64_t grad_at = t * grad_units + r * width;
        const int64_t from = saved.at(t0 + t, f0 + r);
        if (!c) { // h alone, from the preactivations
            ActForwardArgs<T> a{};
            a.rows = n;
            a.cols = round_up(cols, k->width);
            a.gate = saved.gate ? saved.gate + from : nullptr;
            a.up = saved.up + from;
            a.ld = saved.width(t0 + t);
            a.h = h + at;
            a.ldh = width;
            return k->act_forward(act, a);
        }
        ActBackwardArgs<T> a{};
        a.rows = n;
        a.cols = xielu_p ? cols : round_up(cols, k->width); // sums take no lane beyond the tokens
        a.dh = c;
        a.ld_dh = width;
        a.gate = saved.gate ? saved.gate + from : nullptr;
        a.up = saved.up + from;
        a.ld_pre = saved.width(t0 + t);
        a.dgate = dgate ? dgate + grad_at : nullptr;
        a.dup = dup ? dup + grad_at : nullptr;
        a.h = h ? h + at : nullptr;
        a.ld_out = width;
        if (xielu_p) {
            a.xielu_p = xielu_p + r * ld_xielu + t / kXieluGroup;
            a.xielu_n = xielu_n + r * ld_xielu + t / kXieluGroup;
            a.ld_xielu = ld_xielu;
        }
        k->act_backward(act, a);
    }
};

// xielu's sums: per unit, over its groups of 8 tokens in order, in double; at the end over units
// in runs of 64. Neither order depends on the plan.
template <class T> struct XieluSums {
    T *p, *n;              // [units of a chunk][ld]
    double *sum_p, *sum_n; // [f]
    int64_t ld;
    void take(Arena &arena, int64_t f, int64_t units, int64_t tokens) {
        ld = ceil_div(tokens, kXieluGroup);
        p = arena.take<T>(units * ld);
        n = arena.take<T>(units * ld);
        sum_p = arena.take<double>(f);
        sum_n = arena.take<double>(f);
    }
    void add_chunk(Schedule &s, int64_t f0, int64_t units, int64_t tokens, bool first) const {
        s.job(1, [=, *this](int64_t, int) {
            const int64_t groups = ceil_div(tokens, kXieluGroup);
            for (int64_t j = 0; j < units; ++j) {
                double a = first ? 0 : sum_p[f0 + j], b = first ? 0 : sum_n[f0 + j];
                for (int64_t i = 0; i < groups; ++i) {
                    a += p[j * ld + i];
                    b += n[j * ld + i];
                }
                sum_p[f0 + j] = a;
                sum_n[f0 + j] = b;
            }
        });
    }
    void finish(Schedule &s, int64_t f, double *out) const {
        s.phase();
        s.job(1, [=, *this](int64_t, int) {
            out[0] = out[1] = 0;
            for (int64_t j = 0; j < f; j += 64) {
                double a = 0, b = 0;
                for (int64_t i = j; i < std::min(j + 64, f); ++i) {
                    a += sum_p[i];
                    b += sum_n[i];
                }
                out[0] += a;
                out[1] += b;
            }
        });
    }
};

} // namespace

// dx first and alone, then the rest in the same workspace (Plan::grad_x_apart).
template <class T> void add_backward_apart(const Build<T> &build, BackwardGroup<T> &g) {
    BackwardGroup<T> first = g;
    first.grad_gate = first.grad_up = first.grad_down = {};
    first.grad_b_gate = first.grad_b_up = first.grad_b_down = {};
    first.xielu = false;
    Arena again = build.arena;
    add_backward(build, first);
    const Matrix<T> grad_x = std::exchange(g.grad_x, {});
    add_backward(Build<T>{build.schedule, again, build.scratch, build.call}, g);
    g.grad_x = grad_x;
    if (again.used() > build.arena.used()) build.arena = again;
}

template <class T> void add_backward(const Build<T> &build, BackwardGroup<T> &g) {
    const Plan plan = make_plan(backward_request(build.call, g));
    if (plan.grad_x_apart) return add_backward_apart(build, g);
    Panels<T> panels(build);
    Schedule &s = build.schedule;
    Arena &arena = build.arena;
    const Weights<T> &w = g.weights;
    const Needs<T> needs(g);
    const int64_t width = panels.width;
    const int64_t held = round_up(std::min(plan.token_chunk, g.tokens), width);
    const int64_t slice = std::min(plan.token_slice, held);
    const bool recompute = !g.saved && needs.preactivation;
    const bool one_slice = slice == held;

    auto take = [&](bool needed, int64_t n) {
        return needed ? arena.template take<T>(n) : nullptr;
    };
    T *x = take(recompute, slice * w.d);
    T *dy = take(needs.dh || (needs.down && one_slice), slice * w.d);
    const int64_t sides = w.gated ? 2 : 1;
    T *grads = take(needs.dh, held * plan.ff_chunk * sides);
    T *h = take(needs.h, held * plan.ff_chunk);
    T *carry = take(plan.carry && needs.x, held * w.d);
    T *recomputed = take(recompute, saved_elements(held, plan.ff_chunk, w.gated));
    XieluSums<T> xielu{};
    if (needs.xielu) xielu.take(arena, w.f, plan.ff_chunk, held);

    for (int64_t t0 = 0; t0 < g.tokens; t0 += plan.token_chunk) {
        const int64_t tokens = std::min(plan.token_chunk, g.tokens - t0);
        const bool add = g.accumulate || t0 > 0;
        const Matrix<const T> x_rows{g.x.data + t0 * g.x.row, g.x.row, g.x.col};
        const Matrix<const T> dy_rows{g.grad_y.data + t0 * g.grad_y.row, g.grad_y.row,
                                      g.grad_y.col};
        if (needs.b_down) {
            s.phase();
            panels.bias_gradient(dy_rows, 0, w.d, tokens, g.grad_b_down, add);
        }
        for (int64_t f0 = 0; needs.preactivation && f0 < w.f; f0 += plan.ff_chunk) {
            const Weights<T> part = slice_units(w, f0, std::min(plan.ff_chunk, w.f - f0));
            const bool last = f0 + part.f == w.f;
            const int64_t both = part.f * sides;
            T *dgate = w.gated ? grads : nullptr;
            T *dup = w.gated ? grads + part.f * width : grads;
            const Saved<T> again = saved_view(recomputed, tokens, part.f, w.gated);
            const Saved<const T> saved = recompute
                                             ? Saved<const T>{again.gate, again.up, part.f, tokens}
                                             : saved_view(g.saved, g.tokens, w.f, w.gated);
            const int64_t first_token = recompute ? 0 : t0, first_unit = recompute ? 0 : f0;

            for (int64_t t = 0; t < tokens; t += slice) {
                const int64_t n = std::min(slice, tokens - t);
                if (!one_slice || f0 == 0) {
                    s.phase();
                    if (recompute) panels.pack(x_rows, t, n, panels.full(x, w.d));
                    if (dy) panels.pack(dy_rows, t, n, panels.full(dy, w.d));
                }
                if (recompute) {
                    s.phase();
                    panels.product(
                        walk_of<T>(w.d, n), part.f, {up_rows(part)}, {panels.full(x, w.d)},
                        HiddenEpilogue<T>{
                            panels.k, build.call.activation, part, width, {}, again, t, 0});
                }
                const HiddenGradientEpilogue<T> epilogue{panels.k,    build.call.activation,
                                                         saved,       width,
                                                         first_token, first_unit,
                                                         t,           part.f,
                                                         both,        dgate,
                                                         dup,         h,
                                                         xielu.p,     xielu.n,
                                                         xielu.ld};
                s.phase();
                if (needs.dh)
                    panels.product(walk_of<T>(w.d, n), part.f,
                                   {transposed(down_rows(part, w.f), false)},
                                   {panels.full(dy, w.d)}, epilogue);
                else
                    panels.hidden(part.f, n, epilogue);
            }

            s.phase();
            if (needs.x) {
                Walk<T> walk = walk_of<T>(part.f, tokens);
                walk.carry = carry;
                walk.carry_rows = w.d;
                walk.carried = f0 > 0;
                walk.finish = last;
                const WeightRows<T> rows = up_rows(part);
                std::vector<WeightRows<T>> a{transposed(rows, false)};
                std::vector<TokenPanels<T>> b{panels.full(grads, both)};
                if (w.gated) {
                    a.push_back(transposed(rows, true));
                    b.push_back(panels.full(dup, both));
                }
                panels.product(walk, w.d, a, b,
                               OutputEpilogue<T>{
                                   panels.k,
                                   {g.grad_x.data + t0 * g.grad_x.row, g.grad_x.row, g.grad_x.col},
                                   nullptr,
                                   width,
                                   g.accumulate});
            }
            auto of_chunk = [&](Matrix<T> m) {
                m.data = m.data ? m.data + f0 * m.row : nullptr;
                return m;
            };
            const auto x_panels = [=](int64_t t) {
                return RowPanels<T>{
                    {x_rows.data + t * x_rows.row, x_rows.row, x_rows.col}, w.d, width};
            };
            if (needs.gate && needs.up)
                panels.weight_gradient({grads, both, width, part.f}, both, w.d, tokens, x_panels,
                                       of_chunk(g.grad_gate), of_chunk(g.grad_up), add);
            else if (needs.gate || needs.up)
                panels.weight_gradient({needs.gate ? dgate : dup, both, width, part.f}, part.f, w.d,
                                       tokens, x_panels,
                                       of_chunk(needs.gate ? g.grad_gate : g.grad_up), {}, add);
            if (needs.down && one_slice) {
                Matrix<T> out = g.grad_down;
                out.data += f0 * out.col;
                panels.weight_gradient(
                    {dy, w.d, width, w.d}, w.d, part.f, tokens,
                    [=](int64_t t) { return UnitPanels<T>{h + t * part.f, part.f, width, width}; },
                    out, {}, add);
            } else if (needs.down) { // dy's panels are gone: units are rows, the result goes out
                                     // turned
                const auto dy_panels = [=](int64_t t) {
                    return RowPanels<T>{
                        {dy_rows.data + t * dy_rows.row, dy_rows.row, dy_rows.col}, w.d, width};
                };
                panels.weight_gradient(
                    {h, part.f, width, part.f}, part.f, w.d, tokens, dy_panels,
                    {g.grad_down.data + f0 * g.grad_down.col, g.grad_down.col, g.grad_down.row}, {},
                    add);
            }
            if (needs.b_gate)
                panels.bias_gradient({dgate, 0, 0}, both, part.f, tokens, of_chunk(g.grad_b_gate),
                                     add);
            if (needs.b_up)
                panels.bias_gradient({dup, 0, 0}, both, part.f, tokens, of_chunk(g.grad_b_up), add);
            if (needs.xielu) xielu.add_chunk(s, f0, part.f, tokens, t0 == 0);
        }
    }
    if (needs.xielu) xielu.finish(s, w.f, g.xielu_sums);
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template void add_forward_panels<T>(const Build<T> &, const ForwardGroup<T> &);                \
    template void add_backward<T>(const Build<T> &, BackwardGroup<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
