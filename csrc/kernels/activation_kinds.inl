// Every activation and its derivative, for vectors; activation.inl has the loops around them.
//
// Each kind has value(k, v) = act(v), and both(k, v, a, d), which computes a = act(v) with the same
// bits and d = act'(v) from one exp and one division. k are the Settings, v is the preactivation
// after multiplier and clamp. sigma is the logistic function, Phi and phi are the normal
// distribution and its density. At v = +-inf, a is what the formula gives (silu(-inf) = -inf * 0 =
// NaN) and d is the limit of the derivative. Where the value has reached its limit, the argument of
// the derivative is clamped, so that it is finite.
#pragma once
#include "math.inl"

namespace ffncore {
namespace {

template <class T> struct Settings {
    bool clamp_pre, clamp_post, gate_cap, up_cap;
    T multiplier, limit, offset;
    T gate_c, gate_inverse, up_c, up_inverse; // c and 1 / c of c tanh(x / c)
    Alpha<T> alpha;
    T negative_slope, xielu_p, xielu_n, beta, eps;
};

struct Identity {
    template <class F, class V, class K> static inline V value(const K &, V v) { return v; }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        a = v;
        d = F::set1(1);
    }
};

// d, but NaN where v is NaN. Derivatives that comparisons choose would be a number there.
template <class F, class V> inline V nan_through(V v, V d) {
    return F::select(F::unordered(v, v), v, d);
}

struct Relu { // max(v, 0); the derivative at 0 is 0
    template <class F, class V, class K> static inline V value(const K &, V v) {
        return F::max_(F::zero(), v);
    }
    template <class F, class V, class K> static inline void both(const K &k, V v, V &a, V &d) {
        a = value<F>(k, v);
        d = nan_through<F>(v, F::keep(F::gt(v, F::zero()), F::set1(1)));
    }
};

struct Relu2 { // max(v, 0)^2
    template <class F, class V, class K> static inline V value(const K &, V v) {
        v = F::max_(F::zero(), v);
        return F::mul(v, v);
    }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        v = F::max_(F::zero(), v);
        a = F::mul(v, v);
        d = F::add(v, v);
    }
};

// v Phi(v) = max(v, 0) - a Phi(-a) with a = |v|. This form serves both signs, and has one rounding
// less than the product. Below kTiny, where a quotient in it could underflow, the value is v / 2.
// The derivative is t = Phi(-a) - a phi(a) at -a and 1 - t at a, with
// Phi(-a) = e^(-a^2 / 2) (P - v P) / k (P, v and k as in Normal, math.inl).
struct Gelu {
    template <class F, class V> static inline V product(const Normal<F> &n, V v) {
        auto step = F::keep(F::gt(v, F::zero()), F::set1(1)); // not max(v, 0): -inf * 0 is NaN
        auto value = F::fms(v, step, unscale<F>(n.low, F::fma(n.tail, n.p, n.tail)));
        auto tiny = F::lt(n.a, F::set1(ConstantsOf<F>::kTiny));
        return F::select(tiny, F::mul(v, F::set1(0.5)), value);
    }
    template <class F, class V, class K> static inline V value(const K &, V v) {
        return product<F>(normal<F>(v), v);
    }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        using C = ConstantsOf<F>;
        auto n = normal<F>(v);
        a = product<F>(n, v);
        auto e = F::mul(F::add(n.p, F::set1(1)), n.scale);
        auto ratio = F::mul(F::fnma(n.v, n.poly, n.poly), F::set1(1 / C::kTailPole));
        auto density = F::mul(e, F::set1(0.398942280401432678)); // 1 / sqrt(2 pi)
        auto t = unscale<F>(n.low, F::fnma(n.a, density, F::mul(ratio, e)));
        d = F::select(F::lt(v, F::zero()), t, F::sub(F::set1(1), t));
    }
};

