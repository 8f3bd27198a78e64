// The vector vocabulary for AVX2 with FMA: vectors of 8 floats or 4 doubles. vec_scalar.h says what
// each operation means.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "kernels.h"

#include "element.inl"

namespace ffncore {
namespace {

// The mask of the first n lanes is the window that starts at kTail + W - n: n ones, then zeros.
alignas(64) constexpr int32_t kTail32[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                             0,  0,  0,  0,  0,  0,  0,  0};
alignas(64) constexpr int64_t kTail64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};

struct F32 {
    using T = float;
    using V = __m256;
    using M = __m256;
    static constexpr int W = 8;
    static constexpr T kRound = 0x1.8p23f;
    static constexpr T kShift = 0x1.8p23f + 127; // with the exponent bias, see vec_scalar.h

    static inline __m256i tail(int64_t n) {
        return _mm256_loadu_si256((const __m256i *)(kTail32 + W - n));
    }
    static inline V load(const T *p) { return _mm256_loadu_ps(p); }
    static inline void store(T *p, V a) { _mm256_storeu_ps(p, a); }
    static inline void stream(T *p, V a) { _mm256_stream_ps(p, a); }
    static inline void drain() { _mm_sfence(); }
    static inline V load_n(const T *p, int64_t n) { return _mm256_maskload_ps(p, tail(n)); }
    static inline void store_n(T *p, V a, int64_t n) { _mm256_maskstore_ps(p, tail(n), a); }
    static inline V set1(T x) { return _mm256_set1_ps(x); }
    static inline V zero() { return _mm256_setzero_ps(); }

    static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
    static inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static inline V div(V a, V b) { return _mm256_div_ps(a, b); }
    static inline V sqrt(V a) { return _mm256_sqrt_ps(a); }
    static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static inline V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
    static inline V fms(V a, V b, V c) { return _mm256_fmsub_ps(a, b, c); }
    static inline V fnms(V a, V b, V c) { return _mm256_fnmsub_ps(a, b, c); }
    static inline V min_(V a, V b) { return _mm256_min_ps(a, b); }
    static inline V max_(V a, V b) { return _mm256_max_ps(a, b); }

