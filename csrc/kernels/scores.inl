// The scores of a router other than the logistic function: sqrt(softplus(z)), and softmax along a
// row with the logarithm of its denominator.
//
//     softplus(z) = max(z, 0) + y q,   y = e^-|z|,   q = ln(1 + y) / y
//     ln(1 + y) = 2 (s + s^3 / 3 + s^5 / 5 + ...),   s = y / (2 + y) <= 1/3
//
// For z < 0 the root is computed without y, as sqrt(y q) = h sqrt(q) with h = e^(-|z| / 2). So it
// is e^(z / 2) even where y has underflowed. The same holds for twice its derivative,
// sigma(z) / sqrt(softplus(z)).
//
// A sum along a row runs over 16 lanes: lane i takes the elements i, i + 16, ..., and then the
// lanes i and i + 8, i and i + 4, i and i + 2, i and i + 1 are added. This order is the same for
// every instruction set.
#pragma once
#include "math.inl"

namespace ffncore {
namespace {

// 1 / (2 k + 1). At s = 1/3 the terms that are left out are below 2e-9 (float) and 2e-18 (double)
// of the sum.
template <class T> struct AtanhSeries;
template <> struct AtanhSeries<float> {
    static constexpr float kTerms[] = {1,       1.f / 3,  1.f / 5,  1.f / 7,
                                       1.f / 9, 1.f / 11, 1.f / 13, 1.f / 15};
};
template <> struct AtanhSeries<double> {
    static constexpr double kTerms[] = {1,       1. / 3,  1. / 5,  1. / 7,  1. / 9,  1. / 11,
                                        1. / 13, 1. / 15, 1. / 17, 1. / 19, 1. / 21, 1. / 23,
                                        1. / 25, 1. / 27, 1. / 29, 1. / 31, 1. / 33};
};

struct SqrtSoftplus {
    template <class F, class V> static inline void both(V z, V &value, V &slope) {
        auto h = exp<F>(F::mul(F::abs(z), F::set1(-0.5)));
        auto y = F::mul(h, h), inverse = F::div(F::set1(1), F::add(y, F::set1(2)));
        auto s = F::mul(y, inverse);
        auto series = polynomial<F>(F::mul(s, s), AtanhSeries<typename F::T>::kTerms);
        auto q = F::mul(F::add(inverse, inverse), series);
        auto positive = F::gt(z, F::zero());
        auto root = F::sqrt(F::select(positive, F::fma(y, q, z), q));
        auto fade = F::select(positive, F::set1(1), h);
        value = F::mul(fade, root);
        slope = F::div(fade, F::mul(F::add(root, root), F::add(y, F::set1(1))));
    }
    template <class F, class V> static inline V value(V z) {
        V value, slope;
        both<F>(z, value, slope);
        return value;
    }
};

// The natural logarithm of a normal number: x = 2^n f with sqrt(1/2) < f <= sqrt(2), and
// ln f = 2 atanh(s) with s = (f - 1) / (f + 1) <= 0.172. NaN and infinity are returned as they are.
inline double log(double x) {
    if (!(x <= Constants<double>::kMax)) return x;
    uint64_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    // For a fraction above sqrt(2), this sum of bits carries into the exponent.
    constexpr uint64_t kRootTwo = 0x3ff6a09e667f3bcd, kTwo = 0x4000000000000000;
    const int64_t n = (int64_t)((bits + (kTwo - kRootTwo)) >> 52) - 1023;
    bits -= (uint64_t)n << 52;
    double f;
    __builtin_memcpy(&f, &bits, sizeof f);
    const double s = (f - 1) / (f + 1), square = s * s;
    constexpr int kTerms = 12; // 0.172^24 / 25 is below 2e-20
    double sum = 0;
    for (int k = kTerms - 1; k >= 0; --k) sum = sum * square + AtanhSeries<double>::kTerms[k];
    using C = Constants<double>;
    return (double)n * C::kLn2Hi + ((double)n * C::kLn2Lo + 2 * s * sum);
}

inline int64_t whole_lanes(int64_t n) { return (n + kRouteLanes - 1) / kRouteLanes * kRouteLanes; }

// Calls step(c) for every vector of n elements. Here and below, n is a multiple of kRouteLanes.
template <class F, class Step>
__attribute__((always_inline)) inline void along_row(int64_t n, Step step) {
    for (int64_t c = 0; c < n; c += F::W) step(c);
}

template <class F> inline typename F::T sum_row(const typename F::T *row, int64_t n) {
    constexpr int kVectors = kRouteLanes / F::W;
    typename F::V sums[kVectors];
    for (auto &sum : sums) sum = F::zero();
    for (int64_t c = 0; c < n; c += kRouteLanes)
        for (int j = 0; j < kVectors; ++j) sums[j] = F::add(sums[j], F::load(row + c + j * F::W));
    typename F::T lanes[kRouteLanes];
    for (int j = 0; j < kVectors; ++j) F::store(lanes + j * F::W, sums[j]);
    for (int half = kRouteLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// The largest number; NaN is ignored. The result does not depend on the order.
template <class F> inline typename F::T max_row(const typename F::T *row, int64_t n) {
    auto largest = F::load(row);
    along_row<F>(n, [&](int64_t c) { largest = F::max_(F::load(row + c), largest); });
    typename F::T lanes[F::W], most = -__builtin_inf();
    F::store(lanes, largest);
    for (auto x : lanes) most = x > most ? x : most;
    return most;
}

// Softmax in place; padding is -inf and becomes 0. Returns the largest logit and the sum of
// e^(z - largest).
template <class T> struct SoftmaxParts {
    T largest, sum;
};
template <class F> inline SoftmaxParts<typename F::T> softmax(typename F::T *row, int64_t n) {
    const auto largest = max_row<F>(row, n);
    along_row<F>(n, [&](int64_t c) {
        F::store(row + c, exp<F>(F::sub(F::load(row + c), F::set1(largest))));
    });
    const auto sum = sum_row<F>(row, n);
    along_row<F>(n, [&](int64_t c) { F::store(row + c, F::div(F::load(row + c), F::set1(sum))); });
    return {largest, sum};
}

} // namespace
} // namespace ffncore