// a = g sigma(z) and d = sigma (g' + g z' (1 - sigma)), from dg = g' and slope = g z', which is
// finite.
template <class F, class V>
inline void times_sigma(const Logistic<F> &l, V g, V dg, V slope, V &a, V &d) {
    a = unscale<F>(l.low, F::mul(g, l.s));
    d = unscale<F>(l.low, F::mul(l.s, F::fma(F::mul(slope, l.s), l.e, dg)));
}

// v/2 (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3))) = v sigma(z), z = v (c0 + c1 v^2). c0 + c1 v^2 is
// carried as a sum hi + lo, because an absolute error of z is a relative error of e^z.
struct GeluTanh {
    template <class F, class V> static inline Reduced<F> reduce_cubic(V x, V square) {
        using C = ConstantsOf<F>;
        auto rest = F::fms(x, x, square);
        auto hi = F::fma(F::set1(C::kC1Hi), square, F::set1(C::kC0Hi));
        auto lo = F::fma(F::set1(C::kC1Hi), square, F::sub(F::set1(C::kC0Hi), hi)); // sub is exact
        lo = F::fma(F::set1(C::kC1Lo), square, F::add(lo, F::set1(C::kC0Lo)));
        lo = F::fma(F::set1(C::kC1Hi), rest, lo);
        auto t = F::fnma(F::mul(x, hi), F::set1(C::kLog2e), F::set1(F::kShift));
        auto n = F::sub(t, F::set1(F::kShift));
        auto r = F::fnms(x, hi, F::mul(n, F::set1(C::kLn2Hi)));
        return {t, F::fnma(x, lo, F::fnma(n, F::set1(C::kLn2Lo), r))};
    }
    template <class F, class V, class K> static inline V value(const K &, V v) {
        using C = ConstantsOf<F>;
        auto x = clamp<F>(v, C::kCubicMin, C::kCubicMax);
        auto l = logistic<F>(reduce_cubic<F>(x, F::mul(x, x)));
        return unscale<F>(l.low, F::mul(v, l.s));
    }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        using C = ConstantsOf<F>;
        auto x = clamp<F>(v, C::kCubicMin, C::kCubicMax);
        auto square = F::mul(x, x);
        auto l = logistic<F>(reduce_cubic<F>(x, square));
        auto dz = F::fma(F::set1(C::kC1Slope), square, F::set1(C::kC0));
        times_sigma<F>(l, v, F::set1(1), F::mul(x, dz), a, d);
    }
};

// v sigma(alpha v), or c tanh(v / c) sigma(alpha v) with a gate softcap.
template <class F, class V, class K>
inline V swish(const K &k, const Alpha<typename F::T> &alpha, V v) {
    auto l = logistic<F>(reduce_minus<F>(clamp<F>(v, alpha.min, alpha.max), alpha));
    if (k.gate_cap)
        v = F::mul(F::set1(k.gate_c), tanh_both<F>(F::mul(v, F::set1(k.gate_inverse))).value);
    return unscale<F>(l.low, F::mul(v, l.s));
}

template <class F, class V, class K>
inline void swish_both(const K &k, const Alpha<typename F::T> &alpha, V v, V &a, V &d) {
    auto x = clamp<F>(v, alpha.min, alpha.max);
    auto l = logistic<F>(reduce_minus<F>(x, alpha));
    auto dg = F::set1(1);
    if (k.gate_cap) {
        auto t = tanh_both<F>(F::mul(v, F::set1(k.gate_inverse)));
        // With a softcap g' vanishes for large v, so 1 - sigma counts in d: it is set to 0 where v
        // is beyond the clamp.
        auto rest = F::le(F::mul(F::set1(alpha.hi), v), F::set1(ConstantsOf<F>::kSaturate));
        l.e = F::keep(rest, l.e);
        v = x = F::mul(F::set1(k.gate_c), t.value);
        dg = t.slope;
    }
    times_sigma<F>(l, v, dg, F::mul(F::set1(alpha.hi), x), a, d);
}

