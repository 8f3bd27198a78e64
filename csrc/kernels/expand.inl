// Quantised weights become numbers:
//
//   number = scale * (value - zero) + offset        float32, each operation rounded
//   Expand   dst[step][output] = number, for some steps of a unit of 16 outputs (ExpandArgs)
//   Few      c[token][output] (+)= sum_k a[token][k] * number, for a few tokens (FewArgs)
//
// The codes of a step are read as one or two
// words that are broadcast to all lanes, and each lane shifts its own code to the lowest bits. The
// value of a code of up to 4 bits is looked up in a table of 16 numbers, which is one instruction
// and serves integers and small floats alike. So 16 weights of 4 bits take five instructions with
// AVX-512: broadcast, shift, look up, multiply and store. Scales are read once for each group.
// E4M3 has an exponent of 4 bits with a bias of 7: its bits, moved to the place of a float's, are
// the number times 2^-120, subnormals included.
#pragma once

namespace ffncore {
namespace {

enum Terms { kScaled, kWithZero, kWithOffset };

// The numbers of group g from `lane` on.
template <class F> inline typename F::V number_of(const ExpandNumbers &n, int64_t g, int lane) {
    const int64_t at = g * kUnit + lane;
    switch (n.kind) {
    case kNumberF32:
        return F::load((const float *)n.data + at);
    case kNumberF16:
        return F::load((const F16 *)n.data + at);
    case kNumberBf16:
        return F::load((const Bf16 *)n.data + at);
    default: {
        const F16 *const factors = (const F16 *)n.factors;
        return F::mul(F::load(factors + g / n.factor_groups * kUnit + lane),
                      F::from_int(F::load_int8((const int8_t *)n.data + at)));
    }
    }
}

// Reads the codes of a vector of outputs, step by step.
template <class F, int Bits, bool E4M3, Terms Has> struct Codes {
    using V = typename F::V;
    static constexpr int kMain = Bits == 5 || Bits == 6 ? 4 : Bits, kHigh = Bits - kMain;
    static constexpr int64_t kStep = kUnit * kMain / 8, kHighStep = kUnit * kHigh / 8; // bytes

    // The value of a code in the step at `codes` and `high`.
    static inline V value(const ExpandArgs &a, typename F::Table table, const char *codes,
                          const char *high, int lane) {
        if constexpr (E4M3) {
            return F::mul(F::from_e4m3((const uint8_t *)codes + lane), F::set1(0x1p120f));
        } else if constexpr (Bits == 8) {
            return F::from_int(F::load_int8((const int8_t *)codes + lane));
        } else {
            const auto low =
                F::template load_codes<kMain>(codes, F::template code_shifts<kMain>(lane));
            if constexpr (kHigh == 0) return F::look_up(table, low);
            const auto rest =
                F::template load_codes<kHigh>(high, F::template code_shifts<kHigh>(lane));
            return F::sub(F::from_int(F::join_codes(low, rest, kHigh)), F::set1(a.center));
        }
    }
    static inline V number(V value, V scale, V zero, V offset) {
        if (Has == kWithZero) value = F::sub(value, zero);
        const V w = F::mul(value, scale);
        return Has == kWithOffset ? F::add(w, offset) : w;
    }
};

// Calls group(g, first, end) for the groups of steps that [0, a.steps) has a part of.
template <class Group> inline void for_groups(const ExpandArgs &a, const Group &group) {
    for (int64_t k = 0, end; k < a.steps; k = end) {
        const int64_t g = (a.first + k) / a.group, next = (g + 1) * a.group - a.first;
        end = next < a.steps ? next : a.steps;
        group(g, k, end);
    }
}

template <class F, int Bits, bool E4M3, Terms Has> struct Expand {
    using Args = ExpandArgs;
    static void run(const ExpandArgs &a) {
        using Of = Codes<F, Bits, E4M3, Has>;
        using V = typename F::V;
        const auto table = F::table(a.table);
        for (int v = 0; v < a.vectors; ++v) {
            const int lane = a.lane + v * F::W;
            const char *codes = (const char *)a.codes, *high = (const char *)a.high;
            float *dst = a.dst + v * F::W;
            for_groups(a, [&](int64_t g, int64_t k, int64_t end) __attribute__((always_inline)) {
                const V scale = number_of<F>(a.scale, g, lane);
                const V zero = Has == kWithZero ? number_of<F>(a.zero, g, lane) : F::zero();
                const V offset = Has == kWithOffset ? number_of<F>(a.offset, g, lane) : F::zero();
                for (; k < end; ++k, codes += Of::kStep, high += Of::kHighStep, dst += a.ld)
                    F::store(dst, Of::number(Of::value(a, table, codes, high, lane), scale, zero,
                                             offset));
            });
        }
    }
};

// MR tokens times NV vectors of outputs. Their numbers never leave the registers, and NV chains of
// fma for each token hide the latency.
template <int MR, int NV> struct Few {
    template <class F, int Bits, bool E4M3, Terms Has> struct Of {
        using Args = FewArgs;
        static void run(const FewArgs &t) {
            using Read = Codes<F, Bits, E4M3, Has>;
            using V = typename F::V;
            const ExpandArgs &s = t.shared;
            const auto table = F::table(s.table);
            V acc[MR][NV];
            const char *codes[NV], *high[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                codes[v] = (const char *)t.of[v].codes, high[v] = (const char *)t.of[v].high;
#pragma GCC unroll 4
                for (int r = 0; r < MR; ++r) acc[r][v] = F::zero();
            }
            const auto numbers = [&](int64_t g, int i, const ExpandNumbers &n, V(&to)[NV]) {
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v)
                    to[v] = number_of<F>(
                        {n.kind, t.of[v].numbers[i], t.of[v].factors[i], n.factor_groups}, g,
                        t.of[v].lane);
            };
            for_groups(s, [&](int64_t g, int64_t k, int64_t end) __attribute__((always_inline)) {
                V scale[NV], zero[NV], offset[NV];
                numbers(g, 0, s.scale, scale);
                if (Has == kWithZero) numbers(g, 1, s.zero, zero);
                if (Has == kWithOffset) numbers(g, 2, s.offset, offset);
                const float *a = t.a + k;
                for (; k < end; ++k, ++a)
#pragma GCC unroll 4
                    for (int v = 0; v < NV; ++v) {
                        const V w = Read::number(
                            Read::value(s, table, codes[v], high[v], F::W == kUnit ? 0 : v * F::W),
                            scale[v], zero[v], offset[v]);
                        codes[v] += Read::kStep, high[v] += Read::kHighStep;
#pragma GCC unroll 4
                        for (int r = 0; r < MR; ++r)
                            acc[r][v] = F::fma(F::set1(a[r * t.row]), w, acc[r][v]);
                    }
            });
#pragma GCC unroll 4
            for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) {
                    float *c = t.of[v].c + r * t.ldc;
                    F::store(c, t.add ? F::add(F::load(c), acc[r][v]) : acc[r][v]);
                }
        }
    };
};

// Chooses Kernel<F, Bits, E4M3, Has> by the format of the weights.
template <class F, template <class, int, bool, Terms> class Kernel> struct ByFormat {
    using Args = typename Kernel<F, 4, false, kScaled>::Args;
    static const ExpandArgs &format(const ExpandArgs &a) { return a; }
    static const ExpandArgs &format(const FewArgs &a) { return a.shared; }

    template <int Bits, bool E4M3 = false> static void terms(const Args &a) {
        if (format(a).zero.kind != kNoNumber) return Kernel<F, Bits, E4M3, kWithZero>::run(a);
        if (format(a).offset.kind != kNoNumber) return Kernel<F, Bits, E4M3, kWithOffset>::run(a);
        Kernel<F, Bits, E4M3, kScaled>::run(a);
    }
    static void run(const Args &a) {
        switch (format(a).bits) {
        case 1:
            return terms<1>(a);
        case 2:
            return terms<2>(a);
        case 4:
            return terms<4>(a);
        case 5:
            return terms<5>(a);
        case 6:
            return terms<6>(a);
        default:
            return format(a).e4m3 ? terms<8, true>(a) : terms<8>(a);
        }
    }
};

} // namespace
} // namespace ffncore
