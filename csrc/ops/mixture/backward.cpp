// The backward pass of a mixture, a batch at a time: the rows of some experts, in rising order.
//
//   dh       dy [rows x d] * W_down [d][f]       -> dgate, dup, h; dots for the gradient of w
//   dx       dgate * W_gate [f][d] + dup * W_up  -> added to dx of the rows' tokens
//   dW_gate  dgate^T * x [rows][d], dW_up likewise
//   dW_down  dy^T * h [rows][f]
//
// Tokens are rows (as in layer/backward_rows.cpp). x and dy are gathered by the tasks; dgate, dup
// and h of a batch are held. Each expert's weights are read and its gradients written once, unless
// its rows fill several batches. A task of dx is a strip of columns through all experts, so that
// the slots of a token are added in a fixed order.
#include "mixture.h"

#include "../layer/hidden_gradient.h"
#include "../layer/xielu.h"
#include "../product/panels.h"
#include "../product/rows.h"
#include "batches.h"
#include "factors.h"
#include "gradients.h"

namespace ffncore {
namespace {

template <class T> class Backward {
  public:
    Backward(const Call<T> &call, MoeBackward<T> &moe)
        : call_(call), moe_(moe), m_(moe.mixture),
          routes_(m_.ids, {0, m_.tokens}, m_.top_k, (int64_t)m_.experts.size()),
          factors_(routes_.in_rows(m_.factors)), sides_(m_.gated ? 2 : 1), gradients_(moe),
          first_(routes_.firsts(m_.tokens)), idle_tokens_(routes_.idle_tokens(m_.tokens)),
          idle_experts_(routes_.idle_experts((int64_t)m_.experts.size())) {
        const bool of_input = moe.grad_factors.data && m_.on_input;
        dots_of_hidden_ = moe.grad_factors.data && !m_.on_input;
        needs_x_ = moe.grad_x.data || of_input;
        needs_gradients_ = needs_x_ || gradients_.needs(kGate) || gradients_.needs(kUp) ||
                           gradients_.needs(kBiasGate) || gradients_.needs(kBiasUp) || moe.xielu;
        needs_dh_ = needs_gradients_ || dots_of_hidden_;
        needs_h_ = gradients_.needs(kDown) || dots_of_hidden_;
        recompute_ = !moe.saved && (needs_dh_ || needs_h_);
        up_at_ = m_.gated && needs_gradients_ ? m_.f : 0;
        h_at_ = needs_gradients_ ? sides_ * m_.f : 0;
        ld_ = row_stride<T>(h_at_ + (needs_h_ ? m_.f : 0));
        ld_dots_ = ceil_div(m_.on_input ? m_.d : m_.f, kSumGroup);
        if (!recompute_) offsets_ = m_.saved_offsets();
        const int64_t row = ld_ + (recompute_ ? sides_ * m_.f : 0) +
                            (moe.grad_factors.data ? ld_dots_ : 0) + (moe.xielu ? m_.f : 0);
        const int64_t asked = plan_override.token_chunk;
        batches_ = cut_batches(routes_.groups,
                               asked > 0 ? asked : kBatchBytes / (row * (int64_t)sizeof(T)),
                               gradients_.narrow());
    }

    void operator()(const Build<T> &build) {
        Arena &arena = build.arena;
        auto take = [&](bool needed, int64_t n) {
            return needed ? arena.template take<T>(n) : nullptr;
        };
        const BatchSizes most(batches_, m_.f, m_.gated);
        hidden_ = take(needs_dh_ || needs_h_, most.rows * ld_);
        dots_ = take(moe_.grad_factors.data, most.rows * ld_dots_);
        again_ = (char *)take(recompute_, most.saved);
        carry_ld_ = round_up(m_.d, 16);
        carry_ = take(moe_.grad_x.data && !moe_.grad_x.template holds<T>(), m_.tokens * carry_ld_);
        gradients_.take(arena, most.apart, most.long_sums);
        if (moe_.xielu) {
            dh_ = take(true, most.dh);
            xielu_[0] = take(true, most.sums * m_.f);
            xielu_[1] = take(true, most.sums * m_.f);
            totals_ = arena.template take<double>(2 * m_.f * (int64_t)routes_.groups.size());
        }
        build.schedule.phase();
        zero_idle(build);
        for (const Batch &batch : batches_) run(build, batch);
        if (carry_) put_carry(build);
        if (moe_.xielu) add_xielu_total(build);
    }

  private:
    // Writes zeros to gradients of experts that no token chose, and of tokens without an expert.
    void zero_idle(const Build<T> &build) const {
        if (carry_)
            build.schedule.job(1, [this](int64_t, int) {
                for (int64_t t : idle_tokens_)
                    std::memset(carry_ + t * carry_ld_, 0, m_.d * sizeof(T));
            });
        gradients_.zero(build, idle_experts_);
        if (moe_.accumulate) return;
        build.schedule.job(1, [=, this](int64_t, int) {
            for (int64_t t : idle_tokens_)
                if (moe_.grad_x.data && !carry_) zero_elements(moe_.grad_x.from(t), 1, m_.d);
            for (int64_t i = 0; moe_.grad_factors.data && i < m_.tokens * m_.top_k; ++i)
                if (m_.ids[i] < 0)
                    zero_elements(moe_.grad_factors.from(i / m_.top_k, i % m_.top_k), 1, 1);
        });
    }

    static Build<T> build_of(const Build<T> &whole, const Batch &batch, const Segment &part) {
        const int64_t rows = batch.back().at + batch.back().rows;
        return {whole.schedule, whole.arena, whole.scratch, whole.call,
                double(part.rows) / double(rows)};
    }

    void run(const Build<T> &whole, const Batch &batch) {
        Schedule &s = whole.schedule;
        auto build_of = [&](const Segment &part) { return this->build_of(whole, batch, part); };
        std::vector<ReadPreactivations> saved;
        std::vector<Preactivations> dh;
        int64_t at = 0, at_dh = 0;
        for (const Segment &part : batch) {
            const Element type = m_.x.type;
            if (recompute_) {
                char *const mine = again_ + at * element_bytes(type);
                saved.push_back({mine, type, part.rows, m_.f, m_.gated});
                preactivations(build_of(part), part, {mine, type, part.rows, m_.f, m_.gated});
            } else {
                const int64_t count = routes_.groups[part.group].rows;
                saved.push_back(
                    ReadPreactivations(moe_.saved + offsets_[part.expert] * m_.x.bytes(), type,
                                       count, m_.f, m_.gated)
                        .from(part.before, 0));
            }
            at += saved_elements(part.rows, m_.f, m_.gated);
            dh.push_back({(char *)(dh_ ? dh_ + at_dh : nullptr), kOwn<T>, part.rows, m_.f, false});
            at_dh += saved_elements(part.rows, m_.f, false);
        }
        if (recompute_) s.phase();
        for (size_t i = 0; (needs_dh_ || needs_h_) && i < batch.size(); ++i)
            hidden_gradient(build_of(batch[i]), batch[i], saved[i], dh[i]);
        s.phase();
        if (needs_x_) input_gradient(whole, batch);
        std::vector<XieluSums<T>> sums;
        for (size_t i = 0; i < batch.size(); ++i) {
            const Segment &part = batch[i];
            const Build<T> build = build_of(part);
            weight_gradients(build, part);
            bias_gradients(build, part);
            if (dots_of_hidden_) factor_gradient(build, part);
            if (moe_.xielu) {
                sums.push_back(
                    xielu_sums(part, i == 0 ? nullptr : &sums.back(), batch[i ? i - 1 : 0]));
                sums[i].add_groups(build, m_.f, part.rows, saved[i], dh[i]);
            }
        }
        s.phase();
        gradients_.put(whole, batch[0]);
        for (size_t i = 0; i < batch.size(); ++i) {
            if (moe_.xielu) sums[i].add_chunk(s, {0, m_.f}, batch[i].rows, batch[i].before == 0);
            if (moe_.grad_factors.data && m_.on_input)
                factor_gradient(build_of(batch[i]), batch[i]);
        }
    }

    // ---- the parts of a segment

    const Weights<T> &weights(const Segment &part) const { return m_.experts[part.expert]; }
    TokenRows<T> rows_of(const Input &m, const Segment &part) const {
        return {m, routes_.tokens.data() + part.row0};
    }
    TokenRows<T> x_rows(const Segment &part) const { // with the weights on the input, if they are
        TokenRows<T> x = rows_of(m_.x, part);
        if (m_.on_input) x.factors = factors_.data() + part.row0;
        return x;
    }
    const T *of_output(const Segment &part) const { // the factors, if they are on the output
        return m_.on_input ? nullptr : factors_.data() + part.row0;
    }
    T *grads(const Segment &part) const {
        return needs_gradients_ ? hidden_ + part.at * ld_ : nullptr;
    }
    T *h(const Segment &part) const { return needs_h_ ? hidden_ + part.at * ld_ + h_at_ : nullptr; }
    // Recomputes gate and up from x.
    void preactivations(const Build<T> &build, const Segment &part,
                        const Preactivations &to) const {
        const Weights<T> &w = weights(part);
        if (forward_in_rows(call_.kernels, w, part.rows))
            return add_up_rows<T>(build, w, x_rows(part), part.rows, nullptr, 0, to);
        Panels<T> panels(build);
        const int64_t width = panels.width;
        panels.product(walk_of<T>(w.d, part.rows), w.f, {panels.up_rows(w)},
                       {panels.fitted(nullptr, w.d, part.rows)},
                       HiddenEpilogue<T>{panels.k, call_.activation, w, width, false, {}, to},
                       x_rows(part));
    }

    void hidden_gradient(const Build<T> &build, const Segment &part, const ReadPreactivations &pre,
                         const Preactivations &dh) const {
        const Rows<T> rows(build);
        const Weights<T> &w = weights(part);
        T *const own = grads(part), *const gate = m_.gated ? own : nullptr;
        T *const up = own ? own + up_at_ : nullptr;
        HiddenGradient<T> epilogue{rows.k, call_.activation, rows.width, pre, gate,
                                   up,     h(part),          ld_,        dh};
        epilogue.factors = of_output(part);
        if (dots_of_hidden_) {
            epilogue.dots = dots_ + part.at * ld_dots_;
            epilogue.ld_dots = ld_dots_;
        }
        if (!needs_dh_) return rows.hidden(part.rows, w.f, epilogue);
        auto product = [&](const auto &panels) {
            rows.product({.tokens = part.rows, .depth = w.d, .cols = w.f}, {StridedRows<T>{}},
                         std::vector{panels}, {}, epilogue, rows_of(moe_.grad_y, part));
        };
        if (w.coded()) return product(coded_outputs(w, rows.width));
        w.packed()
            ? product(rows.packed_across(w.packed_down, w, {part.rows, w.f, w.f}, false, false))
            : product(rows.across(w.down, w.f, part.rows));
    }

    // dx of the tokens; with the weight on the input also the products for the gradient of w.
    void input_gradient(const Build<T> &build, const Batch &batch) {
        using Part = std::function<void(PanelRange panels, const Scratch<T> &mine)>;
        const auto parts = std::make_shared<std::vector<Part>>();
        const int64_t columns = Rows<T>(build).width, widest = Rows<T>(build).widest_strip();
        for (const Segment &part : batch) {
            const Build<T> share = build_of(build, batch, part);
            const Rows<T> rows(share);
            const Weights<T> &w = weights(part);
            T *const own = grads(part);
            std::vector<StridedRows<T>> a{{own + up_at_, ld_}};
            if (m_.gated) a.insert(a.begin(), {own, ld_});
            auto add = [&](const auto &panels) {
                const auto ready =
                    rows.prepare({.tokens = part.rows, .depth = w.f, .cols = w.d}, a, panels);
                parts->push_back([=, this](PanelRange some, const Scratch<T> &mine) {
                    auto write = [&](const Tile &tile, T *c) { add_rows(part, tile, c); };
                    for (int64_t t = 0; t < part.rows; t += ready.together)
                        ready(t, some, mine, write);
                });
            };
            if (w.coded()) {
                add(coded_inputs(w, rows.width));
            } else if (w.packed()) {
                std::vector<PackedAcross<T>> panels;
                for (int upper = m_.gated ? 0 : 1; upper < 2; ++upper)
                    panels.push_back(rows.packed_across(w.packed_up, w, {part.rows, w.d, w.d},
                                                        m_.gated, m_.gated && upper));
                add(panels);
            } else {
                std::vector<MatrixPanels<T>> panels{rows.across(w.up, w.d, part.rows)};
                if (m_.gated) panels.insert(panels.begin(), rows.across(w.gate, w.d, part.rows));
                add(panels);
            }
        }
        const int64_t panels = ceil_div(m_.d, columns), each = panels / call_.threads;
        const Grid grid({.rows = panels, .quantum = std::clamp(each, kPanelStrip, widest)},
                        call_.threads);
        build.schedule.job(grid.tasks(), [=, buffers = &build.scratch](int64_t task, int thread) {
            const Scratch<T> mine = buffers->at(thread);
            grid.run(task, [&](RowRange some, PanelRange) {
                for (const Part &part : *parts) part({some.first, some.count}, mine);
            });
        });
    }

    // Takes a finished tile of a segment's dx.
    void add_rows(const Segment &part, const Tile &tile, T *c) const {
        const Kernels<T> &k = call_.kernels;
        const int64_t r = tile.rows.first, n = tile.rows.count;
        const int64_t col = tile.cols.first, cols = tile.cols.count;
        const int64_t width = 2 * k.width, row = part.row0 + r;
        if (m_.on_input) {
            if (moe_.grad_factors.data) {
                alignas(64) T x[kMaxRows * kPanel<T>];
                rows_of(m_.x, part).copy(k, {r, n}, tile.cols, x, width);
                k.dot_groups(c, width, x, width, n, cols,
                             dots_ + (part.at + r) * ld_dots_ + col / kSumGroup, ld_dots_);
            }
            k.scale(c, width, factors_.data() + row, n, cols, c, width);
        }
        if (!moe_.grad_x.data) return;
        const Output &out = moe_.grad_x;
        for (int64_t i = 0; i < n; ++i, c += width) {
            const int64_t token = routes_.tokens[row + i];
            if (carry_)
                k.of[kOwn<T>].store(c, width, 1, cols, nullptr, 0, 0,
                                    carry_ + token * carry_ld_ + col, carry_ld_, 1,
                                    !first_[row + i]);
            else
                k.of[out.type].store(c, width, 1, cols, nullptr, 0, 0, out.at(token, col), out.row,
                                     out.col, moe_.accumulate || !first_[row + i]);
        }
    }

    void put_carry(const Build<T> &build) const {
        constexpr int64_t kRows = 16; // per task
        const Output &out = moe_.grad_x;
        build.schedule.phase();
        build.schedule.job(ceil_div(m_.tokens, kRows), [=, this](int64_t task, int) {
            const int64_t t = task * kRows;
            call_.kernels.of[out.type].store(carry_ + t * carry_ld_, carry_ld_,
                                             std::min(kRows, m_.tokens - t), m_.d, nullptr, 0, 0,
                                             out.at(t), out.row, out.col, moe_.accumulate);
        });
    }

    void weight_gradients(const Build<T> &build, const Segment &part) const {
        Panels<T> panels(build);
        const int64_t n = part.rows, f = m_.f, d = m_.d, width = panels.width;
        const ExpertGradients<T> &g = gradients_;
        const Output gate = g.at(kGate, part), up = g.at(kUp, part);
        const bool add_gate = g.adds(kGate, part), add_up = g.adds(kUp, part);
        auto of_hidden = [&](int64_t first, int64_t rows, Output out, Output second, bool add) {
            const StridedRows<T> units{grads(part) + first, 1, ld_, kBlock, 0, f};
            panels.strips_gradient(
                {{rows, d, n}, out, second, f, add}, [=](int64_t t) { return units.from(t); },
                [=, x = x_rows(part)](int64_t t) {
                    return GatheredPanels<T>{x.from(t), d, width};
                });
        };
        if (gate.data && up.data && gate.type == up.type && add_gate == add_up) {
            of_hidden(0, 2 * f, gate, up, add_up);
        } else {
            if (gate.data) of_hidden(0, f, gate, {}, add_gate);
            if (up.data) of_hidden(up_at_, f, up, {}, add_up);
        }
        if (g.needs(kDown))
            panels.columns_gradient({{d, f, n}, g.at(kDown, part), {}, d, g.adds(kDown, part)},
                                    rows_of(moe_.grad_y, part), input(h(part), ld_));
    }

    void bias_gradients(const Build<T> &build, const Segment &part) const {
        Panels<T> panels(build);
        const ExpertGradients<T> &g = gradients_;
        auto of_units = [&](GradientName name, int64_t first) {
            if (g.needs(name))
                panels.bias_gradient(input(grads(part) + first, ld_), 0, m_.f, part.rows,
                                     g.at(name, part), g.adds(name, part));
        };
        of_units(kBiasGate, 0);
        of_units(kBiasUp, up_at_);
        if (g.needs(kBiasDown))
            panels.gathered_bias_gradient(rows_of(moe_.grad_y, part), of_output(part), m_.d,
                                          part.rows, g.at(kBiasDown, part),
                                          g.adds(kBiasDown, part));
    }

    void factor_gradient(const Build<T> &build, const Segment &part) const {
        const Input dots = input(dots_ + part.at * ld_dots_, ld_dots_);
        const T *const bias = m_.on_input ? nullptr : weights(part).b_down;
        add_factor_gradient<T>(build, dots, ld_dots_, part.rows, rows_of(moe_.grad_y, part), bias,
                               m_.d, routes_.places.data() + part.row0, m_.top_k, moe_.grad_factors,
                               moe_.accumulate);
    }

    // ---- xielu's parameters: a sum for each expert, then the sum over the experts in order

    XieluSums<T> xielu_sums(const Segment &part, const XieluSums<T> *previous,
                            const Segment &before) const {
        XieluSums<T> sums{};
        const int64_t used = previous ? before.rows : 0;
        sums.p = previous ? previous->p + ceil_div(used, kSumGroup) * m_.f : xielu_[0];
        sums.n = previous ? previous->n + ceil_div(used, kSumGroup) * m_.f : xielu_[1];
        sums.ld = ceil_div(part.rows, kSumGroup);
        sums.sum_p = totals_ + 2 * part.group * m_.f;
        sums.sum_n = sums.sum_p + m_.f;
        return sums;
    }
    void add_xielu_total(const Build<T> &build) {
        build.schedule.phase();
        build.schedule.job(1, [this](int64_t, int) {
            moe_.xielu_sums[0] = moe_.xielu_sums[1] = 0;
            for (size_t g = 0; g < routes_.groups.size(); ++g) {
                double *const sums = totals_ + 2 * g * m_.f;
                XieluSums<T>{nullptr, nullptr, sums, sums + m_.f, 0}.total(m_.f, moe_.xielu_sums);
            }
        });
    }

    const Call<T> &call_;
    MoeBackward<T> &moe_;
    const Mixture<T> &m_;
    const Dispatch routes_;
    const std::vector<T> factors_; // of each row
    const int64_t sides_;
    ExpertGradients<T> gradients_;
    const std::vector<char> first_; // whether a row is the first of its token
    const std::vector<int64_t> idle_tokens_, idle_experts_;
    bool needs_x_, needs_gradients_, needs_dh_, needs_h_; // which products are needed
    bool dots_of_hidden_, recompute_;
    // A row of the batch holds dgate, dup (from up_at_ on), and h (from h_at_ on).
    int64_t up_at_, h_at_, ld_, ld_dots_, carry_ld_ = 0;
    std::vector<int64_t> offsets_; // of each expert's saved preactivations
    std::vector<Batch> batches_;
    T *hidden_ = nullptr, *dots_ = nullptr;
    T *carry_ = nullptr; // dx in T, where grad_x has 16 bits and is rounded once
    char *again_ = nullptr;
    T *dh_ = nullptr, *xielu_[2] = {};
    double *totals_ = nullptr;
};

} // namespace

template <class T> bool moe_backward(const Call<T> &call, MoeBackward<T> &moe) {
    Backward<T> backward(call, moe);
    return run_schedule(call, [&](const Build<T> &build) { backward(build); });
}
template bool moe_backward<float>(const Call<float> &, MoeBackward<float> &);
template bool moe_backward<double>(const Call<double> &, MoeBackward<double> &);
} // namespace ffncore
