// 16-bit numbers for test_engine.cpp, converted by their definition: a fraction, a power of two,
// and one rounding to nearest even, in double. Also the dtype and the precision of each type that
// it tests.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../../csrc/include/ffncore.h"

namespace {

// A 16-bit type with so many bits for the fraction: 7 for bfloat16, 10 for float16.
template <int Fraction> struct Half {
    uint16_t bits = 0;
    static constexpr int kBias = (1 << (14 - Fraction)) - 1;
    Half() = default;
    explicit Half(double v) {
        const int least = 1 - kBias;
        const int exponent = v == 0 || v != v ? least : std::max(std::ilogb(v), least);
        const double steps = std::nearbyint(std::ldexp(std::abs(v), Fraction - exponent));
        const int highest = (2 * kBias + 1) << Fraction;
        const int rounded =
            v != v ? highest + 1 : int(steps) + ((exponent + kBias - 1) << Fraction);
        bits = uint16_t(std::signbit(v) << 15 | (v != v ? rounded : std::min(rounded, highest)));
    }
    operator double() const {
        const int exponent = bits >> Fraction & (2 * kBias + 1), fraction = bits % (1 << Fraction);
        const double steps = exponent ? fraction + (1 << Fraction) : fraction;
        const double size = exponent == 2 * kBias + 1
                                ? (fraction ? std::numeric_limits<double>::quiet_NaN() : INFINITY)
                                : std::ldexp(steps, std::max(exponent, 1) - kBias - Fraction);
        return bits >> 15 ? -size : size;
    }
};
template <class T> constexpr int32_t kType = FFNCORE_FLOAT64;
template <> constexpr int32_t kType<float> = FFNCORE_FLOAT32;
template <> constexpr int32_t kType<Half<7>> = FFNCORE_BFLOAT16;
template <> constexpr int32_t kType<Half<10>> = FFNCORE_FLOAT16;
template <class T> constexpr double kEpsilon = std::numeric_limits<T>::epsilon();
template <int Fraction> constexpr double kEpsilon<Half<Fraction>> = 1.0 / (1 << Fraction);

} // namespace
