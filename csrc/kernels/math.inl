// exp, tanh, the logistic function and Phi (the normal distribution) for vectors of F: F32 or F64.
//
//     e^x = 2^n (1 + r + r^2 q(r)),   n = round(x / ln 2),   |r| <= ln 2 / 2
//
// Each function is one fixed sequence of fma, mul, add and div, so that every instruction set gives
// the same bits: no tables, no approximate instructions, no libm. It is written once, in terms of
// the vocabulary (vec_scalar.h).
// Results that underflow need a factor 2^n below the normal range. Such lanes, called "low",
// compute with 2^(n + kScale) and are multiplied by 2^-kScale once, at the very end.
// docs/accuracy.md gives the accuracy, as measured by tests/cpp/accuracy.cpp. The coefficients are
// minimax (Remez exchange at 60 digits); bench/coefficients.py prints them. The errors in comments
// are those of the polynomials.
#pragma once

namespace ffncore {
namespace {

template <class T> struct Constants;

template <> struct Constants<float> {
    static constexpr float kLog2e = 1.44269502f;
    // ln 2 = hi + lo; hi has 10 bits, so that n hi is exact.
    static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -0.000212194442f;
    // q, fitted so that e^r - 1 has a small relative error at 0, too: 1.3e-8.
    static constexpr float kExp[] = {0.5f, 0.166665435f, 0.0416662805f, 0.00836660899f,
                                     0.00139465451f};
    // Phi(-a) e^(a^2 / 2) (a + k) = P(u), u = a / (a + k) - m, 0 <= a <= 14.7: 7.5e-9.
    static constexpr float kTailPole = 3.5f, kTailMiddle = 0.4f;
    static constexpr float kTail[] = {0.871099412f,  -1.41231465f, 1.55457103f,   -1.01525962f,
                                      0.147031337f,  0.311057299f, -0.133392364f, -0.129213795f,
                                      0.0569995381f, 0.0562608205f};
    static constexpr float kScale = 64, kDown = 0x1p-64f;
    static constexpr float kLowFrom = 96;          // low: n < -96; 1 + 2^(96 - kScale) loses the 1
    static constexpr float kFadeOut = 133.084259f; // 192 ln 2: 2^(192 - kScale) is infinite
    static constexpr float kVanish = 132.391113f;  // 191 ln 2: 2^(kScale - 191) shifts out to zero
    static constexpr float kSaturate = 87.0f;      // e^-87 is normal, and 1 + e^-87 is 1
    static constexpr float kTailEnd = 16.2721303f; // a^2 / 2 = 191 ln 2
    static constexpr float kTanhEnd = 53.0f;       // 4 e^-106, the derivative, rounds to 0
    static constexpr float kMishEnd = 20.0f;       // tanh(softplus(20)) rounds to 1
    static constexpr float kFaint = 1e-35f; // 1 / it is normal, and so are its terms that count
    static constexpr float kMax = 0x1.fffffep127f; // the largest finite number
    static constexpr float kTiny = 0x1p-100f; // far from underflow, and Phi(2^-100) rounds to 1/2
    // gelu_tanh(x) = x sigma(x (c0 + c1 x^2)): c0 = sqrt(8 / pi), c1 = 0.044715 c0. The high part
    // of c0 is a multiple of 2^-20, a unit in the last place of the largest c0 + c1 x^2 between the
    // clamps.
    static constexpr float kC0Hi = 1.59576893f, kC0Lo = 1.93077895e-07f, kC0 = 1.59576917f;
    static constexpr float kC1Hi = 0.0713548139f, kC1Lo = 2.39883247e-09f;
    static constexpr float kC1Slope = 0.214064449f;                    // 3 c1
    static constexpr float kCubicMin = -11.7042368f, kCubicMax = 9.9f; // kFadeOut, kSaturate
};

template <> struct Constants<double> {
    static constexpr double kLog2e = 1.4426950408889634;
    static constexpr double kLn2Hi = 0.69314718036912382, kLn2Lo = 1.9082149292705877e-10;
    static constexpr double kExp[] = {// 2.6e-19
                                      0.5,
                                      0.16666666666666677,
                                      0.041666666666666699,
                                      0.0083333333333215787,
                                      0.0013888888888866616,
                                      0.00019841269886265663,
                                      2.4801587360946784e-05,
                                      2.7557244062400652e-06,
                                      2.7557242458156263e-07,
                                      2.5109090276004471e-08,
                                      2.0924528419316607e-09};
    static constexpr double kTailPole = 5, kTailMiddle = 0.4375;
    static constexpr double kTail[] = {
        // a <= 39: 5.9e-18
        0.86075986051883768,   -1.6105665056657954,   2.519116639683848,      -3.2614357719129368,
        3.4125154323967033,    -2.7389679549571548,   1.4703051913475029,     -0.24057183153958311,
        -0.36729941856621201,  0.29186125601129181,   0.023955068092848149,   -0.13953271422918007,
        0.027665208800952079,  0.064241455619036297,  -0.023392093535444188,  -0.033440229674354123,
        0.013914777341841452,  0.019909319975740504,  -0.0070764433295564299, -0.011817807881059444,
        0.0032404940056764619, 0.0047499980290409164, -0.0012708224478374002};
    static constexpr double kScale = 128, kDown = 0x1p-128;
    static constexpr double kLowFrom = 960;
    static constexpr double kFadeOut = 798.505552005; // 1152 ln 2
    static constexpr double kVanish = 797.812404824;  // 1151 ln 2
    static constexpr double kSaturate = 708.0;
    static constexpr double kTailEnd = 39.9452726821;
    static constexpr double kTanhEnd = 374.0;
    static constexpr double kMishEnd = 40.0;
    static constexpr double kFaint = 1e-290;
    static constexpr double kMax = 0x1.fffffffffffffp1023;
    static constexpr double kTiny = 0x1p-900;
    static constexpr double kC0Hi = 1.5957691216057341, kC0Lo = -3.430362161966579e-15; // 2^-47
    static constexpr double kC0 = 1.5957691216057308;
    // c1 from the double nearest to 0.044715, which numpy uses, too.
    static constexpr double kC1Hi = 0.071354816272600249, kC1Lo = -4.1218577217431825e-18;
    static constexpr double kC1Slope = 0.21406444881780073;
    static constexpr double kCubicMin = -22.0342861891, kCubicMax = 21.1;
};

template <class F> using ConstantsOf = Constants<typename F::T>;

// c[0] + c[1] x + ... by Horner's rule.
template <class F, int N>
inline typename F::V polynomial(typename F::V x, const typename F::T (&c)[N]) {
    typename F::V s = F::set1(c[N - 1]);
    for (int i = N - 2; i >= 0; --i) s = F::fma(s, x, F::set1(c[i]));
    return s;
}

// x limited to [lo, hi]; NaN stays NaN.
template <class F> inline typename F::V clamp(typename F::V x, typename F::T lo, typename F::T hi) {
    return F::min_(F::set1(hi), F::max_(F::set1(lo), x));
}

// x = n ln 2 + r; t = F::kShift + n, so that F::exponent(t) is 2^n.
template <class F> struct Reduced {
    typename F::V t, r;
};

template <class F> inline Reduced<F> reduce(typename F::V x) {
    using C = ConstantsOf<F>;
    auto t = F::fma(x, F::set1(C::kLog2e), F::set1(F::kShift));
    auto n = F::sub(t, F::set1(F::kShift));
    auto r = F::fnma(n, F::set1(C::kLn2Hi), x);
    return {t, F::fnma(n, F::set1(C::kLn2Lo), r)};
}

// e^r - 1 for |r| up to a little more than ln 2 / 2.
template <class F> inline typename F::V expm1_reduced(typename F::V r) {
    return F::fma(F::mul(r, r), polynomial<F>(r, ConstantsOf<F>::kExp), r);
}

template <class F> inline typename F::V exp_reduced(typename F::V r) {
    return F::add(expm1_reduced<F>(r), F::set1(1));
}

// Takes the factor 2^kScale out of the results of low lanes.
template <class F> inline typename F::V unscale(typename F::M low, typename F::V a) {
    return F::select(low, F::mul(a, F::set1(ConstantsOf<F>::kDown)), a);
}

// e^x for all x. 2^n is multiplied in two steps, since n may be beyond either end of the normal
// range.
template <class F> inline typename F::V exp(typename F::V x) {
    using C = ConstantsOf<F>;
    auto reduced = reduce<F>(clamp<F>(x, -C::kFadeOut, C::kFadeOut));
    auto n = F::sub(reduced.t, F::set1(F::kShift));
    auto half = F::round(F::mul(n, F::set1(0.5)));
    auto p = F::mul(exp_reduced<F>(reduced.r), F::pow2(half));
    return F::mul(p, F::pow2(F::sub(n, half)));
}

// The logistic function: sigma = s in normal lanes and s 2^-kScale in low ones; 1 - sigma = e s in
// both. sigma is exactly zero at the lower clamp, so that -inf * sigma is NaN, as it is in the
// formula x * sigma(x).
template <class F> struct Logistic {
    typename F::V e, s;
    typename F::M low;
};

// Takes the reduced negative of the argument.
template <class F> inline Logistic<F> logistic(Reduced<F> minus) {
    using C = ConstantsOf<F>;
    auto low = F::gt(minus.t, F::set1(F::kShift + C::kLowFrom));
    auto t = F::select(low, F::sub(minus.t, F::set1(C::kScale)), minus.t);
    auto p = exp_reduced<F>(minus.r), scale = F::exponent(t);
    auto s = F::div(F::set1(1), F::fma(p, scale, F::set1(1)));
    // At the lower clamp s is zero and e would be infinite. A finite e keeps e s from being NaN.
    return {F::min_(F::set1(C::kMax), F::mul(p, scale)), s, low};
}

// alpha of sigma(alpha x), in twice the precision of T (hi + lo), and the x between which sigma is
// neither 0 nor 1.
template <class T> struct Alpha {
    T hi, lo, log2e, min, max;
};

template <class T> inline Alpha<T> make_alpha(double alpha) {
    using C = Constants<T>;
    alpha = alpha == 0 ? 0.0 : alpha; // never -0, so that the limits below are -inf and inf
    T hi = T(alpha), lo = T(alpha - double(hi));
    T zero = C::kFadeOut / hi, one = C::kSaturate / hi;
    bool rising = alpha >= 0;
    return {hi, lo, T(alpha * Constants<double>::kLog2e), rising ? -zero : one,
            rising ? one : -zero};
}

// -alpha x, reduced, for an x between a.min and a.max. The product is never rounded, because n ln 2
// is subtracted inside the fma; so a large argument costs no accuracy.
template <class F> inline Reduced<F> reduce_minus(typename F::V x, const Alpha<typename F::T> &a) {
    using C = ConstantsOf<F>;
    auto t = F::fnma(x, F::set1(a.log2e), F::set1(F::kShift));
    auto n = F::sub(t, F::set1(F::kShift));
    auto r = F::fnms(x, F::set1(a.hi), F::mul(n, F::set1(C::kLn2Hi)));
    r = F::fnma(n, F::set1(C::kLn2Lo), r);
    return {t, F::fnma(x, F::set1(a.lo), r)};
}

// The same for alpha = 1, with the same bits.
template <class F> inline Reduced<F> reduce_minus(typename F::V x) {
    using C = ConstantsOf<F>;
    auto t = F::fnma(x, F::set1(C::kLog2e), F::set1(F::kShift));
    auto n = F::sub(t, F::set1(F::kShift));
    auto r = F::fnms(n, F::set1(C::kLn2Hi), x);
    return {t, F::fnma(n, F::set1(C::kLn2Lo), r)};
}

// tanh |x| = (e^2|x| - 1) / (e^2|x| + 1), where the rounding errors of the sum and of the quotient
// are corrected once. The quotient's 1 / (e^2|x| + 1) also gives the derivative,
// 1 - tanh^2 = 4 e^2|x| / (e^2|x| + 1)^2. In lanes where that is nearly 4 e^-2|x| and may
// underflow, called "high", e^2|x| has a factor 2^-kScale.
template <class F> struct Tanh {
    typename F::V value, slope;
};

template <class F> inline Tanh<F> tanh_both(typename F::V x) {
    using C = ConstantsOf<F>;
    auto a = F::min_(F::set1(C::kTanhEnd), F::abs(x));
    auto reduced = reduce<F>(F::add(a, a));
    auto high = F::gt(reduced.t, F::set1(F::kShift + C::kLowFrom));
    auto t = F::select(high, F::sub(reduced.t, F::set1(C::kScale)), reduced.t);
    auto s = F::exponent(t), p = expm1_reduced<F>(reduced.r);
    auto num = F::fma(s, p, F::sub(s, F::set1(1)));
    auto den = F::add(num, F::set1(2));
    auto inverse = F::div(F::set1(1), den);
    auto q = F::mul(num, inverse);
    auto rest = F::sub(num, F::sub(den, F::set1(2))); // the rounding error of den
    q = F::fma(F::fnma(q, rest, F::fnma(q, den, num)), inverse, q);
    auto slope = F::mul(F::mul(F::set1(4), inverse), F::fma(num, inverse, inverse));
    return {F::copysign(q, x), unscale<F>(high, slope)};
}

// The normal distribution, with a small relative error in its negative tail:
//     a Phi(-a) = e^(-a^2 / 2) v P(v - m),   v = a / (a + k),   a = |x|
// v costs the one division; its error does not matter in the tail, where v P is nearly constant.
// e^(-a^2 / 2) = 2^n (1 + p), and tail = v P 2^n, or v P 2^(n + kScale) in low lanes.
template <class F> struct Normal {
    typename F::V a, v, poly, p, scale, tail;
    typename F::M low;
};

template <class F> inline Normal<F> normal(typename F::V x) {
    using C = ConstantsOf<F>;
    auto a = F::min_(F::set1(C::kTailEnd), F::abs(x));
    auto v = F::div(a, F::add(a, F::set1(C::kTailPole)));
    auto square = F::mul(a, a), rest = F::fms(a, a, square); // e^(a^2) needs a^2 unrounded
    auto reduced = reduce<F>(F::mul(square, F::set1(-0.5)));
    auto p = expm1_reduced<F>(F::fma(rest, F::set1(-0.5), reduced.r));
    auto low = F::lt(reduced.t, F::set1(F::kShift - C::kLowFrom));
    auto scale = F::exponent(F::select(low, F::add(reduced.t, F::set1(C::kScale)), reduced.t));
    auto poly = polynomial<F>(F::sub(v, F::set1(C::kTailMiddle)), C::kTail);
    return {a, v, poly, p, scale, F::mul(F::mul(v, poly), scale), low};
}

} // namespace
} // namespace ffncore
