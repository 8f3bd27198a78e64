// Routing: each token's experts and their weights from its logits z [E]; and the gradient of z.
//
//     s = softmax(z), sigmoid(z) or sqrt(softplus(z))      scores
//     v = (s or z) + bias; experts outside the best groups have the value of the mask
//     S = the k largest v, falling; NaN comes before all numbers, a tie goes to the lowest index
//     w = factor s_S / D,   D = max(sum s_S + eps, min), or 1 without normalization
//     softmax_topk: s = z, w = factor softmax(z_S)
//
// The formulas of the backward pass are at route_backward.
//
// A warp has one token. E is some hundreds, so a lane has a few numbers of a row, lanes exchange
// numbers by shuffles, and thousands of tokens fill the GPU. Scores and values lie in shared
// memory, because a lane needs the score of any expert. The backward pass recomputes a score
// wherever it needs it, and holds none. Sums are fixed trees, so every run gives the same bits.
#pragma once
#include "epilogue.cuh"

namespace ffncore::cuda {

// In the order of ffncore_score_fn.
enum Score { kScoreSoftmax, kScoreSigmoid, kScoreSqrtSoftplus, kScoreSoftmaxTopk };

struct RouteParams {
    int score_fn;          // Score
    bool select_on_logits; // softmax_topk always selects on logits
    bool normalize;        // softmax_topk always normalizes
    bool group_max;        // a group's score is its largest value, not the sum of its largest two
    int experts, k, groups, top_groups; // top_groups == groups: all groups take part
    float eps, min, factor, group_mask;
};

// An id outside 0 ... E - 1 is no expert: its weight is 0, and it has no gradient.
struct RouteArgs {
    int64_t tokens;
    Matrix<const float> logits; // [T, E]
    const float *bias;          // [E], or nullptr
    int64_t bias_stride;
    bool given;            // ids are read, not written
    Matrix<int32_t> ids;   // [T, k]
    Matrix<float> weights; // [T, k]
    float *log_sum_exp;    // [T], or nullptr; with softmax only
    int64_t log_sum_exp_stride;
};
struct RouteBackwardArgs {
    int64_t tokens;
    Matrix<const float> logits;       // [T, E]
    Matrix<const int32_t> ids;        // [T, k], no expert twice for one token
    Matrix<const float> grad_weights; // [T, k]
    Matrix<float> grad_logits;        // [T, E]; must not be the array of logits
};

__device__ __forceinline__ int64_t token_of_warp() {
    return (int64_t)blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
}

// Calls body(i) for this lane's part of a row. An element belongs to the same lane in every loop,
// so a lane can read what it wrote without a barrier.
template <class Body> __device__ __forceinline__ void along_lanes(int n, Body body) {
    for (int i = threadIdx.x % kWarp; i < n; i += kWarp) body(i);
}

// ---- choice

// A total order: NaN comes first, then falling values; equal ones are ordered by their index.
__host__ __device__ constexpr bool comes_before(float value_a, int index_a, float value_b,
                                                int index_b) {
    const bool nan_a = value_a != value_a, nan_b = value_b != value_b;
    if (nan_a != nan_b) return nan_a;
    if (value_a > value_b) return true;
    if (value_a < value_b) return false;
    return index_a < index_b;
}

struct Candidate {
    float value;
    int index;
};
__device__ __forceinline__ bool comes_before(Candidate a, Candidate b) {
    return comes_before(a.value, a.index, b.value, b.index);
}

// These come before and after every candidate.
__device__ __forceinline__ Candidate before_all() { return {NAN, -1}; }
__device__ __forceinline__ Candidate after_all() { return {-INFINITY, INT32_MAX}; }

// The first of n values that comes after `last`, for all lanes. As the order is total, values that
// were taken before need not be marked.
__device__ __forceinline__ Candidate first_after(Candidate last, const float *values, int n) {
    Candidate first = after_all();
    along_lanes(n, [&](int i) {
        const Candidate c{values[i], i};
        if (comes_before(last, c) && comes_before(c, first)) first = c;
    });
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const Candidate other{__shfl_xor_sync(kAllLanes, first.value, step),
                              __shfl_xor_sync(kAllLanes, first.index, step)};
        if (comes_before(other, first)) first = other;
    }
    return first;
}

// Replaces values outside the best groups by the value of the mask. scores: room for a number for
// each group.
__device__ inline void mask_groups(const RouteParams &p, float *values, float *scores) {
    const int size = p.experts / p.groups, lane = threadIdx.x % kWarp;
    __syncwarp(); // several lanes have written the values of a group
    for (int g = 0; g < p.groups; ++g) {
        const Candidate first = first_after(before_all(), values + g * size, size);
        float score = first.value;
        if (!p.group_max) score += first_after(first, values + g * size, size).value;
        if (g % kWarp == lane) scores[g] = score;
    }
    Candidate last = before_all();
    for (int i = 0; i < p.top_groups; ++i) last = first_after(last, scores, p.groups);
    __syncwarp();
    along_lanes(p.experts, [&](int i) {
        const int g = i / size;
        if (comes_before(last, {scores[g], g})) values[i] = p.group_mask;
    });
}

