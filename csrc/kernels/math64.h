// exp, the logistic function and softplus for one double, for code outside the kernels.
//
// These are the functions of the kernels (math.inl) on vectors of one lane. They do not call libm,
// whose bits change with its version. The translation units of the instruction sets must not
// include this header, because they have a vocabulary of their own.
#pragma once
#include "vec_scalar.h"

#include "math.inl"

namespace ffncore {
namespace {
namespace math64 {

using Lane = ScalarVector<double, uint64_t, 1, 52>;

inline double exp(double x) { return ffncore::exp<Lane>(Lane::set1(x)).v[0]; }

// 1 / (1 + e^-x)
inline double sigmoid(double x) {
    using C = Constants<double>;
    const auto clamped = clamp<Lane>(Lane::set1(x), -C::kFadeOut, C::kSaturate);
    const auto l = logistic<Lane>(reduce_minus<Lane>(clamped));
    return unscale<Lane>(l.low, l.s).v[0];
}

// ln(1 + e^x) = max(x, 0) + ln(1 + y) with y = e^-|x|, and ln(1 + y) = 2 (s + s^3 / 3 + s^5 / 5 +
// ...) with s = y / (2 + y) <= 1/3. After 17 terms the rest is below 2e-18 of the sum.
inline double softplus(double x) {
    const double y = math64::exp(x > 0 ? -x : x), s = y / (2 + y), square = s * s;
    double sum = 0;
    for (int k = 16; k >= 0; --k) sum = sum * square + 1.0 / (2 * k + 1);
    return (x > 0 ? x : 0.0) + 2 * s * sum;
}

} // namespace math64
} // namespace
} // namespace ffncore
