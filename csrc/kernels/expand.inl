// Quantised weights become numbers:
//
//   dst[step][output] = scale * (value - zero) + offset        float32, each operation rounded
//
// for some steps of a unit of 16 outputs (ExpandArgs). The codes of a step are read as one or two
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

template <class F, int Bits, bool E4M3, Terms Has> void expand(const ExpandArgs &a) {
    using V = typename F::V;
    constexpr int main_bits = Bits == 5 || Bits == 6 ? 4 : Bits, high_bits = Bits - main_bits;
    constexpr int64_t step_bytes = kUnit * main_bits / 8, high_bytes = kUnit * high_bits / 8;
    const auto table = F::table(a.table);
    const V center = F::set1(a.center), unbias = F::set1(0x1p120f);
    for (int v = 0; v < a.vectors; ++v) {
        const int lane = a.lane + v * F::W;
        const auto shifts = F::template code_shifts<main_bits>(lane);
        const auto high_shifts = F::template code_shifts<high_bits>(lane);
        const char *codes = (const char *)a.codes, *high = (const char *)a.high;
        float *dst = a.dst + v * F::W;
        for (int64_t k = 0; k < a.steps;) {
            const int64_t g = (a.first + k) / a.group, next = (g + 1) * a.group - a.first;
            const int64_t end = next < a.steps ? next : a.steps;
            const V scale = number_of<F>(a.scale, g, lane);
            const V zero = Has == kWithZero ? number_of<F>(a.zero, g, lane) : F::zero();
            const V offset = Has == kWithOffset ? number_of<F>(a.offset, g, lane) : F::zero();
            for (; k < end; ++k, codes += step_bytes, high += high_bytes, dst += a.ld) {
                V value;
                if constexpr (E4M3) {
                    value = F::mul(F::from_e4m3((const uint8_t *)codes + lane), unbias);
                } else if constexpr (Bits == 8) {
                    value = F::from_int(F::load_int8((const int8_t *)codes + lane));
                } else {
                    const auto low = F::template load_codes<main_bits>(codes, shifts);
                    if constexpr (high_bits > 0)
                        value =
                            F::sub(F::from_int(F::join_codes(
                                       low, F::template load_codes<high_bits>(high, high_shifts),
                                       high_bits)),
                                   center);
                    else
                        value = F::look_up(table, low);
                }
                if (Has == kWithZero) value = F::sub(value, zero);
                V w = F::mul(value, scale);
                if (Has == kWithOffset) w = F::add(w, offset);
                F::store(dst, w);
            }
        }
    }
}

template <class F, int Bits, bool E4M3> void expand_terms(const ExpandArgs &a) {
    if (a.zero.kind != kNoNumber) return expand<F, Bits, E4M3, kWithZero>(a);
    if (a.offset.kind != kNoNumber) return expand<F, Bits, E4M3, kWithOffset>(a);
    expand<F, Bits, E4M3, kScaled>(a);
}

template <class F> void expand_codes(const ExpandArgs &a) {
    switch (a.bits) {
    case 1:
        return expand_terms<F, 1, false>(a);
    case 2:
        return expand_terms<F, 2, false>(a);
    case 4:
        return expand_terms<F, 4, false>(a);
    case 5:
        return expand_terms<F, 5, false>(a);
    case 6:
        return expand_terms<F, 6, false>(a);
    default:
        return a.e4m3 ? expand_terms<F, 8, true>(a) : expand_terms<F, 8, false>(a);
    }
}

} // namespace
} // namespace ffncore
