// Backward with tokens as rows, for few tokens: every operand lies as its product wants it.
//
//   dh       [tokens x d] * W_down [d][f]      -> tile [tokens][units] -> dgate, dup, h
//   dx       dgate * W_gate [f][d] + dup * W_up -> tile [tokens][d]
//   dW_gate  dgate^T [units x tokens] * x [tokens][d], dW_up likewise   -> [units][d]
//   dW_down  dy^T [d x tokens] * h [tokens][f]                          -> [d][units]
//
// Weights are read in place, or copied row by row; a gradient is written as it is read. A chunk of
// tokens and units (plan.h) is done at a time; dgate, dup and h of it are held. Gate and up come
// from the forward pass, or again from x. Packed weights, of any number of tokens, give dx alone;
// their blocks are turned on the way.
#include "panels.h"
#include "rows.h"
#include "xielu.h"

namespace ffncore {

namespace {

// dh -> dgate, dup, h of the chunk, [tokens][ld] each; and dh itself where xielu's sums want it.
template <class T> struct HiddenGradient {
    const Kernels<T> *k;
    ActivationParams act;
    int64_t width; // of the tile
    ReadPreactivations pre;
    T *dgate, *dup, *h; // each may be nullptr
    int64_t ld;
    Preactivations dh; // turned, as gate and up are; of T

    void begin(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols) const {
        constexpr int64_t kBytes = sizeof(T);
        for (T *to : {dgate, dup, h})
            if (to) fetch_lines((const char *)(to + r * ld + col), ld * kBytes, n, cols * kBytes);
        const int64_t bytes = element_bytes(pre.type);
        pre.each_panel(r, n, [&](int64_t t, int64_t count) {
            const int64_t from = pre.at(t, col), row = pre.width(t) * bytes;
            if (pre.gate) fetch_lines(pre.gate + from, row, cols, count * bytes);
            fetch_lines(pre.up + from, row, cols, count * bytes);
        });
    }
    // c: the tile of dh; or nullptr: h alone, from the preactivations.
    void operator()(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) const {
        alignas(64) T turned[2][kMaxRows * kPanel<T>]; // gate, up of the tile
        pre.each_panel(r, n, [&](int64_t t, int64_t count) {
            const int64_t from = pre.at(t, col);
            auto turn = [&](const char *side, T *to) {
                k->of[pre.type].pack(side + from, pre.width(t), 1, cols, count,
                                     to + (t - r) * width, width, width);
            };
            if (pre.gate) turn(pre.gate, turned[0]);
            turn(pre.up, turned[1]);
        });
        const T *gate = pre.gate ? turned[0] : nullptr;
        const int64_t at = r * ld + col;
        if (!c) {
            ActForwardArgs<T> a{};
            a.rows = n;
            a.cols = cols;
            a.gate = gate;
            a.up = turned[1];
            a.ld = width;
            a.h = h + at;
            a.ldh = ld;
            k->act_forward(act, a);
            if (k->round) k->round(a.h, ld, n, cols);
            return;
        }
        ActBackwardArgs<T> a{};
        a.rows = n;
        a.cols = cols;
        a.dh = c;
        a.gate = gate;
        a.up = turned[1];
        a.ld_dh = a.ld_pre = width;
        a.dgate = dgate ? dgate + at : nullptr;
        a.dup = dup ? dup + at : nullptr;
        a.h = h ? h + at : nullptr;
        a.ld_out = ld;
        k->act_backward(act, a);
        for (T *out : {a.dgate, a.dup, a.h})
            if (out && k->round) k->round(out, ld, n, cols);
        if (dh.up)
            dh.each_panel(r, n, [&](int64_t t, int64_t count) {
                k->of[dh.type].store(c + (t - r) * width, width, count, cols, nullptr, 0, 0,
                                     dh.up + dh.at(t, col), 1, dh.width(t), false);
            });
    }
};

// A group's buffers, and the phases of one chunk.
template <class T> class Backward {
  public:
    Backward(const Build<T> &build, BackwardGroup<T> &g, const Plan &plan)
        : build_(build), rows_(build), panels_(build), g_(g), w_(g.weights), plan_(plan), needs_(g),
          recompute_(!g.saved && needs_.preactivation),
          chunk_(std::min(plan.token_chunk, std::max<int64_t>(g.tokens, 1))),
          copies_(!g.x.template holds<T>() ||
                  (copies_rows(w_.d, sizeof(T)) &&
                   (chunk_ > kRowsInPlace || g.x.col != 1 || g.grad_y.col != 1))),
          ldx_(row_stride<T>(w_.d)), ldh_(row_stride<T>(plan.ff_chunk)) {
        Arena &arena = build.arena;
        auto take = [&](bool needed, int64_t n) {
            return needed ? arena.template take<T>(n) : nullptr;
        };
        const int64_t hidden = chunk_ * ldh_;
        dgate_ = take(needs_.dh && w_.gated, hidden);
        dup_ = take(needs_.dh, hidden);
        h_ = take(needs_.h, hidden);
        x_ = take(copies_, chunk_ * ldx_);
        dy_ = take(copies_, chunk_ * ldx_);
        again_ = (char *)take(recompute_, saved_elements(chunk_, plan.ff_chunk, w_.gated));
        if (recompute_ && !recompute_in_rows()) {
            slice_ = recompute_slice(w_.d, sizeof(T), panels_.width);
            x_panels_ = take(true, std::min(round_up(chunk_, panels_.width), slice_) * w_.d);
        }
        if (g.xielu) {
            xielu_.take(arena, w_.f, plan.ff_chunk, chunk_);
            dh_ = take(true, saved_elements(chunk_, plan.ff_chunk, false));
        }
        carry_ = take(plan.carry && g.grad_x.data, chunk_ * round_up(w_.d, rows_.width));
    }

    void chunk(int64_t t0) {
        Schedule &s = build_.schedule;
        const int64_t tokens = std::min(chunk_, g_.tokens - t0);
        const bool add = g_.accumulate || t0 > 0;
        Input x = g_.x.from(t0), dy = g_.grad_y.from(t0);
        s.phase();
        if (copies_) {
            rows_.copy(x, tokens, w_.d, x_, ldx_);
            rows_.copy(dy, tokens, w_.d, dy_, ldx_);
            x = input(x_, ldx_);
            dy = input(dy_, ldx_);
            s.phase();
        }
        if (needs_.b_down && t0 == 0) // of all tokens, rounded once
            panels_.bias_gradient(g_.grad_y, 0, w_.d, g_.tokens, g_.grad_b_down, g_.accumulate);
        if (!needs_.preactivation) return;
        for (int64_t f0 = 0; f0 < w_.f; f0 += plan_.ff_chunk) {
            const Weights<T> part = slice_units(w_, f0, std::min(plan_.ff_chunk, w_.f - f0));
            if (recompute_) preactivations(part, x, tokens);
            const auto pre =
                recompute_ ? ReadPreactivations(again_, g_.x.type, tokens, part.f, w_.gated)
                           : ReadPreactivations(g_.saved, g_.x.type, g_.tokens, w_.f, w_.gated)
                                 .from(t0, f0);
            hidden_gradient(part, dy, tokens, pre);
            s.phase();
            if (g_.xielu) xielu_groups(part.f, tokens, pre);
            if (needs_.x) input_gradient(part, tokens, t0, f0);
            parameter_gradients(part, x, dy, tokens, f0, add);
            s.phase();
            if (g_.xielu) xielu_.add_chunk(s, f0, part.f, tokens, t0 == 0);
        }
        if (g_.xielu && t0 + tokens == g_.tokens) xielu_.finish(s, w_.f, g_.xielu_sums);
    }

  private:
    bool recompute_in_rows() const { return forward_in_rows(build_.call.kernels, w_, g_.tokens); }

    void preactivations(const Weights<T> &part, const Input &x, int64_t tokens) {
        const Preactivations to(again_, g_.x.type, tokens, part.f, w_.gated);
        if (recompute_in_rows()) return add_up_rows<T>(build_, part, x, tokens, nullptr, 0, to);
        for (int64_t t = 0; t < tokens; t += slice_) {
            const int64_t n = std::min(slice_, tokens - t), width = panels_.width;
            const TokenPanels<T> packed =
                token_panels<T>(x_panels_, w_.d, n, width, panels_.k->width);
            if (t > 0) build_.schedule.phase();
            panels_.pack(x.from(t), w_.d, 0, n, packed);
            build_.schedule.phase();
            panels_.product(
                walk_of<T>(w_.d, n), part.f, {panels_.up_rows(part)}, {packed},
                HiddenEpilogue<T>{
                    panels_.k, build_.call.activation, part, width, false, {}, to.from(t, 0)});
        }
    }

    void hidden_gradient(const Weights<T> &part, const Input &dy, int64_t tokens,
                         const ReadPreactivations &pre) {
        const HiddenGradient<T> epilogue{
            rows_.k, build_.call.activation,          rows_.width, pre, dgate_, dup_, h_,
            ldh_,    hidden_gradients(tokens, part.f)};
        if (recompute_) build_.schedule.phase();
        if (!needs_.dh) {
            const Grid grid(tokens, rows_.tile, ceil_div(part.f, rows_.width), 1,
                            build_.call.threads);
            return build_.schedule.job(grid.tasks(), [=, f = part.f, width = rows_.width,
                                                      tile = rows_.tile](auto task, int) {
                grid.run(task, [&](int64_t r0, int64_t r1, int64_t p, int64_t) {
                    for (int64_t r = r0; r < r1; r += tile)
                        epilogue(r, std::min(tile, r1 - r), p, p * width,
                                 std::min(width, f - p * width), nullptr);
                });
            });
        }
        const StridedRows<T> rows{own<T>(dy), dy.row, dy.col};
        if (w_.packed())
            rows_.product(tokens, w_.d, part.f, {rows},
                          std::vector{packed_across(part.packed_down, w_.f, part.f, false, false)},
                          {}, epilogue);
        else
            rows_.product(tokens, w_.d, part.f, {rows},
                          std::vector{across(part.down, part.f, tokens)}, {}, epilogue);
    }

    Preactivations hidden_gradients(int64_t tokens, int64_t units) const {
        return {(char *)dh_, kOwn<T>, tokens, units, false};
    }

    // xielu's sums over groups of tokens, from dh and the preactivations as they are turned.
    void xielu_groups(int64_t units, int64_t tokens, const ReadPreactivations &pre) {
        constexpr int64_t kUnits = 16; // per task
        const Preactivations dh = hidden_gradients(tokens, units);
        build_.schedule.job(ceil_div(units, kUnits), [=, k = rows_.k, act = build_.call.activation,
                                                      sums = xielu_](int64_t task, int) {
            const int64_t unit = task * kUnits;
            pre.each_panel(0, tokens, [&](int64_t first, int64_t n) {
                dh.each_panel(first, n, [&](int64_t t, int64_t count) {
                    const int64_t to = unit * sums.ld + t / kXieluGroup;
                    const int64_t rows = std::min(kUnits, units - unit);
                    alignas(64) T copy[2 * kUnits * kSavedPanel];
                    const SavedTile<T> saved(*k, pre, t, unit, rows, count, copy);
                    ActBackwardArgs<T> a{};
                    a.rows = rows;
                    a.cols = count;
                    a.dh = (const T *)(dh.up + dh.at(t, unit));
                    a.ld_dh = dh.width(t);
                    a.gate = saved.gate;
                    a.up = saved.up;
                    a.ld_pre = saved.ld;
                    a.xielu_p = sums.p + to;
                    a.xielu_n = sums.n + to;
                    a.ld_xielu = sums.ld;
                    k->act_backward(act, a);
                });
            });
        });
    }

    void input_gradient(const Weights<T> &part, int64_t tokens, int64_t t0, int64_t f0) {
        const Output out = g_.grad_x.from(t0);
        auto write = [=, k = rows_.k, width = rows_.width, add = g_.accumulate](
                         int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) {
            k->of[out.type].store(c, width, n, cols, nullptr, 0, 0, out.at(r, col), out.row,
                                  out.col, add);
        };
        std::vector<StridedRows<T>> rows{{dup_, ldh_}};
        if (w_.gated) rows.insert(rows.begin(), {dgate_, ldh_});
        const Carry<T> carry{carry_, f0 == 0, f0 + part.f == w_.f};
        if (w_.packed()) {
            std::vector<PackedAcross<T>> panels;
            for (int upper = w_.gated ? 0 : 1; upper < 2; ++upper)
                panels.push_back(
                    packed_across(part.packed_up, w_.d, w_.d, w_.gated, w_.gated && upper));
            return rows_.product(tokens, part.f, w_.d, rows, panels, carry, write);
        }
        std::vector<MatrixPanels<T>> panels{across(part.up, w_.d, tokens)};
        if (w_.gated) panels.insert(panels.begin(), across(part.gate, w_.d, tokens));
        rows_.product(tokens, part.f, w_.d, rows, panels, carry, write);
    }

    void parameter_gradients(const Weights<T> &part, const Input &x, const Input &dy,
                             int64_t tokens, int64_t f0, bool add) {
        const Input dgate = input(dgate_, ldh_), dup = input(dup_, ldh_), h = input(h_, ldh_);
        auto weights = [&](const Input &from, const Output &out) {
            if (out.data) rows_.weight_gradient(from, part.f, x, w_.d, tokens, out.from(f0), add);
        };
        weights(dgate, g_.grad_gate);
        weights(dup, g_.grad_up);
        if (needs_.down)
            rows_.weight_gradient(dy, w_.d, h, part.f, tokens, g_.grad_down.from(0, f0), add);
        auto bias = [&](const Input &from, const Output &out) {
            if (out.data) panels_.bias_gradient(from, 0, part.f, tokens, out.from(f0), add);
        };
        bias(dgate, g_.grad_b_gate);
        bias(dup, g_.grad_b_up);
    }

    // Raw weights, whose rows are summed over.
    MatrixPanels<T> across(const Input &m, int64_t cols, int64_t tokens) const {
        return {m, cols, rows_.width, tokens <= rows_.tile || rows_spread<T>(m.row)};
    }
    PackedAcross<T> packed_across(const char *panels, int64_t depth, int64_t cols, bool gated,
                                  bool upper) const {
        return {panels, w_.type, packed_depth(w_.type, depth), cols, rows_.width, gated, upper};
    }

    const Build<T> &build_;
    const Rows<T> rows_;
    Panels<T> panels_;
    BackwardGroup<T> &g_;
    const Weights<T> &w_;
    const Plan &plan_;
    const Needs<T> needs_;
    const bool recompute_;
    const int64_t chunk_;
    const bool copies_;
    const int64_t ldx_, ldh_;
    int64_t slice_ = 0; // tokens whose preactivations are computed again at a time
    T *dgate_, *dup_, *h_, *x_, *dy_, *x_panels_ = nullptr, *carry_;
    char *again_; // gate and up, computed again
    T *dh_ = nullptr;
    XieluSums<T> xielu_{};
};

} // namespace

template <class T>
void add_backward_rows(const Build<T> &build, BackwardGroup<T> &g, const Plan &plan) {
    Backward<T> backward(build, g, plan);
    for (int64_t t0 = 0; t0 < g.tokens; t0 += plan.token_chunk) backward.chunk(t0);
}

template void add_backward_rows<float>(const Build<float> &, BackwardGroup<float> &, const Plan &);
template void add_backward_rows<double>(const Build<double> &, BackwardGroup<double> &,
                                        const Plan &);

} // namespace ffncore