template <class T> constexpr Alpha<T> kQuickAlpha{};
template <>
constexpr Alpha<float> kQuickAlpha<float>{1.702f, -2.19345093e-08f, 2.45546699f,
                                          -Constants<float>::kFadeOut / 1.702f,
                                          Constants<float>::kSaturate / 1.702f};
template <>
constexpr Alpha<double> kQuickAlpha<double>{1.702, 0, 2.4554669595930156,
                                            -Constants<double>::kFadeOut / 1.702,
                                            Constants<double>::kSaturate / 1.702};

struct QuickGelu {
    template <class F, class V, class K> static inline V value(const K &k, V v) {
        return swish<F>(k, kQuickAlpha<typename F::T>, v);
    }
    template <class F, class V, class K> static inline void both(const K &k, V v, V &a, V &d) {
        swish_both<F>(k, kQuickAlpha<typename F::T>, v, a, d);
    }
};

struct SiluOptions { // with alpha and softcap
    template <class F, class V, class K> static inline V value(const K &k, V v) {
        return swish<F>(k, k.alpha, v);
    }
    template <class F, class V, class K> static inline void both(const K &k, V v, V &a, V &d) {
        swish_both<F>(k, k.alpha, v, a, d);
    }
};

struct Silu { // v sigma(v): the bits of SiluOptions with alpha = 1
    template <class F, class V, class K> static inline V value(const K &, V v) {
        using C = ConstantsOf<F>;
        auto l = logistic<F>(reduce_minus<F>(clamp<F>(v, -C::kFadeOut, C::kSaturate)));
        return unscale<F>(l.low, F::mul(v, l.s));
    }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        using C = ConstantsOf<F>;
        auto x = clamp<F>(v, -C::kFadeOut, C::kSaturate);
        times_sigma<F>(logistic<F>(reduce_minus<F>(x)), v, F::set1(1), x, a, d);
    }
};

struct Sigmoid {
    template <class F, class V, class K> static inline V value(const K &, V v) {
        using C = ConstantsOf<F>;
        auto l = logistic<F>(reduce_minus<F>(clamp<F>(v, -C::kFadeOut, C::kSaturate)));
        return unscale<F>(l.low, l.s);
    }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        using C = ConstantsOf<F>;
        auto l = logistic<F>(reduce_minus<F>(clamp<F>(v, -C::kFadeOut, C::kSaturate)));
        a = unscale<F>(l.low, l.s);
        auto e = F::keep(F::le(v, F::set1(C::kSaturate)), l.e); // 0 below the normal range
        d = unscale<F>(l.low, F::mul(l.s, F::mul(e, l.s)));
    }
};

struct Tanh1 {
    template <class F, class V, class K> static inline V value(const K &, V v) {
        return tanh_both<F>(v).value;
    }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        auto t = tanh_both<F>(v);
        a = t.value;
        d = t.slope;
    }
};

// v tanh(ln(1 + e)) with e = e^v. With m = e^2 + 2e it is v m / (m + 2), in which nothing cancels.
// The derivative is m / (m + 2) + 4 v (e + e^2) / (m + 2)^2.
struct Mish {
    template <class F, class V, class K> static inline V value(const K &k, V v) {
        V a, d;
        both<F>(k, v, a, d);
        return a;
    }
    template <class F, class V, class K> static inline void both(const K &, V v, V &a, V &d) {
        using C = ConstantsOf<F>;
        auto x = clamp<F>(v, -C::kVanish, C::kMishEnd);
        auto reduced = reduce<F>(x);
        auto low = F::lt(reduced.t, F::set1(F::kShift - C::kLowFrom));
        auto t = F::select(low, F::add(reduced.t, F::set1(C::kScale)), reduced.t);
        auto e = F::mul(exp_reduced<F>(reduced.r), F::exponent(t));
        auto m = F::fma(e, e, F::add(e, e));
        auto inverse = F::div(F::set1(1), F::add(m, F::set1(2)));
        auto y = F::mul(m, inverse);
        auto g = F::mul(F::fma(e, e, e), inverse);
        a = unscale<F>(low, F::mul(v, y));
        d = unscale<F>(low, F::fma(F::mul(F::mul(F::set1(4), x), g), inverse, y));
    }
};