// ---- scores and weights

__device__ __forceinline__ int expert_of(int32_t id, int experts) {
    return id >= 0 && id < experts ? id : -1;
}

// With h = e^(-|z| / 2), y = h h and q = ln(1 + y) / y, the root is h sqrt(q) where z < 0. So it is
// e^(z / 2) even where y has underflowed, and so is twice the slope, sigma(z) / root.
__device__ __forceinline__ Act sqrt_softplus(float z) {
    const float h = expf(-0.5f * fabsf(z)), y = h * h, q = y == 0 ? 1 : log1pf(y) / y;
    const float root = sqrtf(z > 0 ? fmaf(y, q, z) : q), fade = z > 0 ? 1 : h;
    return {fade * root, fade / (2 * root * (y + 1))};
}

__device__ __forceinline__ Act score_and_slope(int fn, float z) {
    if (fn == kScoreSqrtSoftplus) return sqrt_softplus(z);
    const float s = sigma(z);
    return {s, s * sigma(-z)};
}

struct Softmax {
    float largest, sum; // the largest logit, and the sum of e^(z - largest)
    __device__ __forceinline__ float of(float z) const { return expf(z - largest) / sum; }
};

// Softmax over n logits; -inf stands for an absent one. fmaxf ignores NaN; the sum does not.
template <class Logit> __device__ __forceinline__ Softmax softmax_over(int n, Logit logit) {
    float largest = -INFINITY, sum = 0;
    along_lanes(n, [&](int i) { largest = fmaxf(largest, logit(i)); });
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    along_lanes(n, [&](int i) { sum += expf(logit(i) - largest); });
    return {largest, sum_lanes<kWarp>(sum)};
}

struct Denominator {
    float value;
    bool constant; // it has no gradient
};
__device__ __forceinline__ Denominator denominator(const RouteParams &p, float sum) {
    if (!p.normalize) return {1, true};
    sum += p.eps;
    if (sum < p.min) return {p.min, true};
    return {sum, false};
}

// Whether the chosen scores are so close to zero that one cannot divide by their sum. Then they are
// e^(c z), up to a common factor, and their shares of the sum are softmax(c z).
__device__ __forceinline__ bool vanishes(const RouteParams &p, float sum) {
    constexpr float kFaint = 1e-35f; // 1 / it is normal, and so are its terms that count
    return p.normalize && p.eps == 0 && p.min == 0 && sum < kFaint;
}
__device__ __forceinline__ float exponent_of_score(int fn) {
    return fn == kScoreSqrtSoftplus ? 0.5f : 1;
}

// ---- forward

__host__ __device__ inline int route_row(const RouteParams &p) { // shared numbers of a warp
    return 2 * p.experts + p.groups;
}

template <int = 0> __global__ void route(RouteParams p, RouteArgs a) {
    const int64_t token = token_of_warp();
    if (token >= a.tokens) return;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    float *scores = (float *)shared_memory() + (int64_t)warp * route_row(p);
    float *values = scores + p.experts, *group_scores = values + p.experts;
    const bool topk = p.score_fn == kScoreSoftmaxTopk;

    const auto logit = [&](int i) { return *a.logits.at(token, i); };
    if (p.score_fn == kScoreSoftmax) {
        const Softmax all = softmax_over(p.experts, logit);
        along_lanes(p.experts, [&](int i) { scores[i] = all.of(logit(i)); });
        if (a.log_sum_exp && lane == 0)
            a.log_sum_exp[token * a.log_sum_exp_stride] = all.largest + logf(all.sum);
    } else {
        along_lanes(p.experts, [&](int i) {
            scores[i] = topk ? logit(i) : score_and_slope(p.score_fn, logit(i)).value;
        });
    }

    if (!a.given) {
        along_lanes(p.experts, [&](int i) {
            const float value = p.select_on_logits ? logit(i) : scores[i];
            values[i] = a.bias ? value + a.bias[i * a.bias_stride] : value;
        });
        if (p.top_groups < p.groups) mask_groups(p, values, group_scores);
        Candidate chosen = before_all();
        for (int slot = 0; slot < p.k; ++slot) {
            chosen = first_after(chosen, values, p.experts);
            if (slot % kWarp == lane) *a.ids.at(token, slot) = chosen.index;
        }
    }

    __syncwarp(); // from here on a lane reads scores of other lanes
    const auto expert = [&](int slot) { return expert_of(*a.ids.at(token, slot), p.experts); };
    const float c = exponent_of_score(p.score_fn);
    bool by_logits = topk;
    Softmax shares{};
    float divisor = 1;
    if (!topk) {
        float sum = 0;
        along_lanes(p.k, [&](int slot) {
            const int i = expert(slot);
            sum += i < 0 ? 0 : scores[i];
        });
        sum = sum_lanes<kWarp>(sum);
        by_logits = vanishes(p, sum);
        divisor = denominator(p, sum).value;
    }
    if (by_logits)
        shares = softmax_over(p.k, [&](int slot) {
            const int i = expert(slot);
            return i < 0 ? -INFINITY : c * logit(i);
        });
    along_lanes(p.k, [&](int slot) {
        const int i = expert(slot);
        float weight = 0; // a share cannot be used here: without any expert it is 0 / 0
        if (i >= 0) weight = (by_logits ? shares.of(c * logit(i)) : scores[i] / divisor) * p.factor;
        *a.weights.at(token, slot) = weight;
    });
}