    static inline M lt(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
    static inline M le(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
    static inline M gt(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
    static inline M ge(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
    static inline M eq(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
    static inline M unordered(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
    static inline M both(M a, M b) { return _mm256_and_ps(a, b); }
    static inline M either(M a, M b) { return _mm256_or_ps(a, b); }
    static inline bool any(M a) { return _mm256_movemask_ps(a) != 0; }
    static inline uint32_t bits(M a) { return (uint32_t)_mm256_movemask_ps(a); }
    static inline M first(int64_t n) { return _mm256_castsi256_ps(tail(n)); }
    static inline V select(M m, V a, V b) { return _mm256_blendv_ps(b, a, m); }
    static inline V keep(M m, V a) { return _mm256_and_ps(m, a); }

    static inline V sign() { return _mm256_set1_ps(-0.0f); }
    static inline V abs(V a) { return _mm256_andnot_ps(sign(), a); }
    static inline V neg(V a) { return _mm256_xor_ps(sign(), a); }
    static inline V copysign(V mag, V sgn) {
        return _mm256_or_ps(_mm256_andnot_ps(sign(), mag), _mm256_and_ps(sign(), sgn));
    }
    static inline V round(V a) { return sub(add(a, set1(kRound)), set1(kRound)); }
    static inline V exponent(V t) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23));
    }
    static inline V pow2(V n) { return exponent(add(n, set1(kShift))); }

    static inline void transpose(V (&r)[W]) {
        V t[W];
        for (int i = 0; i < W; i += 4) { // 2 x 2 and 4 x 4 blocks within 128-bit lanes
            V a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
            V c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]),
              d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
            t[i] = _mm256_shuffle_ps(a, c, 0x44);
            t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
            t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
            t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
            r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
        }
    }
    // r[k] = lane i from p[i * ld + k], i, k < W.
    template <class S> static inline void load_transposed(const S *p, int64_t ld, V (&r)[W]) {
        for (int i = 0; i < W; ++i) r[i] = load(p + i * ld);
        transpose(r);
    }
    template <class S> static inline void load_columns(const S *p, int64_t ld, V (&r)[W]) {
        load_transposed(p, ld, r);
    }
    static inline void deinterleave(V a, V b, V &g, V &u) {
        g = a;
        u = b;
    }

    // Codes of quantised weights (expand.inl). I: integers, Table: the values of 16 codes.
    using I = __m256i;
    struct Table {
        V low, high;
    };
    static inline Table table(const T *p) { return {load(p), load(p + 8)}; }
    static inline V look_up(Table t, I codes) {
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, codes),
                                _mm256_permutevar8x32_ps(t.high, codes),
                                _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
    }
    static inline I load_int8(const int8_t *p) {
        return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    }
    static inline V from_int(I a) { return _mm256_cvtepi32_ps(a); }
    static inline V from_e4m3(const uint8_t *p) { // times 2^-120
        const I a =
            _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)), 20);
        const I sign_bit = _mm256_slli_epi32(a, 4), rest = _mm256_set1_epi32(127 << 20);
        return copysign(_mm256_castsi256_ps(_mm256_and_si256(a, rest)),
                        _mm256_castsi256_ps(sign_bit));
    }
    template <int Bits> static inline I code_shifts(int lane) {
        const I lanes =
            _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(lane));
        return _mm256_mullo_epi32(_mm256_srli_epi32(lanes, Bits == 4), _mm256_set1_epi32(Bits));
    }
    template <int Bits> static inline I load_codes(const void *p, I shifts) {
        return _mm256_srlv_epi32(_mm256_set1_epi64x((long long)code_words<Bits>(p)), shifts);
    }
    static inline I join_codes(I low, I high, int bits) {
        const I few = _mm256_and_si256(high, _mm256_set1_epi32((1 << bits) - 1));
        return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)),
                               _mm256_slli_epi32(few, 4));
    }

    // 16-bit elements, see element.inl.
    static inline V load(const Bf16 *p) { return widened(_mm_loadu_si128((const __m128i *)p)); }
    static inline V load_n(const Bf16 *p, int64_t n) { return widened(part(p, n)); }
    static inline V load(const F16 *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    }
    static inline V load_n(const F16 *p, int64_t n) { return _mm256_cvtph_ps(part(p, n)); }
    static inline void store(Bf16 *p, V a) { _mm_storeu_si128((__m128i *)p, words(upper(a))); }
    static inline void store_n(Bf16 *p, V a, int64_t n) { put_part(p, words(upper(a)), n); }
    static inline void store(F16 *p, V a) { _mm_storeu_si128((__m128i *)p, half(a)); }
    static inline void store_n(F16 *p, V a, int64_t n) { put_part(p, half(a), n); }
    template <class S> static inline void stream(S *p, V a, V b) { store(p, a), store(p + W, b); }
    static inline V round_bf16(V a) { return _mm256_castsi256_ps(_mm256_slli_epi32(upper(a), 16)); }
    // The even elements, or the odd ones, of W pairs of bfloat16.
    static inline V load_even(const Bf16 *p) {
        return even_of(_mm256_loadu_si256((const __m256i *)p));
    }
    static inline V load_odd(const Bf16 *p) {
        return odd_of(_mm256_loadu_si256((const __m256i *)p));
    }
    static inline V even_of(__m256i pairs) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    }
    static inline V odd_of(__m256i pairs) {
        const __m256i upper_half = _mm256_set1_epi32((int)0xffff0000);
        return _mm256_castsi256_ps(_mm256_and_si256(pairs, upper_half));
    }
    static inline V even_of(V pairs) { return even_of(_mm256_castps_si256(pairs)); }
    static inline V odd_of(V pairs) { return odd_of(_mm256_castps_si256(pairs)); }
    static inline void store_pairs(Bf16 *p, V even, V odd) {
        _mm256_storeu_si256((__m256i *)p,
                            _mm256_or_si256(upper(even), _mm256_slli_epi32(upper(odd), 16)));
    }
    static inline V widened(__m128i a) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
    }
    // Rounded to bfloat16, in the lower half of each lane.
    static inline __m256i upper(V a) {
        const __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
        const __m256i even = _mm256_and_si256(high, _mm256_set1_epi32(1));
        const __m256i sum =
            _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), even);
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet,
                                  _mm256_castps_si256(unordered(a, a)));
    }
    static inline __m128i words(__m256i a) { // the lower half of each lane
        return _mm256_castsi256_si128(
            _mm256_permute4x64_epi64(_mm256_packus_epi32(a, a), 0x08)); // 0x08: quarters 0 and 2
    }
    static inline __m128i half(V a) {
        return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static inline __m128i part(const void *p, int64_t n) { // AVX2 has no masks for 16 bits
        alignas(16) uint16_t copy[W] = {};
        __builtin_memcpy(copy, p, (size_t)n * 2);
        return _mm_load_si128((const __m128i *)copy);
    }
    static inline void put_part(void *p, __m128i a, int64_t n) {
        alignas(16) uint16_t copy[W];
        _mm_store_si128((__m128i *)copy, a);
        __builtin_memcpy(p, copy, (size_t)n * 2);
    }
};

