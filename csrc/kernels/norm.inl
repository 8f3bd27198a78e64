// RMSNorm and LayerNorm of one row x [n], and their backward pass.
//
//     u = (x - m) s,   s = 1 / sqrt(v + eps),   y = u g (+ b)
//     layer: m = mean x, v = mean (x - m)^2, in two passes over the row;   rms: m = 0, v = mean x^2
//
//     dx = s (q - mean q - u mean(q u)),   q = dy g;   rms: without mean q
//     dg += dy u,   db += dy
//
// One pass (mean x^2 - m^2) would lose all digits where the mean is large beside the deviation, and
// the variance of SoLU's hidden units is 1e-6 beside numbers near 1. g includes its offset. A sum
// along the row runs over 16 lanes in the order of sum_row (scores.inl), with fma for products.
#pragma once
#include "scores.inl"

namespace ffncore {
namespace {

// Adds step(first element, elements that exist, sum) along a row, over kRouteLanes lanes: lane i
// takes the elements i, i + 16, ...; returns the sum of the lanes, as a tree. The rest of the last
// vector has to leave its lanes of the sum as they are.
template <class F, class Step>
__attribute__((always_inline)) inline typename F::T sum_along_row(int64_t n, Step step) {
    constexpr int kVectors = kRouteLanes / F::W;
    typename F::V sums[kVectors];
    for (auto &sum : sums) sum = F::zero();
    int64_t c = 0;
    for (; c + kRouteLanes <= n; c += kRouteLanes)
        for (int j = 0; j < kVectors; ++j) sums[j] = step(c + j * F::W, F::W, sums[j]);
    for (int j = 0; j < kVectors && c < n; ++j, c += F::W)
        sums[j] = step(c, n - c < F::W ? n - c : F::W, sums[j]);
    typename F::T lanes[kRouteLanes];
    for (int j = 0; j < kVectors; ++j) F::store(lanes + j * F::W, sums[j]);
    return sum_row<F>(lanes, kRouteLanes);
}

// Calls step(first element, elements) for every vector of a row.
template <class F, class Step>
__attribute__((always_inline)) inline void each_vector(int64_t n, Step step) {
    int64_t c = 0;
    for (; c + F::W <= n; c += F::W) step(c, F::W);
    if (c < n) step(c, n - c);
}

template <class F> struct Moments {
    typename F::V mean, scale;
};

template <class F>
inline Moments<F> moments(const NormParams &p, const typename F::T *x, int64_t n) {
    using T = typename F::T;
    T mean = T(0);
    if (p.centred) {
        const T sum = sum_along_row<F>(n, [&](int64_t c, int64_t left, typename F::V s) {
            return F::add(s, F::load_n(x + c, left));
        });
        mean = sum / T(n);
    }
    const auto m = F::set1(mean);
    const T squares = sum_along_row<F>(n, [&](int64_t c, int64_t left, typename F::V s) {
        const auto d = F::keep(F::first(left), F::sub(F::load_n(x + c, left), m));
        return F::fma(d, d, s);
    });
    const auto root = F::sqrt(F::set1(squares / T(n) + T(p.eps)));
    return {m, F::div(F::set1(1), root)};
}

template <class F> void norm_forward(const NormParams &p, const NormArgs<typename F::T> &args) {
    const NormArgs<typename F::T> a = args; // a copy, because vector stores may alias args
    const Moments<F> at = moments<F>(p, a.x, a.n);
    each_vector<F>(a.n, [&](int64_t c, int64_t left) {
        const auto u = F::mul(F::sub(F::load_n(a.x + c, left), at.mean), at.scale);
        auto y = F::mul(u, F::load_n(a.gain + c, left));
        if (a.bias) y = F::add(y, F::load_n(a.bias + c, left));
        F::store_n(a.y + c, y, left);
    });
}

template <class F>
void norm_backward(const NormParams &p, const NormBackwardArgs<typename F::T> &args) {
    using T = typename F::T;
    using V = typename F::V;
    const NormBackwardArgs<T> a = args;
    const Moments<F> at = moments<F>(p, a.x, a.n);
    const auto unit = [&](int64_t c, int64_t left) {
        return F::mul(F::sub(F::load_n(a.x + c, left), at.mean), at.scale);
    };
    // Beyond the row dy and g are zero, and so is their product with u.
    const auto inner = [&](int64_t c, int64_t left) {
        return F::mul(F::load_n(a.dy + c, left), F::load_n(a.gain + c, left));
    };
    if (a.dx) {
        const auto mean = F::set1(
            p.centred ? sum_along_row<F>(a.n, [&](int64_t c, int64_t left,
                                                  V s) { return F::add(s, inner(c, left)); }) /
                            T(a.n)
                      : T(0));
        const auto along = F::set1(sum_along_row<F>(a.n,
                                                    [&](int64_t c, int64_t left, V s) {
                                                        const auto keep = F::first(left);
                                                        const auto u = F::keep(keep, unit(c, left));
                                                        return F::fma(inner(c, left), u, s);
                                                    }) /
                                   T(a.n));
        each_vector<F>(a.n, [&](int64_t c, int64_t left) {
            const auto q = F::sub(inner(c, left), mean);
            F::store_n(a.dx + c, F::mul(F::fnma(unit(c, left), along, q), at.scale), left);
        });
    }
    if (a.sum_gain)
        each_vector<F>(a.n, [&](int64_t c, int64_t left) {
            const auto sum = F::load_n(a.sum_gain + c, left);
            F::store_n(a.sum_gain + c, F::fma(F::load_n(a.dy + c, left), unit(c, left), sum), left);
        });
    if (a.sum_bias)
        each_vector<F>(a.n, [&](int64_t c, int64_t left) {
            const auto sum = F::load_n(a.sum_bias + c, left);
            F::store_n(a.sum_bias + c, F::add(sum, F::load_n(a.dy + c, left)), left);
        });
}

} // namespace
} // namespace ffncore