// ---- backward

// With g = dL/dw, a = factor / D and G = sum g s_S. The choice has no gradient.
//
//     ds_S = a (g - G / D);   D constant (no normalization, or min reached): ds_S = a g
//     sigmoid, sqrtsoftplus: dz_S = ds_S s'(z_S), all else 0
//     softmax: dz = s (ds - r) for all E, with ds = 0 outside S and r = sum ds s, which is a G
//     where D is constant, else a G eps / D. So without eps r is exactly 0, and only S has a
//     gradient
//     softmax_topk: with s = softmax(z_S), dz_S = factor s (g - G)
template <int = 0> __global__ void route_backward(RouteParams p, RouteBackwardArgs a) {
    const int64_t token = token_of_warp();
    if (token >= a.tokens) return;
    const bool all = p.score_fn == kScoreSoftmax; // every logit has a gradient
    const bool topk = p.score_fn == kScoreSoftmaxTopk;

    const auto logit = [&](int i) { return *a.logits.at(token, i); };
    const auto expert = [&](int slot) { return expert_of(*a.ids.at(token, slot), p.experts); };
    const float c = exponent_of_score(p.score_fn);
    bool by_logits = topk;
    Softmax everyone{}, shares{};
    if (all) everyone = softmax_over(p.experts, logit);
    const auto find_shares = [&] {
        shares = softmax_over(p.k, [&](int slot) {
            const int i = expert(slot);
            return i < 0 ? -INFINITY : c * logit(i);
        });
    };
    if (topk) find_shares();
    const auto score = [&](int i) { // for softmax, slope is the factor of ds - r, which is s
        if (by_logits) {
            const float share = shares.of(c * logit(i));
            return Act{share, c * share};
        }
        if (!all) return score_and_slope(p.score_fn, logit(i));
        const float s = everyone.of(logit(i));
        return Act{s, s};
    };

    float sum = 0, total = 0;
    const auto add_up = [&] {
        sum = total = 0;
        along_lanes(p.k, [&](int slot) {
            const int i = expert(slot);
            if (i < 0) return;
            const float s = score(i).value;
            sum += s;
            total = fmaf(*a.grad_weights.at(token, slot), s, total);
        });
        sum = sum_lanes<kWarp>(sum);
        total = sum_lanes<kWarp>(total);
    };
    add_up();
    if (!topk && vanishes(p, sum)) {
        by_logits = true;
        find_shares();
        add_up();
    }

    float scale = p.factor, mean = total, shared = 0;
    if (!by_logits) {
        const Denominator d = denominator(p, sum);
        scale = p.factor / d.value;
        mean = d.constant ? 0 : total / d.value;
        if (all && d.constant) shared = scale * total;
        if (all && !d.constant && p.eps != 0) shared = scale * mean * p.eps;
    }

    along_lanes(p.experts, [&](int i) {
        *a.grad_logits.at(token, i) = all ? everyone.of(logit(i)) * (0 - shared) : 0;
    });
    __syncwarp(); // gradients of chosen experts, which any lane may have written, are written again
    along_lanes(p.k, [&](int slot) {
        const int i = expert(slot);
        if (i < 0) return;
        const float grad = *a.grad_weights.at(token, slot);
        *a.grad_logits.at(token, i) = (scale * (grad - mean) - shared) * score(i).slope;
    });
}

// ---- launching

constexpr int kRouteWarps = 4; // warps of a block; 16 such blocks fill a multiprocessor

inline void launch_route(const RouteParams &p, const RouteArgs &a, cudaStream_t stream) {
    // With many experts a block has fewer tokens, so that its shared memory is available on every
    // GPU.
    constexpr int kSharedOfABlock = 48 << 10;
    const int bytes = route_row(p) * (int)sizeof(float);
    int warps = kRouteWarps;
    while (warps > 1 && warps * bytes > kSharedOfABlock) warps /= 2;
    launch(route<>, {ceil_div<int64_t>(a.tokens, warps)}, warps * kWarp, warps * bytes, stream, p,
           a);
}
inline void launch_route_backward(const RouteParams &p, const RouteBackwardArgs &a,
                                  cudaStream_t stream) {
    launch(route_backward<>, {ceil_div<int64_t>(a.tokens, kRouteWarps)}, kRouteWarps * kWarp, 0,
           stream, p, a);
}

} // namespace ffncore::cuda