struct F64 {
    using T = double;
    using V = __m256d;
    using M = __m256d;
    static constexpr int W = 4;
    static constexpr T kRound = 0x1.8p52;
    static constexpr T kShift = 0x1.8p52 + 1023;

    static inline __m256i tail(int64_t n) {
        return _mm256_loadu_si256((const __m256i *)(kTail64 + W - n));
    }
    static inline V load(const T *p) { return _mm256_loadu_pd(p); }
    static inline void store(T *p, V a) { _mm256_storeu_pd(p, a); }
    static inline void stream(T *p, V a) { _mm256_stream_pd(p, a); }
    static inline V load_n(const T *p, int64_t n) { return _mm256_maskload_pd(p, tail(n)); }
    static inline void store_n(T *p, V a, int64_t n) { _mm256_maskstore_pd(p, tail(n), a); }
    static inline V set1(T x) { return _mm256_set1_pd(x); }
    static inline V zero() { return _mm256_setzero_pd(); }

    static inline V add(V a, V b) { return _mm256_add_pd(a, b); }
    static inline V sub(V a, V b) { return _mm256_sub_pd(a, b); }
    static inline V mul(V a, V b) { return _mm256_mul_pd(a, b); }
    static inline V div(V a, V b) { return _mm256_div_pd(a, b); }
    static inline V sqrt(V a) { return _mm256_sqrt_pd(a); }
    static inline V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
    static inline V fnma(V a, V b, V c) { return _mm256_fnmadd_pd(a, b, c); }
    static inline V fms(V a, V b, V c) { return _mm256_fmsub_pd(a, b, c); }
    static inline V fnms(V a, V b, V c) { return _mm256_fnmsub_pd(a, b, c); }
    static inline V min_(V a, V b) { return _mm256_min_pd(a, b); }
    static inline V max_(V a, V b) { return _mm256_max_pd(a, b); }

    static inline M lt(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
    static inline M le(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_LE_OQ); }
    static inline M gt(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
    static inline M ge(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_GE_OQ); }
    static inline M eq(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
    static inline M unordered(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_UNORD_Q); }
    static inline M both(M a, M b) { return _mm256_and_pd(a, b); }
    static inline M either(M a, M b) { return _mm256_or_pd(a, b); }
    static inline bool any(M a) { return _mm256_movemask_pd(a) != 0; }
    static inline uint32_t bits(M a) { return (uint32_t)_mm256_movemask_pd(a); }
    static inline M first(int64_t n) { return _mm256_castsi256_pd(tail(n)); }
    static inline V select(M m, V a, V b) { return _mm256_blendv_pd(b, a, m); }
    static inline V keep(M m, V a) { return _mm256_and_pd(m, a); }

    static inline V sign() { return _mm256_set1_pd(-0.0); }
    static inline V abs(V a) { return _mm256_andnot_pd(sign(), a); }
    static inline V neg(V a) { return _mm256_xor_pd(sign(), a); }
    static inline V copysign(V mag, V sgn) {
        return _mm256_or_pd(_mm256_andnot_pd(sign(), mag), _mm256_and_pd(sign(), sgn));
    }
    static inline V round(V a) { return sub(add(a, set1(kRound)), set1(kRound)); }
    static inline V exponent(V t) {
        return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t), 52));
    }
    static inline V pow2(V n) { return exponent(add(n, set1(kShift))); }

    static inline void transpose(V (&r)[W]) {
        V a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
        V c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
        r[0] = _mm256_permute2f128_pd(a, c, 0x20);
        r[1] = _mm256_permute2f128_pd(b, d, 0x20);
        r[2] = _mm256_permute2f128_pd(a, c, 0x31);
        r[3] = _mm256_permute2f128_pd(b, d, 0x31);
    }
    // r[k] = lane i from p[i * ld + k], i, k < W.
    static inline void load_transposed(const T *p, int64_t ld, V (&r)[W]) {
        for (int i = 0; i < W; ++i) r[i] = load(p + i * ld);
        transpose(r);
    }
    static inline void load_columns(const T *p, int64_t ld, V (&r)[W]) {
        load_transposed(p, ld, r);
    }
    static inline void deinterleave(V a, V b, V &g, V &u) {
        g = a;
        u = b;
    }
};

} // namespace
} // namespace ffncore
