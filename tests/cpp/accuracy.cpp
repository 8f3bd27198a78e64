// Measures the error of every activation and derivative over a dense sweep, and prints a line of
// JSON for each, from which bench/accuracy.py makes docs/accuracy.md.
//
//     accuracy [stride]     takes every stride-th float (default 251; 1 takes all, for minutes)
//
// float32 is compared with double (libm), float64 with long double, at the same argument. An ULP is
// the distance of neighbouring numbers of the type at the exact result, subnormals included. The
// program includes the source of the kernels, at the level that the compiler flags allow; every
// level gives the same bits. The exit status is 1 if an error is beyond its limit.
#include "../../csrc/kernels/kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "../../csrc/kernels/vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "../../csrc/kernels/vec_avx2.h"
#else
#include "../../csrc/kernels/vec_scalar.h"
#endif
#include "../../csrc/kernels/math.inl"

#include "../../csrc/kernels/activation.inl"

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using namespace ffncore;

namespace {

struct Function {
    const char *name, *formula;
    int kind;                          // -1: exp
    double limit32, limit64;           // ULP
    double derivative32, derivative64; // relative to the larger of 1 and the exact value, in eps
};

// The limits for exp, silu, gelu and tanh in float32 are promised. The others are what was
// measured, rounded up.
const Function kFunctions[] = {
    {"exp", "e^x", -1, 1.5, 1.5, 0, 0},
    {"silu", "x sigma(x)", 6, 3, 4, 4, 4},
    {"gelu", "x Phi(x)", 3, 4, 4, 4, 4},
    {"tanh", "tanh x", 8, 2, 2, 4, 4},
    {"gelu_tanh", "x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))", 4, 4, 4, 6, 6},
    {"quick_gelu", "x sigma(1.702 x)", 5, 4, 4, 6, 6},
    {"sigmoid", "1 / (1 + e^-x)", 7, 3, 3, 4, 4},
    {"mish", "x tanh(ln(1 + e^x))", 9, 5, 5, 6, 6},
    {"hardswish", "x clip(x + 3, 0, 6) / 6", 10, 3, 3, 2, 2},
    {"xielu", "see below", 12, 6, 6, 4, 4},
};

constexpr double kXieluP = 0.8, kXieluN = 0.8, kBeta = 0.5, kEps = -1e-6;

template <class R> R sigma(R x) {
    return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

// Value and derivative in a wider type, in formulas where nothing cancels.
template <class T, class R> void reference(int kind, R x, R &f, R &d) {
    const R root = std::sqrt(R(2)), pi = std::acos(R(-1));
    switch (kind) {
    case -1:
        f = d = std::exp(x);
        return;
    case 3: {
        R cdf = std::erfc(-x / root) / 2, density = std::exp(-x * x / 2) / std::sqrt(2 * pi);
        f = x * cdf;
        d = cdf + (density == 0 ? 0 : x * density);
        return;
    }
    case 4: {
        R c0 = 2 * std::sqrt(2 / pi), c1 = R(0.044715) * c0;
        R z = x * (c0 + c1 * x * x), s = sigma(z), away = sigma(-z);
        f = x * s;
        d = s == 0 || away == 0 ? s : s * (1 + x * (c0 + 3 * c1 * x * x) * away);
        return;
    }
    case 5:
    case 6: {
        R alpha = kind == 5 ? R(1.702) : R(1), s = sigma(alpha * x), away = sigma(-alpha * x);
        f = x * s;
        d = s == 0 || away == 0 ? s : s * (1 + alpha * x * away);
        return;
    }
    case 7:
        f = sigma(x);
        d = sigma(x) * sigma(-x);
        return;
    case 8: {
        f = std::tanh(x);
        R e = std::exp(-2 * std::fabs(x));
        d = 4 * e / ((1 + e) * (1 + e));
        return;
    }
    case 9: {
        R e = std::exp(x > 60 ? R(60) : x), m = e * (e + 2), y = m / (m + 2);
        f = x * y;
        d = y + (e == 0 ? 0 : 4 * x * ((e + e * e) / (m + 2)) / (m + 2));
        return;
    }
    case 10: {
        f = x * (x <= -3 ? 0 : x >= 3 ? 1 : (x + 3) / 6);
        d = x <= -3 ? 0 : x >= 3 ? 1 : (2 * x + 3) / 6;
        return;
    }
    case 12: {
        R p = T(kXieluP), n = T(kXieluN), beta = T(kBeta), eps = T(kEps);
        f = x > 0 ? x * (p * x + beta) : n * (std::expm1(x < eps ? x : eps) - x) + beta * x;
        d = x > 0 ? 2 * p * x + beta : x <= eps ? n * std::expm1(x) + beta : beta - n;
        return;
    }
    }
}

template <class T> long double ulp(long double exact) {
    int e;
    std::frexp(exact, &e);
    const int digits = sizeof(T) == 4 ? FLT_MANT_DIG : DBL_MANT_DIG;
    const int least = sizeof(T) == 4 ? FLT_MIN_EXP : DBL_MIN_EXP;
    return std::ldexp(1.0L, (e < least ? least : e) - digits);
}

struct Worst {
    double value_ulp = 0, value_at = 0, derivative = 0, derivative_at = 0;
    bool special = true; // NaN and inf occur where they should, and only there
};

template <class F>
void evaluate(int kind, const typename F::T *x, typename F::T *f, typename F::T *d,
              const typename F::T *ones, int64_t n) {
    using T = typename F::T;
    if (kind < 0) {
        for_each_vector<F, true>(n, [&](auto lanes, int64_t i) {
            lanes.store(f + i, ffncore::exp<F>(lanes.load(x + i)));
        });
        return;
    }
    ActivationParams p{};
    p.kind = kind;
    p.alpha = p.gate_multiplier = 1;
    p.xielu_p = kXieluP, p.xielu_n = kXieluN, p.beta = kBeta, p.eps = kEps;
    ActForwardArgs<T> forward{};
    forward.rows = 1, forward.cols = n, forward.up = x, forward.h = f;
    act_forward<F>(p, forward);
    ActBackwardArgs<T> backward{};
    backward.rows = 1, backward.cols = n, backward.dh = ones, backward.up = x, backward.dup = d;
    act_backward<F>(p, backward);
}

template <class F, class R> void compare(int kind, std::vector<typename F::T> &x, Worst &worst) {
    using T = typename F::T;
    const int64_t n = int64_t(x.size());
    static std::vector<T> f, d, ones;
    f.resize(x.size()), d.resize(x.size()), ones.assign(x.size(), T(1));
    evaluate<F>(kind, x.data(), f.data(), d.data(), ones.data(), n);
    for (int64_t i = 0; i < n; ++i) {
        R exact = 0, slope = 0;
        reference<T, R>(kind, R(x[i]), exact, slope);
        if (std::fabs(exact) > std::numeric_limits<T>::max()) {
            worst.special &= std::isinf(f[i]) || std::fabs(f[i]) == std::numeric_limits<T>::max();
            continue;
        }
        // xielu has a second zero near -2.43; there, errors are relative to its terms.
        R size = kind == 12 && std::fabs(exact) < std::fabs(x[i]) / 4 ? R(x[i]) / 4 : exact;
        double error = double(std::fabs((long double)f[i] - exact) / ulp<T>(size));
        if (!(error <= worst.value_ulp)) worst.value_ulp = error, worst.value_at = x[i];
        if (kind < 0 || std::fabs(slope) > std::numeric_limits<T>::max()) continue;
        R scale = std::fabs(slope) > 1 ? std::fabs(slope) : R(1);
        error = double(std::fabs(R(d[i]) - slope) / scale / std::numeric_limits<T>::epsilon());
        if (!(error <= worst.derivative)) worst.derivative = error, worst.derivative_at = x[i];
    }
    x.clear();
}

template <class F> bool specials(int kind) {
    using T = typename F::T;
    const T inf = std::numeric_limits<T>::infinity();
    T x[3] = {std::numeric_limits<T>::quiet_NaN(), inf, -inf}, f[3], d[3], ones[3] = {1, 1, 1};
    evaluate<F>(kind, x, f, d, ones, 3);
    bool bounded = kind == 7 || kind == 8;
    bool ok = std::isnan(f[0]) && (kind < 0 || std::isnan(d[0])) && f[1] == (bounded ? T(1) : inf);
    if (kind == -1 || kind == 7) return ok && f[2] == 0;
    if (kind == 8) return ok && f[2] == -1;
    return ok && std::isnan(f[2]); // -inf * 0; xielu: inf - inf
}

constexpr size_t kChunk = 1 << 14;

Worst sweep32(int kind, uint32_t stride) {
    Worst worst;
    std::vector<float> x;
    for (uint64_t bits = 0; bits < (uint64_t(1) << 32); bits += stride) {
        uint32_t word = uint32_t(bits);
        float value;
        memcpy(&value, &word, sizeof value);
        if (std::isfinite(value)) x.push_back(value);
        if (x.size() == kChunk) compare<F32, double>(kind, x, worst);
    }
    compare<F32, double>(kind, x, worst);
    worst.special &= specials<F32>(kind);
    return worst;
}

// Random exponents from 2^-40 to 2^11 and the whole linear range, both signs.
Worst sweep64(int kind, int64_t count) {
    Worst worst;
    std::vector<double> x;
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < count; ++i) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        double unit = double(state >> 11) * 0x1p-53 * 2 - 1;
        x.push_back(i % 4 == 0   ? std::ldexp(unit, int(i / 4 % 52) - 40)
                    : i % 4 == 1 ? unit * 760
                    : i % 4 == 2 ? unit * 40
                                 : unit * 3);
        if (x.size() == kChunk) compare<F64, long double>(kind, x, worst);
    }
    compare<F64, long double>(kind, x, worst);
    worst.special &= specials<F64>(kind);
    return worst;
}

} // namespace

int main(int argc, char **argv) {
    const uint32_t stride = argc > 1 ? uint32_t(atoi(argv[1])) : 251;
    bool good = true;
    for (const Function &function : kFunctions) {
        const Worst a = sweep32(function.kind, stride), b = sweep64(function.kind, 2000000);
        const bool special = a.special && b.special;
        good &= a.value_ulp <= function.limit32 && b.value_ulp <= function.limit64 &&
                a.derivative <= function.derivative32 && b.derivative <= function.derivative64 &&
                special;
        printf(
            "{\"kind\": \"function\", \"function\": \"%s\", \"formula\": \"%s\", \"special\": %s",
            function.name, function.formula, special ? "true" : "false");
        const Worst *const both[] = {&a, &b};
        for (int i = 0; i < 2; ++i)
            printf(", \"float%d\": {\"ulp\": %.5g, \"at\": %.6g, \"derivative\": %.5g, "
                   "\"derivative_at\": "
                   "%.6g}",
                   32 << i, both[i]->value_ulp, both[i]->value_at, both[i]->derivative,
                   both[i]->derivative_at);
        printf("}\n");
        fflush(stdout);
    }
    return good ? 0 : 1;
}
