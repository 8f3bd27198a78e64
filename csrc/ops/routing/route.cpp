// Routing and its backward pass, see route.h. A task is a range of tokens. Rows that are not
// contiguous go through a buffer of the thread, which also has the scratch memory of the kernel.
#include "route.h"

#include <algorithm>

#include "../../core/workspace.h"
#include "../arrays/one_row.h"
#include "../schedule/schedule.h"

namespace ffncore {

namespace {

// Logits of a task: about 30 us of work, so that the cost of starting a task does not matter.
constexpr int64_t kTaskLogits = 1 << 13;

template <class T> struct Buffers {
    T *scratch, *logits, *grad_logits, *weights;
};

// The memory of one thread, in elements. Every part begins with a cache line.
template <class T> struct Layout {
    int64_t row, slots;
    explicit Layout(const RouteParams &p)
        : row(round_up(p.experts, kRouteLanes)), slots(round_up(p.k, kRouteLanes)) {}
    int64_t scratch() const { return kRouteExpertRows * row + kRouteSlotRows * slots; }
    int64_t elements() const { return scratch() + 2 * row + slots; }
    Buffers<T> at(T *base, int thread) const {
        T *const mine = base + thread * elements(), *const rows = mine + scratch();
        return {mine, rows, rows + row, rows + 2 * row};
    }
};

// Calls body(token, buffers) for every token. Returns false if memory ran out.
template <class T, class Body> bool over_tokens(const Route<T> &r, const Body &body) {
    const Layout<T> layout(r.params);
    const int64_t together = std::max<int64_t>(1, kTaskLogits / r.params.experts);
    const int64_t tasks = ceil_div(r.tokens, together);
    const int threads = int(std::min<int64_t>(r.threads, tasks));
    const Lease lease(size_t(layout.elements()) * sizeof(T) * size_t(threads));
    T *const base = static_cast<T *>(lease.data());
    if (!base) return false;
    Schedule s;
    s.phase();
    s.job(tasks, [&](int64_t task, int thread) {
        const Buffers<T> buffers = layout.at(base, thread);
        const int64_t end = std::min(r.tokens, (task + 1) * together);
        for (int64_t t = task * together; t < end; ++t) body(t, buffers);
    });
    run_region(s, threads);
    return true;
}

Input as_input(const Output &m) { return {m.data, m.row, m.col, m.type}; }

} // namespace

template <class T> bool route(const Route<T> &r) {
    return over_tokens(r, [&](int64_t t, const Buffers<T> &b) {
        RouteArgs<T> a{};
        a.logits = read_row(r.kernels, r.logits, t, r.params.experts, b.logits);
        a.bias = r.bias;
        a.given = r.given;
        a.ids = r.experts + t * r.expert_stride;
        a.weights = row_to_write(r.weights, t, b.weights);
        a.log_sum_exp =
            r.log_sum_exp.data ? reinterpret_cast<T *>(r.log_sum_exp.at(t, 0)) : nullptr;
        a.scratch = b.scratch;
        r.kernels.route(r.params, a);
        write_row(r.kernels, r.weights, t, r.params.k, b.weights);
    });
}

template <class T> bool route_backward(const Route<T> &r) {
    const Input grad_weights = as_input(r.weights);
    return over_tokens(r, [&](int64_t t, const Buffers<T> &b) {
        RouteBackwardArgs<T> a{};
        a.logits = read_row(r.kernels, r.logits, t, r.params.experts, b.logits);
        a.ids = r.experts + t * r.expert_stride;
        a.grad_weights = read_row(r.kernels, grad_weights, t, r.params.k, b.weights);
        a.grad_logits = row_to_write(r.grad_logits, t, b.grad_logits);
        a.scratch = b.scratch;
        r.kernels.route_backward(r.params, a);
        write_row(r.kernels, r.grad_logits, t, r.params.experts, b.grad_logits);
    });
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template bool route<T>(const Route<T> &);                                                      \
    template bool route_backward<T>(const Route<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
