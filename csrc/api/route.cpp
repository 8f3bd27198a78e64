// The C ABI of routing: validates the arguments and turns them into those of ops/routing.
#include "../include/ffncore.h"

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "../core/cpu.h"
#include "../ops/routing/route.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

namespace {

// Logits are [T, E], of float32 or float64.
void check_logits(const ffncore_matrix &m) {
    require(m.dtype == FFNCORE_FLOAT32 || m.dtype == FFNCORE_FLOAT64,
            "logits.dtype is %s; expected float32 or float64", dtype_name(m.dtype));
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    require(m.rows >= 0 && m.cols >= 1 && m.cols <= kMost,
            "logits has shape (%" PRId64 ", %" PRId64 "); expected (T, E), E from 1 to 2^31 - 1",
            m.rows, m.cols);
    check_sizes("logits", m.rows, m.cols);
    check_matrix("logits", m, m.rows, m.cols);
}

void check_like_logits(const char *name, const ffncore_matrix &m, int64_t cols,
                       const ffncore_matrix &logits) {
    check_sizes(name, logits.rows, cols);
    check_matrix(name, m, logits.rows, cols);
    check_same_dtype(name, m.dtype, logits.dtype);
}

// The parameters by which weights are computed from scores.
RouteParams weighting(const ffncore_router &r, int64_t experts, int64_t k) {
    check_size("router", r.size, sizeof r);
    require(r.score_fn >= FFNCORE_SCORE_SOFTMAX && r.score_fn <= FFNCORE_SCORE_SOFTMAX_TOPK,
            "router.score_fn is %" PRId32 "; expected 0 to 3", r.score_fn);
    require(r.norm_eps >= 0 && r.norm_min >= 0,
            "router has norm_eps %g and norm_min %g; expected no negative number", r.norm_eps,
            r.norm_min);
    require(std::isfinite(r.routed_scaling_factor),
            "router.routed_scaling_factor is %g; expected a finite number",
            r.routed_scaling_factor);
    require(k >= 1, "weights has shape (T, %" PRId64 "); expected at least one expert a token", k);
    RouteParams p{};
    p.score_fn = r.score_fn;
    p.normalize = r.norm_topk_prob != 0;
    p.experts = experts;
    p.k = k;
    p.groups = p.top_groups = 1;
    p.eps = r.norm_eps;
    p.min = r.norm_min;
    p.factor = r.routed_scaling_factor;
    return p;
}

// Adds the parameters by which experts are chosen.
void add_choice(const ffncore_router &r, int32_t dtype, RouteParams &p) {
    require(r.n_group >= 1 && p.experts % r.n_group == 0,
            "router.n_group is %" PRId64 "; expected a divisor of %" PRId64 " experts", r.n_group,
            p.experts);
    require(r.topk_group >= 1 && r.topk_group <= r.n_group,
            "router.topk_group is %" PRId64 "; expected 1 to %" PRId64, r.topk_group, r.n_group);
    require(r.group_score == FFNCORE_GROUP_TOP2_SUM || r.group_score == FFNCORE_GROUP_MAX,
            "router.group_score is %" PRId32 "; expected 0 or 1", r.group_score);
    const int64_t size = p.experts / r.n_group, left = r.topk_group * size;
    require(r.n_group == 1 || size > 1 || r.group_score == FFNCORE_GROUP_MAX,
            "router.n_group makes groups of one expert; expected at least two for "
            "FFNCORE_GROUP_TOP2_SUM");
    require(p.k <= left, "k is %" PRId64 "; expected at most %" PRId64 " experts", p.k, left);
    const ffncore_vector &bias = r.e_score_correction_bias;
    check_vector("router.e_score_correction_bias", bias, p.experts);
    if (bias.data) check_same_dtype("router.e_score_correction_bias", bias.dtype, dtype);
    p.select_on_logits = r.select_on_logits != 0;
    p.groups = r.n_group;
    p.top_groups = r.topk_group;
    p.group_max = r.group_score == FFNCORE_GROUP_MAX;
    p.group_mask = r.group_mask_value;
}

void check_experts(const int32_t *experts, int64_t stride, const RouteParams &p, int64_t tokens,
                   bool given) {
    require(experts || tokens == 0, "experts is NULL");
    for (int64_t t = 0; given && t < tokens; ++t)
        for (int64_t j = 0; j < p.k; ++j) {
            const int32_t id = experts[t * stride + j];
            require(id >= -1 && id < p.experts,
                    "experts has %" PRId32 " at (%" PRId64 ", %" PRId64
                    "); expected -1 to %" PRId64,
                    id, t, j, p.experts - 1);
        }
}

template <class T>
Route<T> route_of(const ffncore_matrix &logits, const RouteParams &params, int32_t *experts,
                  int64_t stride, const ffncore_matrix &weights) {
    Route<T> r{kernels<T>(logits.dtype), routing_threads(logits.rows * logits.cols), params};
    r.tokens = logits.rows;
    r.logits = input(logits);
    r.experts = experts;
    r.expert_stride = stride;
    r.weights = output(weights);
    return r;
}

template <class T>
ffncore_status run(const char *op, int32_t dtype, const Route<T> &r,
                   bool (*routine)(const Route<T> &)) {
    if (r.tokens == 0) return FFNCORE_OK;
    std::optional<Line> line;
    if (verbose())
        line.emplace(op, dtype, false, r.threads,
                     "tokens=" + std::to_string(r.tokens) + " experts=" +
                         std::to_string(r.params.experts) + " k=" + std::to_string(r.params.k));
    return routine(r) ? FFNCORE_OK : fail(FFNCORE_OUT_OF_MEMORY, "out of memory for the workspace");
}

template <class T> ffncore_status forward(const ffncore_route_args &a) {
    const ffncore_router &router = a.router;
    RouteParams params = weighting(router, a.logits.cols, a.weights.cols);
    if (!a.experts_given) add_choice(router, a.logits.dtype, params);
    check_like_logits("weights", a.weights, params.k, a.logits);
    check_experts(a.experts, a.expert_stride, params, a.logits.rows, a.experts_given);
    const ffncore_vector &log_sum_exp = a.log_sum_exp;
    check_vector("log_sum_exp", log_sum_exp, a.logits.rows);
    if (log_sum_exp.data) {
        check_same_dtype("log_sum_exp", log_sum_exp.dtype, a.logits.dtype);
        require(router.score_fn == FFNCORE_SCORE_SOFTMAX,
                "log_sum_exp is given; expected it only with FFNCORE_SCORE_SOFTMAX");
    }
    Route<T> r = route_of<T>(a.logits, params, a.experts, a.expert_stride, a.weights);
    Biases<T> biases(r.kernels);
    r.given = a.experts_given != 0;
    r.bias = r.given ? nullptr : biases.contiguous(router.e_score_correction_bias);
    r.log_sum_exp = output(log_sum_exp);
    return run("route", a.logits.dtype, r, route<T>);
}

template <class T> ffncore_status backward(const ffncore_route_backward_args &a) {
    const RouteParams params = weighting(a.router, a.logits.cols, a.grad_weights.cols);
    check_like_logits("grad_weights", a.grad_weights, params.k, a.logits);
    check_like_logits("grad_logits", a.grad_logits, params.experts, a.logits);
    check_experts(a.experts, a.expert_stride, params, a.logits.rows, true);
    Route<T> r = route_of<T>(a.logits, params, const_cast<int32_t *>(a.experts), a.expert_stride,
                             a.grad_weights);
    r.grad_logits = output(a.grad_logits);
    return run("route_backward", a.logits.dtype, r, route_backward<T>);
}

template <class Args, class Run> ffncore_status with_args(const Args *args, const Run &run) {
    return guarded([&] {
        require(args, "args is NULL");
        check_size("args", args->size, sizeof *args);
        check_logits(args->logits);
        return with_dtype("logits.dtype", args->logits.dtype, run);
    });
}

} // namespace

void ffncore_router_init(ffncore_router *r, int32_t score_fn) {
    if (!r) return;
    *r = ffncore_router{};
    r->size = sizeof *r;
    r->score_fn = score_fn;
    r->norm_topk_prob = 1;
    r->n_group = r->topk_group = 1;
    r->group_mask_value = -std::numeric_limits<double>::infinity();
    r->routed_scaling_factor = 1;
}

ffncore_status ffncore_route(const ffncore_route_args *args) {
    return with_args(args, [&](auto t) { return forward<decltype(t)>(*args); });
}

ffncore_status ffncore_route_backward(const ffncore_route_backward_args *args) {
    return with_args(args, [&](auto t) { return backward<decltype(t)>(*args); });
}
