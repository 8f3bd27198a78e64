// The C ABI of routing: validates the arguments and turns them into those of the kernels. See
// ffncore_cuda.h.
#include "check.h"
#include "route.cuh"

namespace ffncore::cuda {
namespace {

// Scores, values and groups of a token lie in shared memory. A block can have this much on every
// GPU; sm_89 has the least.
constexpr int64_t kMostRoutedBytes = 99 << 10;

void check_like_logits(const char *name, const ffncore_matrix &m, int64_t cols,
                       const ffncore_matrix &logits) {
    check_sizes(name, logits.rows, cols);
    check_matrix(name, m, logits.rows, cols);
    check_same_dtype(name, m.dtype, FFNCORE_FLOAT32);
}

// The parameters by which weights are computed from scores.
RouteParams weighting(const ffncore_router &r, const ffncore_matrix &logits, int64_t k) {
    check_struct("router", r.size, sizeof r);
    FFNCORE_REQUIRE(logits.rows >= 0 && logits.cols >= 1 && logits.cols <= INT32_MAX,
                    "logits has shape (%" PRId64 ", %" PRId64
                    "); expected (T, E), E from 1 to 2^31 - 1",
                    logits.rows, logits.cols);
    check_sizes("logits", logits.rows, logits.cols);
    check_matrix("logits", logits, logits.rows, logits.cols);
    check_same_dtype("logits", logits.dtype, FFNCORE_FLOAT32);
    FFNCORE_REQUIRE(r.score_fn >= FFNCORE_SCORE_SOFTMAX && r.score_fn <= FFNCORE_SCORE_SOFTMAX_TOPK,
                    "router.score_fn is %" PRId32 "; expected 0 to 3", r.score_fn);
    FFNCORE_REQUIRE(r.norm_eps >= 0 && r.norm_min >= 0,
                    "router has norm_eps %g and norm_min %g; expected no negative number",
                    r.norm_eps, r.norm_min);
    FFNCORE_REQUIRE(std::isfinite(r.routed_scaling_factor),
                    "router.routed_scaling_factor is %g; expected a finite number",
                    r.routed_scaling_factor);
    FFNCORE_REQUIRE(k >= 1 && k <= INT32_MAX,
                    "weights has shape (T, %" PRId64 "); expected at least one expert a token", k);
    RouteParams p{};
    p.score_fn = r.score_fn;
    p.select_on_logits = r.score_fn == FFNCORE_SCORE_SOFTMAX_TOPK;
    p.normalize = r.norm_topk_prob != 0;
    p.experts = (int)logits.cols;
    p.k = (int)k;
    p.groups = p.top_groups = 1;
    p.eps = (float)r.norm_eps;
    p.min = (float)r.norm_min;
    p.factor = (float)r.routed_scaling_factor;
    return p;
}

// Adds the parameters by which experts are chosen.
void add_choice(const ffncore_router &r, RouteParams &p) {
    FFNCORE_REQUIRE(r.n_group >= 1 && p.experts % r.n_group == 0,
                    "router.n_group is %" PRId64 "; expected a divisor of %d experts", r.n_group,
                    p.experts);
    FFNCORE_REQUIRE(r.topk_group >= 1 && r.topk_group <= r.n_group,
                    "router.topk_group is %" PRId64 "; expected 1 to %" PRId64, r.topk_group,
                    r.n_group);
    FFNCORE_REQUIRE(r.group_score == FFNCORE_GROUP_TOP2_SUM || r.group_score == FFNCORE_GROUP_MAX,
                    "router.group_score is %" PRId32 "; expected 0 or 1", r.group_score);
    const int64_t size = p.experts / r.n_group, left = r.topk_group * size;
    FFNCORE_REQUIRE(r.n_group == 1 || size > 1 || r.group_score == FFNCORE_GROUP_MAX,
                    "router.n_group makes groups of one expert; expected at least two for "
                    "FFNCORE_GROUP_TOP2_SUM");
    FFNCORE_REQUIRE(p.k <= left, "k is %d; expected at most %" PRId64 " experts", p.k, left);
    const ffncore_vector &bias = r.e_score_correction_bias;
    check_vector("router.e_score_correction_bias", bias, p.experts);
    if (bias.data) check_same_dtype("router.e_score_correction_bias", bias.dtype, FFNCORE_FLOAT32);
    p.select_on_logits = p.select_on_logits || r.select_on_logits;
    p.groups = (int)r.n_group;
    p.top_groups = (int)r.topk_group;
    p.group_max = r.group_score == FFNCORE_GROUP_MAX;
    p.group_mask = (float)r.group_mask_value;
}

template <class T> Matrix<T> ids_of(T *ids, int64_t stride, int64_t tokens) {
    FFNCORE_REQUIRE(ids || tokens == 0, "experts is NULL");
    return {ids, stride, 1, 0};
}

void forward(const ffncore_route_args &a, const ffncore_cuda_call &call) {
    RouteParams p = weighting(a.router, a.logits, a.weights.cols);
    if (!a.experts_given) add_choice(a.router, p);
    FFNCORE_REQUIRE(route_row(p) * (int64_t)sizeof(float) <= kMostRoutedBytes,
                    "logits has %d experts; expected at most about %d on a GPU", p.experts,
                    (int)(kMostRoutedBytes / sizeof(float) / 2));
    check_like_logits("weights", a.weights, p.k, a.logits);
    const ffncore_vector &log_sum_exp = a.log_sum_exp;
    check_vector("log_sum_exp", log_sum_exp, a.logits.rows);
    if (log_sum_exp.data) {
        check_same_dtype("log_sum_exp", log_sum_exp.dtype, FFNCORE_FLOAT32);
        FFNCORE_REQUIRE(a.router.score_fn == FFNCORE_SCORE_SOFTMAX,
                        "log_sum_exp is given; expected it only with FFNCORE_SCORE_SOFTMAX");
    }
    RouteArgs args{};
    args.tokens = a.logits.rows;
    args.logits = matrix_of<const float>(a.logits);
    args.given = a.experts_given != 0;
    if (!args.given) {
        args.bias = (const float *)a.router.e_score_correction_bias.data;
        args.bias_stride = a.router.e_score_correction_bias.stride;
    }
    args.ids = ids_of(a.experts, a.expert_stride, args.tokens);
    args.weights = matrix_of<float>(a.weights);
    args.log_sum_exp = (float *)log_sum_exp.data;
    args.log_sum_exp_stride = log_sum_exp.stride;
    queue(call, [&](cudaStream_t stream) {
        if (args.given)
            check_ids("experts", a.experts, a.expert_stride, args.tokens, p.k, p.experts, stream);
        launch_route(p, args, stream);
    });
}

void backward(const ffncore_route_backward_args &a, const ffncore_cuda_call &call) {
    const RouteParams p = weighting(a.router, a.logits, a.grad_weights.cols);
    check_like_logits("grad_weights", a.grad_weights, p.k, a.logits);
    check_like_logits("grad_logits", a.grad_logits, p.experts, a.logits);
    RouteBackwardArgs args{};
    args.tokens = a.logits.rows;
    args.logits = matrix_of<const float>(a.logits);
    args.ids = ids_of(a.experts, a.expert_stride, args.tokens);
    args.grad_weights = matrix_of<const float>(a.grad_weights);
    args.grad_logits = matrix_of<float>(a.grad_logits);
    queue(call, [&](cudaStream_t stream) {
        check_ids("experts", a.experts, a.expert_stride, args.tokens, p.k, p.experts, stream);
        launch_route_backward(p, args, stream);
    });
}

template <class Args>
ffncore_status run(const Args *args, const ffncore_cuda_call *call,
                   void (*pass)(const Args &, const ffncore_cuda_call &)) {
    return guarded([&] {
        FFNCORE_REQUIRE(args, "args is NULL");
        check_struct("args", args->size, sizeof *args);
        check_call(call);
        pass(*args, *call);
    });
}

} // namespace
} // namespace ffncore::cuda

using namespace ffncore::cuda;

ffncore_status ffncore_cuda_route(const ffncore_route_args *args, const ffncore_cuda_call *call) {
    return run(args, call, forward);
}
ffncore_status ffncore_cuda_route_backward(const ffncore_route_backward_args *args,
                                           const ffncore_cuda_call *call) {
    return run(args, call, backward);
}
