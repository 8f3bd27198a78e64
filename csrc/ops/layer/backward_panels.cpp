// The backward pass with tokens as panels. The products of a chunk of tokens and hidden units:
//
//   down^T rows * dy panels              -> dh -> dgate, dup, h: panels for the products below
//   gate^T rows * dgate + up^T * dup     -> dx
//   dgate, dup across * x rows           -> dW_gate, dW_up  [units][d]
//   dy across * h transposed             -> dW_down [d][units]
//
// "Across" means that panels are read along tokens, which are summed over. Weights are copied a
// block at a time, once for all tokens of the chunk. Where products take pairs of bfloat16, dgate
// and dup are held twice, in 16 bits each: as pairs of hidden units for dx, and as rows of tokens,
// like h, for the sums over tokens. dW_down is then h across * dy rows, stored transposed.
#include "../product/gradient_sums.h"
#include "../product/panels.h"
#include "xielu.h"

namespace ffncore {

namespace {

// One of dgate, dup, h of a chunk, in token panels of full width: [token panel][units][width].
// dgate and dup share their panels: dgate's units come first, then dup's. With pairs, `rows` holds
// bfloat16, and `pairs` holds the same as pairs of units for dx, [token panel][pairs][width].
template <class T> struct HiddenPanels {
    T *rows = nullptr;      // T or Bf16; nullptr: not needed
    T *pairs = nullptr;     // nullptr: no product sums over units
    int64_t units = 0;      // units of a token panel
    int64_t unit_pairs = 0; // pairs of units of a token panel
};

// The epilogue of dh: computes dgate, dup and h of the chunk.
template <class T> struct HiddenGradientEpilogue {
    const Kernels<T> *k;
    ActivationParams act;
    ReadPreactivations saved; // of the chunk: saved by the forward pass, or recomputed
    int64_t width;
    int64_t slice0; // first token of the slice, counted from the chunk's first token
    int64_t units;  // of the chunk
    bool pairs;
    HiddenPanels<T> dgate, dup, h;
    T *xielu_p, *xielu_n; // [units][groups of tokens]
    int64_t ld_xielu;
    void operator()(const Tile &tile, T *c) const {
        const int64_t r = tile.rows.first, n = tile.rows.count, cols = tile.cols.count;
        const int64_t t = slice0 + tile.cols.first;
        alignas(64) T copy[2 * kMaxRows * kSavedPanel];
        const SavedTile<T> pre(*k, saved, {t, round_up(cols, k->width)}, {r, n}, copy);
        alignas(64) T numbers[3][kMaxRows * kSavedPanel]; // dgate, dup, h before they become pairs
        auto place = [&](const HiddenPanels<T> &m, T *in_tile) {
            return !m.rows ? nullptr : pairs ? in_tile : m.rows + t * m.units + r * width;
        };
        auto finish = [&](const HiddenPanels<T> &m, T *values, int64_t columns) {
            if (!values) return;
            if (pairs)
                join(m, {t, cols}, {r, n}, values);
            else if (k->round)
                k->round(values, width, n, columns);
        };
        if (!c) { // h alone, from the preactivations
            ActForwardArgs<T> a{};
            a.rows = n;
            a.cols = round_up(cols, k->width);
            a.gate = pre.gate;
            a.up = pre.up;
            a.ld = pre.ld;
            a.h = place(h, numbers[2]);
            a.ldh = width;
            k->act_forward(act, a);
            return finish(h, a.h, a.cols);
        }
        ActBackwardArgs<T> a{};
        a.rows = n;
        a.cols = xielu_p ? cols : round_up(cols, k->width); // xielu's sums need exactly the tokens
        a.dh = c;
        a.ld_dh = width;
        a.gate = pre.gate;
        a.up = pre.up;
        a.ld_pre = pre.ld;
        a.dgate = place(dgate, numbers[0]);
        a.dup = place(dup, numbers[1]);
        a.h = place(h, numbers[2]);
        a.ld_out = width;
        if (xielu_p) {
            a.xielu_p = xielu_p + r * ld_xielu + t / kSumGroup;
            a.xielu_n = xielu_n + r * ld_xielu + t / kSumGroup;
            a.ld_xielu = ld_xielu;
        }
        k->act_backward(act, a);
        finish(dgate, a.dgate, a.cols);
        finish(dup, a.dup, a.cols);
        finish(h, a.h, a.cols);
    }

  private:
    // Stores a tile twice: as rows of tokens, where a missing last token becomes 0; and as pairs of
    // units.
    void join(const HiddenPanels<T> &m, TokenRange tokens, UnitRange rows, T *values) const {
        const int64_t t = tokens.first, cols = tokens.count, r = rows.first, n = rows.count;
        for (int64_t i = 0; cols % 2 && i < n; ++i) values[i * width + cols] = 0;
        k->of[kBfloat16].store(values, width, n, round_up(cols, 2), nullptr, 0, 0,
                               (Bf16 *)m.rows + t * m.units + r * width, width, 1, false);
        if (m.pairs)
            k->pairs.join_rows(values, width, r, n, cols, rows.end() == units,
                               m.pairs + t / width * m.unit_pairs * width, width);
    }
};

// The buffers of a group, and the phases of each chunk of tokens and hidden units.
template <class T> class BackwardPanels {
  public:
    BackwardPanels(const Build<T> &build, BackwardGroup<T> &g, const Plan &plan)
        : build_(build), panels_(build, takes_pairs(build.call.kernels, g.weights)),
          s_(build.schedule), g_(g), w_(g.weights), plan_(plan), needs_(g),
          recompute_(!g.saved && needs_.preactivation), width_(panels_.width),
          sides_(w_.gated ? 2 : 1),
          held_(round_up(std::min(plan.token_chunk, g.tokens), panels_.width)),
          slice_(std::min(plan.token_slice, held_)) {
        Arena &arena = build.arena;
        auto take = [&](bool needed, int64_t n) {
            return needed ? arena.template take<T>(n) : nullptr;
        };
        const int64_t units = plan.ff_chunk;
        x_ = take(recompute_, slice_ * panels_.steps(w_.d));
        dy_ = take(needs_.dh || dy_across(), slice_ * panels_.steps(w_.d));
        const int64_t per_step = panels_.per_step;
        grads_ = take(needs_.dh, held_ * units * sides_ / per_step);
        h_ = take(needs_.h, held_ * units / per_step);
        grad_pairs_ = take(needs_.x && panels_.pairs, held_ * panels_.steps(units) * sides_);
        const int64_t carried = plan.units_outer ? round_up(g.tokens, width_) : held_; // tokens
        carry_ = take_carry<T>(arena, plan.carry && needs_.x, carried * w_.d, w_.f);
        again_ = (char *)take(recompute_, saved_elements(held_, units, w_.gated));
        if (needs_.xielu) xielu_.take(arena, w_.f, units, held_);
        const int64_t kept = plan.units_outer ? units : w_.f;
        for (Kept &one : kept_)
            if (one.gradient->data)
                one.sums.take(arena, kept, one.columns,
                              plan.keeps_sums && !one.gradient->template holds<T>(),
                              plan.partial_sums);
    }

    void run() {
        if (needs_.b_down) {
            s_.phase();
            panels_.bias_gradient(g_.grad_y, 0, w_.d, g_.tokens, g_.grad_b_down, g_.accumulate);
        }
        if (!needs_.preactivation) return;
        if (plan_.units_outer) {
            each_units([&](UnitRange units) {
                each_tokens([&](TokenRange tokens) {
                    chunk(tokens, units);
                    put_sums(tokens.end(), units);
                });
            });
        } else {
            each_tokens([&](TokenRange tokens) {
                each_units([&](UnitRange units) { chunk(tokens, units); });
                put_sums(tokens.end(), {0, w_.f});
            });
        }
        if (needs_.xielu) xielu_.finish(s_, w_.f, g_.xielu_sums);
    }

  private:
    bool one_slice() const { return slice_ == held_; }
    // Whether the rows of dW_down are dy's panels, read across. They have to hold all tokens of the
    // chunk.
    bool dy_across() const { return needs_.down && one_slice() && !panels_.pairs; }

    // Calls body(range) for every chunk. Chunks of tokens do not cross the end of a partial sum.
    template <class Body> void each_tokens(const Body &body) const {
        for (int64_t t0 = 0, n; t0 < g_.tokens; t0 += n) {
            n = std::min({plan_.token_chunk, g_.tokens - t0, kPartialSum - t0 % kPartialSum});
            body(TokenRange{t0, n});
        }
    }
    template <class Body> void each_units(const Body &body) const {
        each_part(UnitRange{0, w_.f}, plan_.ff_chunk, body);
    }

    // ---- where the gradients are added up

    struct Kept {
        const Output *gradient;
        int64_t columns;
        GradientSums<T> sums;
    };
    enum Name { kGate, kUp, kDown, kBiasGate, kBiasUp };
    std::array<Kept, 5> gradients() const {
        return {{{&g_.grad_gate, w_.d, {}},
                 {&g_.grad_up, w_.d, {}},
                 {&g_.grad_down, w_.d, {}},
                 {&g_.grad_b_gate, 1, {}},
                 {&g_.grad_b_up, 1, {}}}};
    }
    // The part of a gradient that belongs to the units from f0 on: [units][columns].
    Output of_units(Name name, int64_t f0) const {
        const Output &gradient = *kept_[name].gradient;
        return (name == kDown ? gradient.transposed() : gradient).from(f0);
    }
    GradientSums<T> sums_of_units(Name name, int64_t f0) const {
        return kept_[name].sums.from(plan_.units_outer ? 0 : f0);
    }
    // Where the gradient is added up for the chunk of tokens from t0 on.
    Output target(Name name, int64_t t0, int64_t f0) const {
        return sums_of_units(name, f0).target(of_units(name, f0), t0);
    }
    bool adds(Name name, int64_t t0) const { return kept_[name].sums.adds(t0, g_.accumulate); }
    void put_sums(int64_t end, UnitRange units) {
        const bool last = end == g_.tokens;
        if (!std::ranges::any_of(kept_, [&](const Kept &one) { return one.sums.ready(end, last); }))
            return;
        s_.phase();
        for (const Name name : {kGate, kUp, kDown, kBiasGate, kBiasUp})
            sums_of_units(name, units.first)
                .put(build_, of_units(name, units.first), units.count, end, last, g_.accumulate);
    }

    // ---- a chunk

    void chunk(TokenRange tokens, UnitRange units) {
        const int64_t t0 = tokens.first, f0 = units.first;
        const Weights<T> part = slice_units(w_, f0, units.count);
        const int64_t both = part.f * sides_, pairs = panels_.steps(part.f), width = width_;
        const bool joined = grad_pairs_ != nullptr;
        HiddenPanels<T> dup{grads_, grad_pairs_, both, pairs * sides_};
        HiddenPanels<T> dgate = w_.gated ? dup : HiddenPanels<T>{};
        if (w_.gated) {
            dup.rows = grads_ + part.f * width / panels_.per_step;
            dup.pairs = joined ? grad_pairs_ + pairs * width : nullptr;
        }
        each_part(TokenRange{0, tokens.count}, slice_,
                  [&](TokenRange slice) { hidden_gradient(part, tokens, f0, slice, dgate, dup); });
        s_.phase();
        if (needs_.x) input_gradient(part, tokens, f0, dgate, dup);
        weight_gradients(part, tokens, f0, dgate, dup);
        auto bias = [&](Name name, const T *from) {
            const Input rows{(const char *)from, 0, 1, panels_.pairs ? kBfloat16 : kOwn<T>};
            if (kept_[name].gradient->data)
                panels_.bias_gradient(rows, both, part.f, tokens.count, target(name, t0, f0),
                                      adds(name, t0));
        };
        bias(kBiasGate, dgate.rows);
        bias(kBiasUp, dup.rows);
        if (needs_.xielu) xielu_.add_chunk(s_, units, tokens.count, t0 == 0);
    }

    // Adds the phases of dgate, dup and h for a slice of the chunk's tokens.
    void hidden_gradient(const Weights<T> &part, TokenRange tokens, int64_t f0, TokenRange slice,
                         const HiddenPanels<T> &dgate, const HiddenPanels<T> &dup) {
        const int64_t all = tokens.count, t = slice.first, n = slice.count;
        const Preactivations again(again_, g_.x.type, all, part.f, w_.gated);
        const auto saved = recompute_
                               ? ReadPreactivations(again_, g_.x.type, all, part.f, w_.gated)
                               : ReadPreactivations(g_.saved, g_.x.type, g_.tokens, w_.f, w_.gated)
                                     .from(tokens.first, f0);
        const bool packed = one_slice() && f0 > 0 && !(plan_.units_outer && all < g_.tokens);
        if (!packed) { // x and dy of this chunk of tokens are not packed yet
            const TokenRange mine{tokens.first + t, n};
            s_.phase();
            if (recompute_) panels_.pack(g_.x, w_.d, mine, full(x_));
            if (dy_) panels_.pack(g_.grad_y, w_.d, mine, full(dy_));
        }
        if (recompute_) {
            s_.phase();
            panels_.product(
                walk_of<T>(w_.d, n), part.f, {panels_.up_rows(part)}, {full(x_)},
                HiddenEpilogue<T>{
                    panels_.k, build_.call.activation, part, width_, false, {}, again.from(t, 0)});
        }
        const HiddenGradientEpilogue<T> epilogue{panels_.k,
                                                 build_.call.activation,
                                                 saved,
                                                 width_,
                                                 t,
                                                 part.f,
                                                 panels_.pairs,
                                                 dgate,
                                                 dup,
                                                 {h_, nullptr, part.f, 0},
                                                 xielu_.p,
                                                 xielu_.n,
                                                 xielu_.ld};
        s_.phase();
        if (needs_.dh)
            panels_.product(walk_of<T>(w_.d, n), part.f, {panels_.columns(part.down, w_.d)},
                            {full(dy_)}, epilogue);
        else
            panels_.hidden(part.f, n, epilogue);
    }

    void input_gradient(const Weights<T> &part, TokenRange tokens, int64_t f0,
                        const HiddenPanels<T> &dgate, const HiddenPanels<T> &dup) {
        const int64_t t0 = tokens.first;
        Walk<T> walk = walk_of<T>(part.f, tokens.count);
        walk.carry = carry_;
        if (plan_.units_outer)
            for (T **sums : {&walk.carry.sums, &walk.carry.partial})
                if (*sums) *sums += t0 * w_.d;
        walk.carry_rows = w_.d;
        walk.before = panels_.steps(f0);
        walk.finish = f0 + part.f == w_.f;
        std::vector<WeightRows<T>> a;
        std::vector<TokenPanels<T>> b;
        auto term = [&](const Input &weights, const HiddenPanels<T> &m) {
            a.push_back(panels_.columns(weights, part.f));
            b.push_back(panels_.pairs ? panels_.full(m.pairs, m.unit_pairs)
                                      : panels_.full(m.rows, m.units));
        };
        if (w_.gated) term(part.gate, dgate);
        term(part.up, dup);
        panels_.product(
            walk, w_.d, a, b,
            OutputEpilogue<T>{panels_.k, g_.grad_x.from(t0), nullptr, width_, g_.accumulate});
    }

    void weight_gradients(const Weights<T> &part, TokenRange chunk, int64_t f0,
                          const HiddenPanels<T> &dgate, const HiddenPanels<T> &dup) {
        const int64_t t0 = chunk.first, tokens = chunk.count;
        const int64_t both = part.f * sides_, d = w_.d, width = width_;
        const int64_t row = width / panels_.per_step; // steps of a row of a token panel
        const Input x = g_.x.from(t0), dy = g_.grad_y.from(t0);
        const auto of_tokens = [=, pairs = panels_.pairs](const Input &m) {
            return [=](int64_t t) {
                return MatrixPanels<T>{m.from(t), d, width, Reading::kCopied,
                                       pairs ? tokens - t : 0};
            };
        };
        // The rows are units of token panels: those of m; or those of dgate, followed by dup's.
        const auto product = [&](const T *m, int64_t units, int64_t rows, const auto &panels,
                                 const Output &out, const Output &second, bool add) {
            const PanelRows<T> all{m, units, row, part.f};
            panels_.weight_gradient(
                {{rows, d, tokens}, out, second, part.f, add},
                [=, per_step = panels_.per_step](int64_t t) { return all.from(t / per_step); },
                panels);
        };
        const auto x_panels = of_tokens(x);
        const Output gate = target(kGate, t0, f0), up = target(kUp, t0, f0);
        const bool add_gate = adds(kGate, t0), add_up = adds(kUp, t0);
        if (needs_.gate && needs_.up && add_gate == add_up && gate.type == up.type) {
            product(grads_, both, both, x_panels, gate, up, add_up);
        } else {
            if (needs_.gate) product(dgate.rows, both, part.f, x_panels, gate, {}, add_gate);
            if (needs_.up) product(dup.rows, both, part.f, x_panels, up, {}, add_up);
        }
        if (!needs_.down) return;
        const Output down = target(kDown, t0, f0); // [units][d]
        const bool add = adds(kDown, t0);
        // Without panels of dy the rows are the units of h, and the result is stored transposed.
        if (!dy_across()) return product(h_, part.f, part.f, of_tokens(dy), down, {}, add);
        const PanelRows<T> dy_rows{dy_, d, width, d};
        const T *h = h_;
        const int64_t units = part.f;
        panels_.weight_gradient(
            {{d, units, tokens}, down.transposed(), {}, d, add},
            [=](int64_t t) { return dy_rows.from(t); },
            [=](int64_t t) { return UnitPanels<T>{h + t * units, units, width, width}; });
    }

    TokenPanels<T> full(const T *data) const { return panels_.full(data, panels_.steps(w_.d)); }

    const Build<T> &build_;
    Panels<T> panels_;
    Schedule &s_;
    BackwardGroup<T> &g_;
    const Weights<T> &w_;
    const Plan &plan_;
    const Needs<T> needs_;
    const bool recompute_;
    const int64_t width_, sides_;
    const int64_t held_, slice_; // tokens of a chunk, in whole panels; tokens packed at once
    T *x_, *dy_, *grads_, *h_;
    T *grad_pairs_;  // dgate and dup as pairs of units
    char *again_;    // gate and up, recomputed
    Carry<T> carry_; // running sums of dx
    XieluSums<T> xielu_{};
    std::array<Kept, 5> kept_ = gradients(); // by Name
};

} // namespace

template <class T>
void add_backward_panels(const Build<T> &build, BackwardGroup<T> &g, const Plan &plan) {
    BackwardPanels<T>(build, g, plan).run();
}

template void add_backward_panels<float>(const Build<float> &, BackwardGroup<float> &,
                                         const Plan &);
template void add_backward_panels<double>(const Build<double> &, BackwardGroup<double> &,
                                          const Plan &);

} // namespace ffncore
