// The backward pass with tokens as rows, for few tokens or packed weights. Raw weights, x, dy and
// the hidden gradients lie in memory as these products need them:
//
//   dh       [tokens x d] * W_down [d][f]      -> tile [tokens][units] -> dgate, dup, h
//   dx       dgate * W_gate [f][d] + dup * W_up -> tile [tokens][d]
//   dW_gate  dgate^T [units x tokens] * x [tokens][d], dW_up likewise   -> [units][d]
//   dW_down  dy^T [d x tokens] * h [tokens][f]                          -> [d][units]
//
// Raw weights are read in place, or copied row by row, and gradients are written row by row. One
// chunk of tokens and hidden units (plan.h) is done at a time; its dgate, dup and h are held. Gate
// and up were saved by the forward pass, or are recomputed from x. Packed weights, for any number
// of tokens, give dx alone; they are transposed a block at a time.
#include "../product/panels.h"
#include "../product/rows.h"
#include "hidden_gradient.h"
#include "xielu.h"

namespace ffncore {

namespace {

// The buffers of a group, and the phases of a chunk.
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
        carry_ = take_carry<T>(arena, plan.carry && g.grad_x.data,
                               chunk_ * round_up(w_.d, rows_.width), w_.f);
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
        if (needs_.b_down && t0 == 0) // one job for all tokens, so that it is rounded once
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
            if (g_.xielu)
                xielu_.add_groups(build_, part.f, tokens, pre, hidden_gradients(tokens, part.f));
            if (needs_.x) input_gradient(part, {t0, tokens}, f0);
            parameter_gradients(part, x, dy, tokens, f0, add);
            s.phase();
            if (g_.xielu) xielu_.add_chunk(s, {f0, part.f}, tokens, t0 == 0);
        }
        if (g_.xielu && t0 + tokens == g_.tokens) xielu_.finish(s, w_.f, g_.xielu_sums);
    }

  private:
    bool recompute_in_rows() const { return forward_in_rows(build_.call.kernels, w_, g_.tokens); }

    void preactivations(const Weights<T> &part, const Input &x, int64_t tokens) {
        const Preactivations to(again_, g_.x.type, tokens, part.f, w_.gated);
        if (recompute_in_rows()) return add_up_rows<T>(build_, part, {x}, tokens, nullptr, 0, to);
        for (int64_t t = 0; t < tokens; t += slice_) {
            const int64_t n = std::min(slice_, tokens - t), width = panels_.width;
            const TokenPanels<T> packed = panels_.fitted(x_panels_, w_.d, n);
            if (t > 0) build_.schedule.phase();
            panels_.pack(x.from(t), w_.d, {0, n}, packed);
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
        if (!needs_.dh) return rows_.hidden(tokens, part.f, epilogue);
        const StridedRows<T> rows{own<T>(dy), dy.row, dy.col};
        const ProductSize size{.tokens = tokens, .depth = w_.d, .cols = part.f};
        if (w_.coded())
            rows_.product(size, {rows}, std::vector{coded_outputs(part, rows_.width)}, {},
                          epilogue);
        else if (w_.packed())
            rows_.product(size, {rows},
                          std::vector{rows_.packed_across(part.packed_down, w_,
                                                          {tokens, w_.f, part.f}, false, false)},
                          {}, epilogue);
        else
            rows_.product(size, {rows}, std::vector{rows_.across(part.down, part.f, tokens)}, {},
                          epilogue);
    }

    Preactivations hidden_gradients(int64_t tokens, int64_t units) const {
        return {(char *)dh_, kOwn<T>, tokens, units, false};
    }

    void input_gradient(const Weights<T> &part, TokenRange tokens, int64_t f0) {
        const Output out = g_.grad_x.from(tokens.first);
        auto write = [=, k = rows_.k, width = rows_.width, add = g_.accumulate](const Tile &tile,
                                                                                T *c) {
            k->of[out.type].store(c, width, tile.rows.count, tile.cols.count, nullptr, 0, 0,
                                  out.at(tile.rows.first, tile.cols.first), out.row, out.col, add);
        };
        const ProductSize size{.tokens = tokens.count, .depth = part.f, .cols = w_.d};
        std::vector<StridedRows<T>> rows{{dup_, ldh_}};
        if (w_.gated) rows.insert(rows.begin(), {dgate_, ldh_});
        const SumPart<T> chunk{carry_, f0, f0 + part.f == w_.f};
        if (w_.coded())
            return rows_.product(size, rows, coded_inputs(part, rows_.width), chunk, write);
        if (w_.packed()) {
            std::vector<PackedAcross<T>> panels;
            for (int upper = w_.gated ? 0 : 1; upper < 2; ++upper)
                panels.push_back(rows_.packed_across(part.packed_up, w_, {tokens.count, w_.d, w_.d},
                                                     w_.gated, w_.gated && upper));
            return rows_.product(size, rows, panels, chunk, write);
        }
        std::vector<MatrixPanels<T>> panels{rows_.across(part.up, w_.d, tokens.count)};
        if (w_.gated) panels.insert(panels.begin(), rows_.across(part.gate, w_.d, tokens.count));
        rows_.product(size, rows, panels, chunk, write);
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
    int64_t slice_ = 0; // tokens whose preactivations are recomputed at a time
    T *dgate_, *dup_, *h_, *x_, *dy_, *x_panels_ = nullptr;
    Carry<T> carry_; // running sums of dx
    char *again_;    // gate and up, recomputed
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
