// The vector vocabulary of the scalar level. It specifies what each operation means.
//
// A vector is a small array, and every operation is a plain loop over its lanes, so that this level
// builds on any platform. The widths are those of AVX2. With -ffp-contract=off each operation on a
// lane is one IEEE operation; only fma and sqrt may call libm. The other levels (vec_avx2.h,
// vec_avx512.h) give the same bits in every lane, except in the payload of a NaN.
#pragma once
#include <stdint.h>

#include "kernels.h"

#include "element.inl"

namespace ffncore {
namespace {

inline float lane_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double lane_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

inline float lane_sqrt(float a) { return __builtin_sqrtf(a); }
inline double lane_sqrt(double a) { return __builtin_sqrt(a); }

template <class Value, class Bits> inline Bits lane_bits(Value x) {
    Bits bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

template <class Value, class Bits> inline Value lane_value(Bits bits) {
    Value x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// Value is float or double, Bits the unsigned integer of its size, Fraction the number of stored
// fraction bits.
template <class Value, class Bits, int Lanes, int Fraction> struct ScalarVector {
    using T = Value;
    static constexpr int W = Lanes;
    struct V {
        T v[W];
    };
    struct M {
        Bits m[W]; // all ones or zero
    };

    static constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);
    // kRound is 1.5 * 2^Fraction: adding it rounds an |x| < 2^(Fraction - 1) to an integer in the
    // low bits. kShift adds the exponent bias, which makes these bits the exponent field of 2^x
    // (see exponent).
    static constexpr T kRound = T(Bits(3) << (Fraction - 1));
    static constexpr T kShift = kRound + T((Bits(1) << (8 * sizeof(T) - Fraction - 2)) - 1);

    template <class Op> static inline V map(Op op) {
        V r;
        for (int i = 0; i < W; ++i) r.v[i] = op(i);
        return r;
    }
    template <class Op> static inline M test(Op op) {
        M r;
        for (int i = 0; i < W; ++i) r.m[i] = op(i) ? ~Bits(0) : Bits(0);
        return r;
    }

    // S is T, or for float also a 16-bit type, which is converted (element.inl).
    template <class S> static inline V load(const S *p) {
        return map([&](int i) { return number(p[i]); });
    }
    template <class S> static inline void store(S *p, V a) {
        for (int i = 0; i < W; ++i) put(p + i, a.v[i]);
    }
    // Stores to whole, aligned lines of memory, past the caches where the instruction set can.
    // Other threads see the numbers after drain().
    static inline void stream(T *p, V a) { store(p, a); }
    template <class S> static inline void stream(S *p, V a, V b) { store(p, a), store(p + W, b); }
    static inline void drain() {}
    // Loads or stores the first n lanes, 0 <= n <= W. The other lanes are zero, and their memory is
    // not touched.
    template <class S> static inline V load_n(const S *p, int64_t n) {
        V r;
        for (int i = 0; i < W; ++i) r.v[i] = T(0);
        for (int64_t i = 0; i < n; ++i) r.v[i] = number(p[i]);
        return r;
    }
    template <class S> static inline void store_n(S *p, V a, int64_t n) {
        for (int64_t i = 0; i < n; ++i) put(p + i, a.v[i]);
    }
    static inline V round_bf16(V a) {
        Bf16 rounded[W];
        store(rounded, a);
        return load(rounded);
    }
    // The even elements, or the odd ones, of W pairs of bfloat16.
    static inline V load_even(const Bf16 *p) {
        return map([&](int i) { return number(p[2 * i]); });
    }
    static inline V load_odd(const Bf16 *p) {
        return map([&](int i) { return number(p[2 * i + 1]); });
    }
    // The same of pairs that a vector holds.
    static inline V even_of(V pairs) {
        return map(
            [&](int i) { return lane_value<T>(Bits(lane_bits<T, Bits>(pairs.v[i]) << 16)); });
    }
    static inline V odd_of(V pairs) {
        return map([&](int i) {
            return lane_value<T>(Bits(lane_bits<T, Bits>(pairs.v[i]) & Bits(0xffff0000)));
        });
    }
    static inline void store_pairs(Bf16 *p, V even, V odd) {
        for (int i = 0; i < W; ++i) put(p + 2 * i, even.v[i]), put(p + 2 * i + 1, odd.v[i]);
    }
    static inline V set1(T x) {
        return map([&](int) { return x; });
    }
    static inline V zero() { return set1(T(0)); }

    static inline V add(V a, V b) {
        return map([&](int i) { return a.v[i] + b.v[i]; });
    }
    static inline V sub(V a, V b) {
        return map([&](int i) { return a.v[i] - b.v[i]; });
    }
    static inline V mul(V a, V b) {
        return map([&](int i) { return a.v[i] * b.v[i]; });
    }
    static inline V div(V a, V b) {
        return map([&](int i) { return a.v[i] / b.v[i]; });
    }
    static inline V fma(V a, V b, V c) { // a * b + c
        return map([&](int i) { return lane_fma(a.v[i], b.v[i], c.v[i]); });
    }
    static inline V fnma(V a, V b, V c) { // c - a * b
        return map([&](int i) { return lane_fma(-a.v[i], b.v[i], c.v[i]); });
    }
    static inline V fms(V a, V b, V c) { // a * b - c
        return map([&](int i) { return lane_fma(a.v[i], b.v[i], -c.v[i]); });
    }
    static inline V fnms(V a, V b, V c) { // -a * b - c
        return map([&](int i) { return lane_fma(-a.v[i], b.v[i], -c.v[i]); });
    }
    static inline V sqrt(V a) { // correctly rounded, as IEEE 754 asks for
        return map([&](int i) { return lane_sqrt(a.v[i]); });
    }
    // As minps and maxps do, these return b where the two are equal or either is NaN.
    static inline V min_(V a, V b) {
        return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    static inline V max_(V a, V b) {
        return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }

    static inline M lt(V a, V b) {
        return test([&](int i) { return a.v[i] < b.v[i]; });
    }
    static inline M le(V a, V b) {
        return test([&](int i) { return a.v[i] <= b.v[i]; });
    }
    static inline M gt(V a, V b) { return lt(b, a); }
    static inline M ge(V a, V b) { return le(b, a); }
    static inline M eq(V a, V b) {
        return test([&](int i) { return a.v[i] == b.v[i]; });
    }
    static inline M unordered(V a, V b) {
        return test([&](int i) { return a.v[i] != a.v[i] || b.v[i] != b.v[i]; });
    }
    static inline M both(M a, M b) {
        return test([&](int i) { return (a.m[i] & b.m[i]) != 0; });
    }
    static inline M either(M a, M b) {
        return test([&](int i) { return (a.m[i] | b.m[i]) != 0; });
    }
    static inline bool any(M a) {
        Bits r = 0;
        for (int i = 0; i < W; ++i) r |= a.m[i];
        return r != 0;
    }
    static inline uint32_t bits(M a) { // lane i in bit i
        uint32_t r = 0;
        for (int i = 0; i < W; ++i) r |= (a.m[i] ? 1u : 0u) << i;
        return r;
    }
    static inline M first(int64_t n) { // lanes below n
        return test([&](int i) { return i < n; });
    }
    static inline V select(M m, V a, V b) { // a where m
        return map([&](int i) { return m.m[i] ? a.v[i] : b.v[i]; });
    }
    static inline V keep(M m, V a) { return select(m, a, zero()); }

    static inline V abs(V a) {
        return map([&](int i) { return lane_value<T>(Bits(lane_bits<T, Bits>(a.v[i]) & ~kSign)); });
    }
    static inline V neg(V a) {
        return map([&](int i) { return lane_value<T>(Bits(lane_bits<T, Bits>(a.v[i]) ^ kSign)); });
    }
    static inline V copysign(V mag, V sgn) {
        return map([&](int i) {
            return lane_value<T>(Bits((lane_bits<T, Bits>(mag.v[i]) & ~kSign) |
                                      (lane_bits<T, Bits>(sgn.v[i]) & kSign)));
        });
    }
    // Rounds to the nearest integer, ties to even, for |a| < 2^(Fraction - 1); -0 may become +0.
    static inline V round(V a) { return sub(add(a, set1(kRound)), set1(kRound)); }
    // 2^n from t = kShift + n, where n is an integer in the normal range of exponents: one shift.
    static inline V exponent(V t) {
        return map(
            [&](int i) { return lane_value<T>(Bits(lane_bits<T, Bits>(t.v[i]) << Fraction)); });
    }
    static inline V pow2(V n) { return exponent(add(n, set1(kShift))); }

    // Codes of quantised weights (expand.inl). I: integers, Table: the values of 16 codes.
    struct I {
        uint32_t v[Lanes];
    };
    using Table = const T *;
    static inline Table table(const T *p) { return p; }
    static inline V look_up(Table t, I codes) {
        return map([&](int i) { return t[codes.v[i] & 15]; });
    }
    static inline I load_int8(const int8_t *p) {
        I a;
        for (int i = 0; i < W; ++i) a.v[i] = (uint32_t)(int32_t)p[i];
        return a;
    }
    static inline V from_int(I a) {
        return map([&](int i) { return (T)(int32_t)a.v[i]; });
    }
    // The numbers of E4M3 times 2^-120: their bits in the places of a float's.
    static inline V from_e4m3(const uint8_t *p) {
        return map(
            [&](int i) { return lane_value<T>(Bits((p[i] & 127u) << 20 | (p[i] & 128u) << 24)); });
    }
    // How far the codes from `lane` on have to be shifted to the lowest bits of their words.
    template <int B> static inline I code_shifts(int lane) {
        I a;
        for (int i = 0; i < W; ++i) a.v[i] = (uint32_t)((lane + i) >> (B == 4)) * B;
        return a;
    }
    // The codes of a step in the lowest bits; what is above them belongs to others.
    template <int B> static inline I load_codes(const void *p, I shifts) {
        const uint64_t words = code_words<B>(p);
        for (int i = 0; i < W; ++i) shifts.v[i] = (uint32_t)(words >> (i % 2 * 32)) >> shifts.v[i];
        return shifts;
    }
    // Codes of 4 bits and the `bits` bits above them.
    static inline I join_codes(I low, I high, int bits) {
        for (int i = 0; i < W; ++i)
            low.v[i] = (low.v[i] & 15) | (high.v[i] & ((1u << bits) - 1)) << 4;
        return low;
    }

    static inline void transpose(V (&r)[W]) {
        for (int i = 0; i < W; ++i)
            for (int j = i + 1; j < W; ++j) {
                T t = r[i].v[j];
                r[i].v[j] = r[j].v[i];
                r[j].v[i] = t;
            }
    }
    // r[k] = lane i from p[i * ld + k], i, k < W.
    template <class S> static inline void load_transposed(const S *p, int64_t ld, V (&r)[W]) {
        for (int i = 0; i < W; ++i) r[i] = load(p + i * ld);
        transpose(r);
    }
    // The same for the 32 bytes of T, or as many numbers of 16 bits, of W rows.
    template <class S> static inline void load_columns(const S *p, int64_t ld, V (&r)[W]) {
        load_transposed(p, ld, r);
    }
    // 32-byte groups [g], [u] -> [g], [u]: a group is one vector here.
    static inline void deinterleave(V a, V b, V &g, V &u) {
        g = a;
        u = b;
    }
};

using F32 = ScalarVector<float, uint32_t, 8, 23>;
using F64 = ScalarVector<double, uint64_t, 4, 52>;

} // namespace
} // namespace ffncore
