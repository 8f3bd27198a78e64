// The C ABI: what computes, and the settings. Each entry point tests its arguments (api_check.h),
// chooses how to run (api_call.h), runs, and returns a status; nothing is ever thrown out of here.
// Costs are in api_cost.cpp, packed weights in api_pack.cpp.
#include "include/ffncore.h"

#include <cstring>
#include <optional>
#include <vector>

#include "api_call.h"
#include "api_check.h"
#include "core/cpu.h"
#include "core/threads.h"
#include "core/workspace.h"
#include "ops/elementwise.h"
#include "ops/ffn.h"

using namespace ffncore;

namespace {

void zero(const Output &m, int64_t rows, int64_t cols) {
    for (int64_t i = 0; m.data && i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) std::memset(m.at(i, j), 0, size_t(m.bytes()));
}

// No tokens: the gradients of the weights are sums of nothing.
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

const char *ffncore_version(void) {
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
    return TEXT(FFNCORE_VERSION_MAJOR) "." TEXT(FFNCORE_VERSION_MINOR) "." TEXT(
        FFNCORE_VERSION_PATCH);
}

const char *ffncore_last_error(void) { return last_error(); }

// ---- the block, and the activations alone

void ffncore_activation_init(ffncore_activation *a, int32_t kind) {
    if (!a) return;
    *a = ffncore_activation{};
    a->size = sizeof *a;
    a->kind = kind;
    a->alpha = 1;
    a->gate_multiplier = 1;
    a->negative_slope = 0.01;
    // Apertus' initial values: softplus gives 0.8 and 0.8 - beta.
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

// ---- instruction sets

int32_t ffncore_isa_count(void) {
    return guarded_or(0, [] { return isa_count(); });
}

const char *ffncore_isa_name(int32_t i) {
    return guarded_or<const char *>(nullptr, [&] {
        const KernelTable *const isa = isa_table(i);
        return isa ? isa->name : nullptr;
    });
}

const char *ffncore_isa_current(void) {
    return guarded_or<const char *>(nullptr, [] {
        const KernelTable *const isa = current_isa();
        return isa ? isa->name : nullptr;
    });
}

ffncore_status ffncore_isa_use(const char *name) {
    return guarded([&] {
        return use_isa(name) ? FFNCORE_OK : fail(FFNCORE_UNSUPPORTED, "%s", isa_problem());
    });
}

const char *ffncore_cpu_features(void) {
    return guarded_or("", [] { return cpu_features(); });
}

const char *ffncore_build_info(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown compiler";
#endif
}

// ---- threads and memory

int32_t ffncore_num_threads(void) {
    return guarded_or(1, [] { return num_threads(); });
}

ffncore_status ffncore_set_num_threads(int32_t n) {
    return guarded([&] {
        require(n >= 0, "the number of threads is %" PRId32 "; expected at least 0", n);
        set_num_threads(n);
        return FFNCORE_OK;
    });
}

void ffncore_clear_workspace(void) {
    guarded([] {
        clear_workspace();
        return FFNCORE_OK;
    });
}

// ---- for tests

ffncore_status ffncore_debug_plan(int64_t token_chunk, int64_t ff_chunk, int64_t token_slice,
                                  int32_t tokens_in_rows, int32_t always) {
    plan_override = {token_chunk, ff_chunk, token_slice, tokens_in_rows};
    set_threads_always(always);
    return FFNCORE_OK;
}

int64_t ffncore_debug_flops(void) { return counted_flops.exchange(0); }
