// Routing of one token: the scores of E experts, the choice of k of them, their weights; and the
// backward pass.
//
//     s = softmax(z), sigmoid(z) or sqrt(softplus(z))      scores
//     v = (s or z) + bias; experts outside the best groups have the value of the mask
//     S = the k largest v; NaN comes before all numbers, a tie goes to the lowest index
//     w = factor s_S / D,   D = max(sum s_S + eps, min), or 1 without normalization
//     softmax_topk: v = z + bias, w = factor softmax(z_S)
//     D nearly 0, with neither eps nor min: w = factor softmax(c z_S), see shares_of_logits
//
// Backward, with g = dL/dw, a = factor / D and G = sum g s_S. The choice has no gradient.
//     ds_S = a (g - G / D);   D constant (no normalization, or min reached): ds_S = a g
//     sigmoid, sqrtsoftplus: dz_S = ds_S s'(z_S), all else 0
//     softmax: dz = s (ds - r) for all E, with ds = 0 outside S and r = sum ds s, which is a G
//     where D is constant, else a G eps / D. So without eps r is exactly 0, and only S has a
//     gradient.
//
// Rows are first copied to scratch memory, padded to whole groups of 16, so that no loop has a
// tail.
#pragma once
#include "activation_kinds.inl"

#include "scores.inl"