struct Hardswish { // v clip(v + 3, 0, 6) / 6; derivative 0 up to -3, 1 from 3, (2v + 3) / 6 between
    template <class F, class V, class K> static inline V value(const K &, V v) {
        auto c = clamp<F>(F::add(v, F::set1(3)), 0, 6);
        return F::mul(v, F::mul(c, F::set1(0.16666666666666666))); // 6 * that is 1 in both types
    }
    template <class F, class V, class K> static inline void both(const K &k, V v, V &a, V &d) {
        a = value<F>(k, v);
        d = F::mul(F::add(v, F::set1(1.5)), F::set1(0.3333333333333333)); // exactly 0 at -1.5
        d = F::select(F::ge(v, F::set1(3)), F::set1(1), d);
        d = F::select(F::le(v, F::set1(-3)), F::zero(), d);
    }
};

struct LeakyRelu { // v >= 0 ? v : slope v
    template <class F, class V, class K> static inline V value(const K &k, V v) {
        return F::select(F::ge(v, F::zero()), v, F::mul(F::set1(k.negative_slope), v));
    }
    template <class F, class V, class K> static inline void both(const K &k, V v, V &a, V &d) {
        a = value<F>(k, v);
        d = F::select(F::ge(v, F::zero()), F::set1(1), F::set1(k.negative_slope));
        d = nan_through<F>(v, d);
    }
};

// v > 0: p v^2 + beta v; else n (expm1(min(v, eps)) - v) + beta v. With m = min(v, eps) and e^m =
// 2^i (1 + r + r^2 q), expm1(m) - v = 2^i r^2 q + ((2^i r + 2^i - 1) - v). Near 0, where i = 0,
// nothing cancels. The gradients of p and n are sums of v^2 over the v > 0, and of the bracket
// expm1(m) - v over the v <= 0, each times the gradient of the value.
struct Xielu {
    template <class F> struct Parts {
        typename F::V value, slope, square, bracket;
        typename F::M positive;
    };
    template <class F, class V, class K> static inline Parts<F> parts(const K &k, V v) {
        using C = ConstantsOf<F>;
        auto eps = F::set1(k.eps), xn = F::set1(k.xielu_n), beta = F::set1(k.beta);
        auto reduced = reduce<F>(F::max_(F::set1(-C::kSaturate), F::min_(eps, v)));
        auto s = F::exponent(reduced.t), below = F::sub(s, F::set1(1)), r = reduced.r;
        auto q = polynomial<F>(r, C::kExp), square = F::mul(r, r);
        auto bracket = F::fma(F::mul(s, square), q, F::sub(F::fma(s, r, below), v));
        auto expm1 = F::fma(s, F::fma(square, q, r), below);

        auto positive = F::gt(v, F::zero());
        auto up = F::mul(F::set1(k.xielu_p), v);
        auto value =
            F::select(positive, F::mul(v, F::add(up, beta)), F::fma(xn, bracket, F::mul(beta, v)));
        auto slope = F::select(F::gt(v, eps), F::sub(beta, xn), F::fma(xn, expm1, beta));
        slope = F::select(positive, F::add(F::add(up, up), beta), slope);
        return {value, slope, F::mul(v, v), bracket, positive};
    }
    template <class F, class V, class K> static inline V value(const K &k, V v) {
        return parts<F>(k, v).value;
    }
    template <class F, class V, class K> static inline void both(const K &k, V v, V &a, V &d) {
        auto p = parts<F>(k, v);
        a = p.value;
        d = p.slope;
    }
};

} // namespace
} // namespace ffncore
