// The C ABI of a layer: both passes, and the activations alone. Each entry point validates its
// arguments (check.h), chooses how to run (call.h), runs, and returns a status. It never throws.
#include "../include/ffncore.h"

#include <cstring>
#include <optional>
#include <vector>

#include "../core/cpu.h"
#include "../ops/layer/elementwise.h"
#include "../ops/layer/ffn.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

namespace {

void zero(const Output &m, int64_t rows, int64_t cols) {
    for (int64_t i = 0; m.data && i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) std::memset(m.at(i, j), 0, size_t(m.bytes()));
}

// Without tokens, the gradients of the weights are empty sums.
template <class T> void zero_gradients(const BackwardGroup<T> &g) {
    const int64_t d = g.weights.d, f = g.weights.f;
    zero(g.grad_gate, f, d);
    zero(g.grad_up, f, d);
    zero(g.grad_down, d, f);
    zero(g.grad_b_gate, f, 1);
    zero(g.grad_b_up, f, 1);
    zero(g.grad_b_down, d, 1);
}

template <class T> ffncore_status forward(const ffncore_forward_args &a) {
    Biases<T> biases(kernels<T>(a.x.dtype));
    const Weights<T> weights = weights_of<T>(a.weights, a.x.dtype, biases);
    const std::vector<ForwardGroup<T>> groups{forward_group<T>(a, weights, true)};
    const Call<T> call = call_of<T>(a.activation, weights, a.x);
    if (a.x.rows == 0) return FFNCORE_OK;
    std::optional<Line> line;
    if (verbose())
        line.emplace("ffn_forward", a.x.dtype, call.threads, forward_request(call, groups[0]));
    return done(ffn_forward(call, groups));
}

template <class T> ffncore_status backward(const ffncore_backward_args &a) {
    Biases<T> biases(kernels<T>(a.x.dtype));
    const Weights<T> weights = weights_of<T>(a.weights, a.x.dtype, biases);
    std::vector<BackwardGroup<T>> groups{backward_group<T>(a, weights, true)};
    BackwardGroup<T> &g = groups[0];
    const Call<T> call = call_of<T>(a.activation, weights, a.x);
    if (g.tokens > 0) {
        std::optional<Line> line;
        if (verbose())
            line.emplace("ffn_backward", a.x.dtype, call.threads, backward_request(call, g));
        if (!ffn_backward(call, groups)) return done(false);
    } else if (!g.accumulate) {
        zero_gradients(g);
    }
    if (g.xielu)
        xielu_gradients(g.xielu_sums, a.activation, g.accumulate, a.grad_alpha_p, a.grad_alpha_n);
    return FFNCORE_OK;
}

template <class T> ffncore_status activation(const ffncore_activation_args &a, bool back) {
    Elementwise<T> e = elementwise<T>(a, back);
    const bool gated = a.gate.data;
    const Call<T> call = elementwise_call<T>(a.activation, gated, a.up);
    std::optional<Line> line;
    if (verbose())
        line.emplace(back ? "activation_backward" : "activation_forward", a.up.dtype, gated,
                     call.threads,
                     "rows=" + std::to_string(e.rows) + " cols=" + std::to_string(e.cols));
    if (!back) {
        activation_forward(call, e);
        return FFNCORE_OK;
    }
    activation_backward(call, e);
    if (e.xielu) xielu_gradients(e.xielu_sums, a.activation, false, a.grad_alpha_p, a.grad_alpha_n);
    return FFNCORE_OK;
}

} // namespace

void ffncore_activation_init(ffncore_activation *a, int32_t kind) {
    if (!a) return;
    *a = ffncore_activation{};
    a->size = sizeof *a;
    a->kind = kind;
    a->alpha = 1;
    a->gate_multiplier = 1;
    a->negative_slope = 0.01;
    // The initial values of Apertus, whose softplus is 0.8 and 0.8 - beta.
    a->alpha_p = 0.2033823208110246;
    a->alpha_n = -1.0502256128148466;
    a->beta = 0.5;
    a->eps = -1e-6;
}

ffncore_status ffncore_ffn_forward(const ffncore_forward_args *args) {
    return with_args(args, &ffncore_forward_args::x, "x.dtype",
                     [&](auto t) { return forward<decltype(t)>(*args); });
}

ffncore_status ffncore_ffn_backward(const ffncore_backward_args *args) {
    return with_args(args, &ffncore_backward_args::x, "x.dtype",
                     [&](auto t) { return backward<decltype(t)>(*args); });
}

ffncore_status ffncore_activation_forward(const ffncore_activation_args *args) {
    return with_args(args, &ffncore_activation_args::up, "up.dtype",
                     [&](auto t) { return activation<decltype(t)>(*args, false); });
}

ffncore_status ffncore_activation_backward(const ffncore_activation_args *args) {
    return with_args(args, &ffncore_activation_args::up, "up.dtype",
                     [&](auto t) { return activation<decltype(t)>(*args, true); });
}
