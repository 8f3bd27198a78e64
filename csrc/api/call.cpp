// Chooses kernels and threads for a call, and prints the line of FFNCORE_VERBOSE=1; see call.h.
#include "call.h"

#include <atomic>
#include <cstdio>

#include "../core/cpu.h"
#include "../core/streams.h"
#include "../core/threads.h"
#include "../kernels/math64.h"

namespace ffncore {

namespace {

// Waking a sleeping thread costs the caller up to 10 us, so work of less than 20 us stays on one
// thread. In 20 us a thread computes or reads so much at 80 G multiply-adds, 20 GB of weights or 1
// G activations a second.
constexpr double kAloneMultiplyAdds = 1.6e6, kAloneBytes = 0.4e6;
constexpr int64_t kAloneElements = 20000;
constexpr int64_t kAloneLogits = 5000; // at 4 ns each

std::atomic<bool> threads_always{false};

int threads_for(bool small) {
    return small && !threads_always.load(std::memory_order_relaxed) ? 1 : num_threads();
}

const KernelTable &table() {
    const KernelTable *const t = current_isa();
    if (!t) throw Refused{fail(FFNCORE_UNSUPPORTED, "%s", isa_problem())};
    return *t;
}

std::string sizes_of(const PlanRequest &r) {
    const Plan plan = make_plan(r);
    char text[160];
    std::snprintf(text, sizeof text,
                  "tokens=%" PRId64 " d=%" PRId64 " f=%" PRId64 " plan=%s,%" PRId64 "x%" PRId64,
                  r.tokens, r.d, r.f, r.rows ? "rows" : "panels", plan.token_chunk, plan.ff_chunk);
    return text;
}

} // namespace

void set_threads_always(bool always) { threads_always.store(always, std::memory_order_relaxed); }

template <> const Kernels<float> &kernels<float>(int32_t dtype) {
    return dtype == FFNCORE_BFLOAT16 ? table().bf16 : table().f32;
}
template <> const Kernels<double> &kernels<double>(int32_t) { return table().f64; }

template <class T>
Call<T> call_of(const ffncore_activation &a, const Weights<T> &w, const ffncore_matrix &x,
                int64_t experts) {
    const double weights = double(w.d) * double(w.f) * (w.gated ? 3 : 2);
    const double bytes = weights * double(element_bytes(w.type));
    const bool small = weights * double(x.rows) < kAloneMultiplyAdds && bytes < kAloneBytes;
    return {kernels<T>(x.dtype), activation_params(a, w.gated), threads_for(small), l2_bytes(),
            streams(bytes * double(experts))};
}

template <class T>
Call<T> elementwise_call(const ffncore_activation &a, bool gated, const ffncore_matrix &m) {
    return {kernels<T>(m.dtype),
            activation_params(a, gated),
            threads_for(m.rows * m.cols < kAloneElements),
            l2_bytes(),
            {}};
}

int packing_threads(int64_t bytes) { return threads_for(double(bytes) < kAloneBytes); }
int routing_threads(int64_t logits) { return threads_for(logits < kAloneLogits); }
int norm_threads(int64_t elements) { return threads_for(elements < kAloneElements); }

ffncore_status done(bool ran) {
    return ran ? FFNCORE_OK : fail(FFNCORE_OUT_OF_MEMORY, "out of memory for the workspace");
}

void xielu_gradients(const double (&sums)[2], const ffncore_activation &a, bool accumulate,
                     double *grad_p, double *grad_n) {
    auto put = [&](double *to, double value) {
        if (to) *to = accumulate ? *to + value : value;
    };
    put(grad_p, sums[0] * math64::sigmoid(a.alpha_p));
    put(grad_n, sums[1] * math64::sigmoid(a.alpha_n));
}

Line::Line(const char *op, int32_t dtype, bool gated, int threads, std::string sizes)
    : op_(op), dtype_(dtype), gated_(gated), threads_(threads), sizes_(std::move(sizes)),
      start_(std::chrono::steady_clock::now()) {}

Line::Line(const char *op, int32_t dtype, int threads, const PlanRequest &request)
    : Line(op, dtype, request.gated, threads, sizes_of(request)) {}

Line::~Line() {
    const std::chrono::duration<double, std::milli> took =
        std::chrono::steady_clock::now() - start_;
    const KernelTable *const isa = current_isa();
    std::fprintf(stderr, "ffncore %s %s %s %s isa=%s threads=%d %.3f ms\n", op_, dtype_name(dtype_),
                 gated_ ? "gated" : "plain", sizes_.c_str(), isa ? isa->name : "none", threads_,
                 took.count());
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template Call<T> call_of<T>(const ffncore_activation &, const Weights<T> &,                    \
                                const ffncore_matrix &, int64_t);                                  \
    template Call<T> elementwise_call<T>(const ffncore_activation &, bool, const ffncore_matrix &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
