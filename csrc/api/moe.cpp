// The C ABI of a mixture of experts, whose experts are expert 0 and the distances to the next one.
// The expert ids are validated once, before anything runs.
#include "../include/ffncore.h"

#include <optional>
#include <string>

#include "../core/cpu.h"
#include "../ops/mixture/mixture.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

namespace {

// Checks the expert ids. Rows are counted in 32 bits.
void check_routes(const int32_t *ids, int64_t tokens, int64_t top_k, int64_t experts) {
    require(top_k > 0, "top_k is %" PRId64 "; expected at least 1", top_k);
    require(tokens >= 0, "the number of tokens is %" PRId64 "; expected at least 0", tokens);
    require(experts > 0, "the number of experts is %" PRId64 "; expected at least 1", experts);
    require(tokens <= INT32_MAX / top_k,
            "%" PRId64 " tokens x %" PRId64 " slots are too many; expected fewer than 2^31", tokens,
            top_k);
    require(ids || tokens == 0, "expert_ids is NULL");
    for (int64_t i = 0; i < tokens * top_k; ++i)
        require(ids[i] >= -1 && ids[i] < experts,
                "expert_ids has %" PRId32 " for token %" PRId64
                "; expected -1 (no expert) to %" PRId64,
                ids[i], i / top_k, experts - 1);
}

ffncore_matrix shifted(ffncore_matrix m, int64_t elements) {
    if (m.data) m.data = static_cast<char *>(m.data) + elements * element_bytes(Element(m.dtype));
    return m;
}
ffncore_vector shifted(ffncore_vector v, int64_t elements) {
    if (v.data) v.data = static_cast<char *>(v.data) + elements * element_bytes(Element(v.dtype));
    return v;
}

ffncore_weights expert(const ffncore_experts &all, int64_t e) {
    ffncore_weights w = all.first;
    w.gate = shifted(w.gate, e * all.gate_stride);
    w.up = shifted(w.up, e * all.up_stride);
    w.down = shifted(w.down, e * all.down_stride);
    w.b_gate = shifted(w.b_gate, e * all.b_gate_stride);
    w.b_up = shifted(w.b_up, e * all.b_up_stride);
    w.b_down = shifted(w.b_down, e * all.b_down_stride);
    if (w.packed) w.packed = static_cast<const char *>(w.packed) + e * all.packed_stride;
    return w;
}

// The arguments that both passes share, validated and converted; it owns the copies that were made.
template <class T> class Given {
  public:
    template <class Args>
    explicit Given(const Args &a)
        : shapes((check_size("experts", a.experts.size, sizeof a.experts),
                  weight_shapes<T>(a.experts.first, a.x.dtype))),
          biases_(kernels<T>(a.x.dtype)) {
        const ffncore_matrix &x = a.x, &w = a.routing_weights;
        require(x.rows >= 0, "x has %" PRId64 " rows; expected at least 0", x.rows);
        check_sizes("x", x.rows, shapes.d);
        require(x.cols == shapes.d, "x has %" PRId64 " columns; expected %" PRId64, x.cols,
                shapes.d);
        require(x.data || x.rows == 0, "x.data is NULL");
        const int64_t top_k = w.cols;
        check_routes(a.expert_ids, x.rows, top_k, a.experts.count);
        check_sizes("the hidden state", x.rows * top_k, shapes.f);
        if (x.rows > 0) check_matrix("routing_weights", w, x.rows, top_k);
        check_same_dtype("routing_weights", w.dtype, kOwn<T>);
        for (int64_t t = 0; t < x.rows; ++t)
            for (int64_t s = 0; s < top_k; ++s)
                factors_.push_back(*reinterpret_cast<const T *>(::input(w).at(t, s)));
        mixture.experts.resize(a.experts.count);
        mixture.tokens = x.rows;
        mixture.top_k = top_k;
        mixture.ids = a.expert_ids;
        mixture.factors = factors_.data();
        mixture.on_input = a.weight_on_input;
        mixture.x = ::input(x);
        mixture.d = shapes.d;
        mixture.f = shapes.f;
        mixture.gated = shapes.gated;
        const std::vector<int64_t> counts = mixture.counts();
        for (int64_t e = 0; e < a.experts.count; ++e)
            if (counts[e] > 0)
                mixture.experts[e] = weights_of<T>(expert(a.experts, e), x.dtype, biases_);
        ffncore_matrix routed = x;
        routed.rows *= top_k;
        call.emplace(call_of<T>(a.activation, shapes, routed, a.experts.count));
    }
    Given(const Given &) = delete;
    Given &operator=(const Given &) = delete;

    const Weights<T> shapes; // of every expert
    Mixture<T> mixture;
    std::optional<Call<T>> call;

  private:
    Biases<T> biases_;
    std::vector<T> factors_;
};

template <class T>
void announce(std::optional<Line> &line, const char *op, int32_t dtype, const Given<T> &given) {
    const Mixture<T> &m = given.mixture;
    if (verbose())
        line.emplace(op, dtype, m.gated, given.call->threads,
                     "tokens=" + std::to_string(m.tokens) + " top_k=" + std::to_string(m.top_k) +
                         " experts=" + std::to_string(m.experts.size()) +
                         " d=" + std::to_string(m.d) + " f=" + std::to_string(m.f));
}

template <class T> ffncore_status forward(const ffncore_moe_forward_args &a) {
    const Given<T> given(a);
    if (a.x.rows == 0) return FFNCORE_OK;
    check_matrix("y", a.y, a.x.rows, given.mixture.d);
    check_same_dtype("y", a.y.dtype, a.x.dtype);
    std::optional<Line> line;
    announce(line, "moe_forward", a.x.dtype, given);
    return done(moe_forward(
        *given.call, MoeForward<T>{given.mixture, output(a.y), static_cast<char *>(a.saved)}));
}

template <class T> ffncore_status backward(const ffncore_moe_backward_args &a) {
    const Given<T> given(a);
    const Mixture<T> &m = given.mixture;
    const ffncore_experts &g = a.grad_experts;
    check_size("grad_experts", g.size, sizeof g);
    if (m.tokens > 0) {
        check_matrix("grad_y", a.grad_y, m.tokens, m.d);
        check_same_dtype("grad_y", a.grad_y.dtype, a.x.dtype);
    }
    require(m.gated || (!g.first.gate.data && !g.first.b_gate.data),
            "a gradient of gate or b_gate is asked for, but the experts are plain");
    const int32_t type = given.shapes.type;
    MoeBackward<T> moe{};
    moe.mixture = m;
    moe.grad_y = input(a.grad_y);
    moe.saved = static_cast<const char *>(a.saved);
    moe.accumulate = a.accumulate;
    moe.grad_x = gradient("grad_x", a.grad_x, m.tokens, m.d, a.x.dtype);
    moe.grad_factors =
        gradient("grad_routing_weights", a.grad_routing_weights, m.tokens, m.top_k, kOwn<T>);
    const ffncore_weights &w = g.first;
    moe.grad_gate = {gradient("grad_gate", w.gate, m.f, m.d, type), g.gate_stride};
    moe.grad_up = {gradient("grad_up", w.up, m.f, m.d, type), g.up_stride};
    moe.grad_down = {gradient("grad_down", w.down, m.d, m.f, type), g.down_stride};
    moe.grad_b_gate = {gradient("grad_b_gate", w.b_gate, m.f, type), g.b_gate_stride};
    moe.grad_b_up = {gradient("grad_b_up", w.b_up, m.f, type), g.b_up_stride};
    moe.grad_b_down = {gradient("grad_b_down", w.b_down, m.d, type), g.b_down_stride};
    moe.xielu = a.activation.kind == FFNCORE_XIELU && (a.grad_alpha_p || a.grad_alpha_n);
    std::optional<Line> line;
    announce(line, "moe_backward", a.x.dtype, given);
    if (!moe_backward(*given.call, moe)) return done(false);
    if (moe.xielu)
        xielu_gradients(moe.xielu_sums, a.activation, a.accumulate, a.grad_alpha_p, a.grad_alpha_n);
    return FFNCORE_OK;
}

} // namespace

ffncore_status ffncore_moe_forward(const ffncore_moe_forward_args *args) {
    return with_args(args, &ffncore_moe_forward_args::x, "x.dtype",
                     [&](auto t) { return forward<decltype(t)>(*args); });
}

ffncore_status ffncore_moe_backward(const ffncore_moe_backward_args *args) {
    return with_args(args, &ffncore_moe_backward_args::x, "x.dtype",
                     [&](auto t) { return backward<decltype(t)>(*args); });
}

int64_t ffncore_moe_saved_bytes(int32_t dtype, const int32_t *expert_ids, int64_t tokens,
                                int64_t top_k, int64_t n_experts, int64_t d_ff, int32_t gated) {
    return guarded_or<int64_t>(-1, [&] {
        check_dtype("dtype", dtype);
        check_routes(expert_ids, tokens, top_k, n_experts);
        check_sizes("the hidden state", tokens * top_k, d_ff);
        Mixture<float> m{};
        m.experts.resize(n_experts);
        m.tokens = tokens;
        m.top_k = top_k;
        m.ids = expert_ids;
        m.f = d_ff;
        m.gated = gated;
        return m.saved_offsets().back() * element_bytes(Element(dtype));
    });
}