namespace ffncore {
namespace {

enum ScoreFn { kSoftmax, kSigmoid, kSqrtSoftplus, kSoftmaxTopk }; // as ffncore_score_fn

template <class T> constexpr T kInfinity = T(__builtin_inf());

// Copies n elements and pads them.
template <class T> inline void copy_row(const T *from, int64_t n, T padding, T *to) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    for (int64_t i = n; i < whole_lanes(n); ++i) to[i] = padding;
}

// Copies the numbers of the chosen experts. Slots without an expert, and padding, get `none`.
template <class T> inline void gather(const T *from, const int32_t *ids, int64_t k, T none, T *to) {
    for (int64_t j = 0; j < k; ++j) to[j] = ids[j] < 0 ? none : from[ids[j]];
    for (int64_t j = k; j < whole_lanes(k); ++j) to[j] = none;
}

// ---- choice

// NaN counts as larger than any number, so that it is chosen and seen. Equal numbers keep their
// order.
template <class T> inline bool larger(T a, T b) { return a > b || (a != a && b == b); }

// Inserts a value behind those that are not smaller; the last of `length` entries is dropped.
template <class T> inline void insert(T *best, int32_t *ids, int64_t length, T value, int64_t id) {
    int64_t j = length - 1;
    for (; j > 0 && larger(value, best[j - 1]); --j) {
        best[j] = best[j - 1];
        ids[j] = ids[j - 1];
    }
    best[j] = value;
    ids[j] = (int32_t)id;
}

// The number of bits that are set. (For the builtin, a compiler calls a function where it may not
// use the instruction.)
inline int ones(uint32_t x) {
    x -= x >> 1 & 0x55555555;
    x = (x & 0x33333333) + (x >> 2 & 0x33333333);
    return (int)(((x + (x >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24);
}

// Chooses the k largest of n for k up to 16, as it nearly always is. First it takes the largest
// number of each of the 16 lanes; the k-th largest of these is a bound that every chosen number
// reaches. Few others reach it: 11 in all where 8 of 256 are chosen. Those that do are put in order
// by counting how many come before each. So hardly a branch depends on the numbers. Returns false
// if there is a NaN, or if more numbers reach the bound than fit.
template <class F>
inline bool choose_few(const typename F::T *values, int64_t n, int64_t k, int32_t *ids) {
    using T = typename F::T;
    constexpr int kVectors = kRouteLanes / F::W, kFew = 32, kWord = 64;
    if (k > kRouteLanes) return false;
    typename F::V most[kVectors];
    for (auto &m : most) m = F::set1(-kInfinity<T>);
    auto nan = F::first(0);
    for (int64_t c = 0; c < n; c += kRouteLanes)
        for (int j = 0; j < kVectors; ++j) {
            const auto x = F::load(values + c + j * F::W);
            nan = F::either(nan, F::unordered(x, x));
            most[j] = F::max_(x, most[j]);
        }
    if (F::any(nan)) return false;
    T lanes[kRouteLanes], bound = -kInfinity<T>;
    for (int j = 0; j < kVectors; ++j) F::store(lanes + j * F::W, most[j]);
    for (const T lane : lanes) {
        uint32_t reach = 0;
        for (int j = 0; j < kVectors; ++j)
            reach |= F::bits(F::ge(most[j], F::set1(lane))) << (j * F::W);
        bound = ones(reach) >= k && lane > bound ? lane : bound;
    }

    T found[kFew + kWord];
    int32_t at[kFew + kWord], order[kFew];
    int64_t count = 0;
    for (int64_t c = 0; c < n; c += kWord) {
        uint64_t open = 0;
        for (int64_t j = 0; j < kWord && c + j < n; j += F::W)
            open |= (uint64_t)F::bits(F::ge(F::load(values + c + j), F::set1(bound))) << j;
        if (c + kWord > n) open &= ~uint64_t(0) >> (c + kWord - n);
        for (; open; open &= open - 1, ++count) {
            at[count] = (int32_t)(c + __builtin_ctzll(open));
            found[count] = values[at[count]];
        }
        if (count > kFew) return false;
    }
    for (int64_t i = count; i < kFew; ++i) found[i] = -kInfinity<T>;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t larger = 0, equal = 0;
        for (int j = 0; j < kFew; j += F::W) {
            const auto x = F::load(found + j), mine = F::set1(found[i]);
            larger |= F::bits(F::gt(x, mine)) << j;
            equal |= F::bits(F::eq(x, mine)) << j;
        }
        order[ones(larger | (equal & ((uint32_t(1) << i) - 1)))] = at[i];
    }
    for (int64_t j = 0; j < k; ++j) ids[j] = order[j];
    return true;
}

// Chooses the k largest of n, in order; padding is not above any value. Where choose_few cannot,
// the numbers of a vector are looked at only if one of them is larger than the k-th one so far.
template <class F>
inline void choose(const typename F::T *values, int64_t n, int64_t k, typename F::T *best,
                   int32_t *ids) {
    if (choose_few<F>(values, n, k, ids)) return;
    constexpr uint32_t kAll = (uint32_t)((uint64_t(1) << F::W) - 1);
    for (int64_t i = 0; i < k; ++i) insert(best, ids, i + 1, values[i], i);
    for (int64_t c = k / F::W * F::W; c < n; c += F::W) {
        const auto not_larger = F::le(F::load(values + c), F::set1(best[k - 1]));
        uint32_t open = kAll & ~F::bits(not_larger);
        if (c < k) open &= kAll << (k - c);
        if (c + F::W > n) open &= kAll >> (c + F::W - n);
        for (; open; open &= open - 1) {
            const int64_t i = c + __builtin_ctz(open);
            if (larger(values[i], best[k - 1])) insert(best, ids, k, values[i], i);
        }
    }
}

// The largest value of a group, or the sum of its largest two; NaN if it has a NaN. Each lane keeps
// its own largest two, then the lanes are combined as a tree. The result does not depend on the
// order.
template <class F>
inline typename F::T group_score(const typename F::T *values, int64_t n, bool max) {
    using T = typename F::T;
    auto first = F::set1(-kInfinity<T>), second = first;
    auto nan = F::first(0);
    for (int64_t c = 0; c < n; c += F::W) {
        const int64_t left = n - c < F::W ? n - c : F::W;
        const auto x =
            F::select(F::first(left), F::load_n(values + c, left), F::set1(-kInfinity<T>));
        nan = F::either(nan, F::unordered(x, x));
        second = F::max_(second, F::min_(first, x));
        first = F::max_(first, x);
    }
    if (F::any(nan)) return T(__builtin_nan(""));
    T a[F::W], b[F::W];
    F::store(a, first);
    F::store(b, second);
    const auto larger = [](T x, T y) { return x > y ? x : y; };
    for (int half = F::W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) {
            const T smaller = a[i] > a[i + half] ? a[i + half] : a[i];
            b[i] = larger(smaller, larger(b[i], b[i + half]));
            a[i] = larger(a[i], a[i + half]);
        }
    return max ? a[0] : a[0] + b[0];
}

// Writes the values of the best groups to `masked`, and the value of the mask elsewhere. room:
// scratch memory of three rows.
template <class F>
inline void mask_groups(const RouteParams &p, const typename F::T *values, typename F::T *masked,
                        typename F::T *room) {
    using T = typename F::T;
    const int64_t size = p.experts / p.groups, row = whole_lanes(p.experts);
    T *scores = room, *best = room + row;
    int32_t *ids = (int32_t *)(room + 2 * row);
    for (int64_t g = 0; g < p.groups; ++g)
        scores[g] = group_score<F>(values + g * size, size, p.group_max);
    for (int64_t g = p.groups; g < whole_lanes(p.groups); ++g) scores[g] = -kInfinity<T>;
    choose<F>(scores, p.groups, p.top_groups, best, ids);
    for (int64_t i = 0; i < row; ++i) masked[i] = i < p.experts ? T(p.group_mask) : -kInfinity<T>;
    for (int64_t g = 0; g < p.top_groups; ++g)
        for (int64_t i = 0, at = ids[g] * size; i < size; ++i) masked[at + i] = values[at + i];
}

// ---- weights

template <class F> inline void scores_of(int fn, typename F::T *row, int64_t n) {
    if (fn == kSigmoid)
        along_row<F>(n,
                     [&](int64_t c) { F::store(row + c, Sigmoid::value<F>(0, F::load(row + c))); });
    else
        along_row<F>(
            n, [&](int64_t c) { F::store(row + c, SqrtSoftplus::value<F>(F::load(row + c))); });
}

template <class T> struct Denominator {
    T value;
    bool constant; // it has no gradient
};

template <class T> inline Denominator<T> denominator(const RouteParams &p, T sum) {
    if (!p.normalize) return {T(1), true};
    sum += T(p.eps);
    if (sum < T(p.min)) return {T(p.min), true};
    return {sum, false};
}

// Whether the chosen scores are so close to zero that one cannot divide by their sum.
template <class T> inline bool vanishes(const RouteParams &p, T sum) {
    return p.normalize && T(p.eps) == T(0) && T(p.min) == T(0) && sum < Constants<T>::kFaint;
}

// The c for which such a small score is s = e^(c z), up to a common factor.
inline double exponent_of_score(int fn) { return fn == kSqrtSoftplus ? 0.5 : 1; }

// The chosen scores divided by their sum, computed from the logits: softmax(c z_S).
template <class F>
inline void shares_of_logits(const RouteParams &p, const typename F::T *logits, const int32_t *ids,
                             typename F::T *shares) {
    using T = typename F::T;
    const int64_t slots = whole_lanes(p.k);
    gather(logits, ids, p.k, -kInfinity<T>, shares);
    const T c = T(exponent_of_score(p.score_fn));
    for (int64_t j = 0; j < slots; ++j) shares[j] *= c;
    softmax<F>(shares, slots);
}

template <class F> void route(const RouteParams &p, const RouteArgs<typename F::T> &args) {
    using T = typename F::T;
    const RouteArgs<T> a = args; // a copy, because vector stores may alias args
    const int64_t n = p.experts, row = whole_lanes(n), k = p.k, slots = whole_lanes(k);
    T *z = a.scratch, *s = z + row, *v = s + row, *masked = v + row, *room = masked + row;
    T *picked = a.scratch + kRouteExpertRows * row, *best = picked + slots;

    copy_row(a.logits, n, -kInfinity<T>, z);
    if (p.score_fn != kSoftmaxTopk) {
        copy_row(a.logits, n, -kInfinity<T>, s);
        if (p.score_fn == kSoftmax) {
            const SoftmaxParts<T> parts = softmax<F>(s, row);
            if (a.log_sum_exp) *a.log_sum_exp = T((double)parts.largest + log((double)parts.sum));
        } else {
            scores_of<F>(p.score_fn, s, row);
        }
    }
    if (!a.given) {
        T *values = p.select_on_logits || p.score_fn == kSoftmaxTopk ? z : s;
        if (a.bias) {
            for (int64_t i = 0; i < n; ++i) v[i] = values[i] + a.bias[i];
            for (int64_t i = n; i < row; ++i) v[i] = -kInfinity<T>;
            values = v;
        }
        if (p.top_groups < p.groups) {
            mask_groups<F>(p, values, masked, room);
            values = masked;
        }
        choose<F>(values, n, k, best, a.ids);
    }
    T divisor = T(1);
    bool by_logits = p.score_fn == kSoftmaxTopk;
    if (!by_logits) {
        gather(s, a.ids, k, T(0), picked);
        const T sum = sum_row<F>(picked, slots);
        by_logits = vanishes(p, sum);
        if (!by_logits) divisor = denominator(p, sum).value;
    }
    if (by_logits) shares_of_logits<F>(p, z, a.ids, picked);
    along_row<F>(slots, [&](int64_t c) {
        auto share = F::div(F::load(picked + c), F::set1(divisor));
        F::store(picked + c, F::mul(share, F::set1(T(p.factor))));
    });
    for (int64_t j = 0; j < k; ++j) a.weights[j] = a.ids[j] < 0 ? T(0) : picked[j];
}

// ---- backward

// x = x * y, elementwise; returns the sum.
template <class F>
inline typename F::T dot_row(typename F::T *x, const typename F::T *y, int64_t n) {
    along_row<F>(n, [&](int64_t c) { F::store(x + c, F::mul(F::load(x + c), F::load(y + c))); });
    return sum_row<F>(x, n);
}

template <class F>
void route_backward(const RouteParams &p, const RouteBackwardArgs<typename F::T> &args) {
    using T = typename F::T;
    const RouteBackwardArgs<T> a = args;
    const int64_t n = p.experts, row = whole_lanes(n), k = p.k, slots = whole_lanes(k);
    T *probabilities = a.scratch, *grad = a.scratch + kRouteExpertRows * row;
    T *score = grad + slots, *slope = score + slots, *product = slope + slots;

    for (int64_t j = 0; j < slots; ++j)
        product[j] = grad[j] = j < k && a.ids[j] >= 0 ? a.grad_weights[j] : T(0);
    const T factor = T(p.factor);
    T scale = factor, mean, shared = T(0);
    bool by_logits = p.score_fn == kSoftmaxTopk;
    if (!by_logits) {
        if (p.score_fn == kSoftmax) {
            copy_row(a.logits, n, -kInfinity<T>, probabilities);
            softmax<F>(probabilities, row);
            gather(probabilities, a.ids, k, T(0), score);
        } else {
            gather(a.logits, a.ids, k, T(0), score);
            along_row<F>(slots, [&](int64_t c) {
                typename F::V value, derivative;
                if (p.score_fn == kSigmoid)
                    Sigmoid::both<F>(0, F::load(score + c), value, derivative);
                else
                    SqrtSoftplus::both<F>(F::load(score + c), value, derivative);
                F::store(score + c, value);
                F::store(slope + c, derivative);
            });
            for (int64_t j = 0; j < slots; ++j)
                if (j >= k || a.ids[j] < 0) score[j] = T(0);
        }
        const T sum = sum_row<F>(score, slots);
        by_logits = vanishes(p, sum);
        if (!by_logits) {
            const Denominator<T> d = denominator(p, sum);
            const T total = dot_row<F>(product, score, slots), eps = T(p.eps);
            scale = factor / d.value;
            mean = d.constant ? T(0) : total / d.value;
            if (p.score_fn == kSoftmax) {
                if (d.constant)
                    shared = scale * total;
                else if (eps != 0)
                    shared = scale * mean * eps;
            }
        }
    }
    if (by_logits) {
        shares_of_logits<F>(p, a.logits, a.ids, score);
        mean = dot_row<F>(product, score, slots);
        const T c = T(exponent_of_score(p.score_fn));
        for (int64_t j = 0; j < slots; ++j) slope[j] = c * score[j];
    }

    const bool all = p.score_fn == kSoftmax; // every logit has a gradient
    const T others = T(0) - shared;
    for (int64_t i = 0; i < n; ++i) a.grad_logits[i] = all ? probabilities[i] * others : T(0);
    for (int64_t j = 0; j < k; ++j) {
        if (a.ids[j] < 0) continue;
        const T grad_score = scale * (grad[j] - mean) - shared;
        a.grad_logits[a.ids[j]] = grad_score * (all ? score[j] : slope[j]);
    }
}

} // namespace
} // namespace ffncore
