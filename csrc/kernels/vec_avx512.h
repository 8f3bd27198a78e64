// The vector vocabulary for AVX-512 (F, BW, VL, DQ): vectors of 16 floats or 8 doubles.
// vec_scalar.h says what each operation means. Tails are masked loads and stores.
#pragma once
// GCC 12 and 13 warn about _mm512_undefined_ps() inside their own header (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdint.h>

#include "kernels.h"

#include "element.inl"

namespace ffncore {
namespace {

// Tile heights for 1, 2, 3 and 4 vectors, see table.inl.
constexpr int kTileRows[] = {10, 14, 8, 6};

struct F32 {
    using T = float;
    using V = __m512;
    using M = __mmask16;
    static constexpr int W = 16;
    static constexpr T kRound = 0x1.8p23f;
    static constexpr T kShift = 0x1.8p23f + 127; // with the exponent bias, see vec_scalar.h

    static inline M first(int64_t n) { return (M)((1u << n) - 1); }
    static inline V load(const T *p) { return _mm512_loadu_ps(p); }
    static inline void store(T *p, V a) { _mm512_storeu_ps(p, a); }
    static inline void stream(T *p, V a) { _mm512_stream_ps(p, a); }
    static inline void drain() { _mm_sfence(); }
    static inline V load_n(const T *p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static inline void store_n(T *p, V a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a); }
    static inline V set1(T x) { return _mm512_set1_ps(x); }
    static inline V zero() { return _mm512_setzero_ps(); }

    static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
    static inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static inline V div(V a, V b) { return _mm512_div_ps(a, b); }
    static inline V sqrt(V a) { return _mm512_sqrt_ps(a); }
    static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
    static inline V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
    static inline V fms(V a, V b, V c) { return _mm512_fmsub_ps(a, b, c); }
    static inline V fnms(V a, V b, V c) { return _mm512_fnmsub_ps(a, b, c); }
    static inline V min_(V a, V b) { return _mm512_min_ps(a, b); }
    static inline V max_(V a, V b) { return _mm512_max_ps(a, b); }

    static inline M lt(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
    static inline M le(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
    static inline M gt(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
    static inline M ge(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
    static inline M eq(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    static inline M unordered(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
    static inline M both(M a, M b) { return (M)(a & b); }
    static inline M either(M a, M b) { return (M)(a | b); }
    static inline bool any(M a) { return a != 0; }
    static inline uint32_t bits(M a) { return a; }
    static inline V select(M m, V a, V b) { return _mm512_mask_blend_ps(m, b, a); }
    static inline V keep(M m, V a) { return _mm512_maskz_mov_ps(m, a); }

    static inline V sign() { return _mm512_set1_ps(-0.0f); }
    static inline V abs(V a) { return _mm512_andnot_ps(sign(), a); }
    static inline V neg(V a) { return _mm512_xor_ps(sign(), a); }
    static inline V copysign(V mag, V sgn) { // 0xd8: third ? second : first, per bit
        return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
            _mm512_castps_si512(mag), _mm512_castps_si512(sgn), _mm512_castps_si512(sign()), 0xd8));
    }
    static inline V round(V a) { return sub(add(a, set1(kRound)), set1(kRound)); }
    static inline V exponent(V t) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23));
    }
    static inline V pow2(V n) { return exponent(add(n, set1(kShift))); }

    static inline void transpose(V (&r)[W]) {
        V t[W];
        for (int i = 0; i < W; i += 4) { // 4 x 4 blocks within 128-bit lanes
            V a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
            V c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]),
              d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
            t[i] = _mm512_shuffle_ps(a, c, 0x44);
            t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
            t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
            t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
        }
        for (int i = 0; i < 4; ++i) { // then the 4 x 4 square of such blocks
            V a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
            V b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
            V c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
            V d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
            r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
            r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
            r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
            r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
        }
    }
    // r[k] = the numbers k < 4, of 32 bits, of 16 rows that lie `ld` bytes apart. Row 4 i + j is
    // put into 128-bit lane i of x[j] while it is loaded, which the fma ports can do, too. So the
    // shuffle port, which alone can do the rest, has 8 instructions instead of 16.
    static inline void load_four(const char *p, int64_t ld, V *r) {
        V x[4];
        const char *const q[4] = {p, p + 4 * ld, p + 8 * ld, p + 12 * ld}; // few address registers
        for (int j = 0; j < 4; ++j) {
            const auto row = [&](int i) { return _mm_loadu_ps((const float *)(q[i] + j * ld)); };
            V v = _mm512_castps128_ps512(row(0));
            v = _mm512_insertf32x4(v, row(1), 1);
            v = _mm512_insertf32x4(v, row(2), 2);
            x[j] = _mm512_insertf32x4(v, row(3), 3);
        }
        V a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
        V c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
        r[0] = _mm512_shuffle_ps(a, c, 0x44);
        r[1] = _mm512_shuffle_ps(a, c, 0xee);
        r[2] = _mm512_shuffle_ps(b, d, 0x44);
        r[3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    // r[k] = lane i from p[i * ld + k], i, k < W.
    static inline void load_transposed(const T *p, int64_t ld, V (&r)[W]) {
        for (int k = 0; k < W; k += 4) load_four((const char *)(p + k), 4 * ld, r + k);
    }
    static inline void load_transposed(const Bf16 *p, int64_t ld, V (&r)[W]) {
        for (int k = 0; k < W; k += 8) { // a pair is moved as one number
            V pairs[4];
            load_four((const char *)(p + k), 2 * ld, pairs);
            for (int i = 0; i < 4; ++i) {
                r[k + 2 * i] = even_of(_mm512_castps_si512(pairs[i]));
                r[k + 2 * i + 1] = odd_of(_mm512_castps_si512(pairs[i]));
            }
        }
    }
    static inline void load_transposed(const F16 *p, int64_t ld, V (&r)[W]) {
        for (int i = 0; i < W; ++i) r[i] = load(p + i * ld);
        transpose(r);
    }
    // r[k] = lane i from p[i * ld + k], i < W, k < 8.
    static inline void load_columns(const T *p, int64_t ld, V (&r)[8]) {
        load_four((const char *)p, 4 * ld, r);
        load_four((const char *)(p + 4), 4 * ld, r + 4);
    }
    static inline void load_columns(const F16 *p, int64_t ld, V (&r)[8]) {
        V pairs[4];
        load_four((const char *)p, 2 * ld, pairs);
        for (int i = 0; i < 4; ++i) {
            const __m512i both = _mm512_castps_si512(pairs[i]);
            r[2 * i] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
            r[2 * i + 1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
        }
    }
    // 32-byte groups [g u], [g u] -> [g g], [u u].
    static inline void deinterleave(V a, V b, V &g, V &u) {
        g = _mm512_shuffle_f32x4(a, b, 0x44);
        u = _mm512_shuffle_f32x4(a, b, 0xee);
    }

    // Codes of quantised weights (expand.inl). I: integers, Table: the values of 16 codes.
    using I = __m512i;
    using Table = V;
    static inline Table table(const T *p) { return load(p); }
    static inline V look_up(Table t, I codes) { return _mm512_permutexvar_ps(codes, t); }
    static inline I load_int8(const int8_t *p) {
        return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
    }
    static inline V from_int(I a) { return _mm512_cvtepi32_ps(a); }
    static inline V from_e4m3(const uint8_t *p) { // times 2^-120
        const I a =
            _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), 20);
        const I sign_bit = _mm512_slli_epi32(a, 4), rest = _mm512_set1_epi32(127 << 20);
        return copysign(_mm512_castsi512_ps(_mm512_and_si512(a, rest)),
                        _mm512_castsi512_ps(sign_bit));
    }
    template <int Bits> static inline I code_shifts(int) {
        const I lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return _mm512_mullo_epi32(_mm512_srli_epi32(lanes, Bits == 4), _mm512_set1_epi32(Bits));
    }
    template <int Bits> static inline I load_codes(const void *p, I shifts) {
        return _mm512_srlv_epi32(_mm512_set1_epi64((long long)code_words<Bits>(p)), shifts);
    }
    static inline I join_codes(I low, I high, int bits) {
        const I few = _mm512_and_si512(high, _mm512_set1_epi32((1 << bits) - 1));
        return _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi32(15)),
                               _mm512_slli_epi32(few, 4));
    }

    // 16-bit elements, see element.inl.
    static inline V load(const Bf16 *p) { return widened(_mm256_loadu_si256((const __m256i *)p)); }
    static inline V load_n(const Bf16 *p, int64_t n) {
        return widened(_mm256_maskz_loadu_epi16(first(n), p));
    }
    static inline V load(const F16 *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
    }
    static inline V load_n(const F16 *p, int64_t n) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
    }
    static inline void store(Bf16 *p, V a) {
        _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(upper(a)));
    }
    static inline void stream(Bf16 *p, V a, V b) {
        _mm512_stream_si512((__m512i *)p, upper_halves(rounded(a), rounded(b)));
    }
    static inline void stream(F16 *p, V a, V b) {
        const __m512i low = _mm512_castsi256_si512(half(a));
        _mm512_stream_si512((__m512i *)p, _mm512_inserti64x4(low, half(b), 1));
    }
    static inline void store_n(Bf16 *p, V a, int64_t n) {
        _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(upper(a)));
    }
    static inline void store(F16 *p, V a) { _mm256_storeu_si256((__m256i *)p, half(a)); }
    static inline void store_n(F16 *p, V a, int64_t n) {
        _mm256_mask_storeu_epi16(p, first(n), half(a));
    }
    static inline V round_bf16(V a) { return odd_of(rounded(a)); }
    // The even elements, or the odd ones, of W pairs of bfloat16.
    static inline V load_even(const Bf16 *p) { return even_of(_mm512_loadu_si512(p)); }
    static inline V load_odd(const Bf16 *p) { return odd_of(_mm512_loadu_si512(p)); }
    static inline V even_of(__m512i pairs) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    }
    static inline V odd_of(__m512i pairs) {
        const __m512i upper_half = _mm512_set1_epi32((int)0xffff0000);
        return _mm512_castsi512_ps(_mm512_and_si512(pairs, upper_half));
    }
    static inline V even_of(V pairs) { return even_of(_mm512_castps_si512(pairs)); }
    static inline V odd_of(V pairs) { return odd_of(_mm512_castps_si512(pairs)); }
    static inline void store_pairs(Bf16 *p, V even, V odd) {
        _mm512_storeu_si512(p, paired(even, odd));
    }
    // Store only one half of each pair.
    static inline void store_even(Bf16 *p, V a) {
        _mm512_mask_storeu_epi16(p, 0x55555555, upper(a));
    }
    static inline void store_odd(Bf16 *p, V a) {
        _mm512_mask_storeu_epi16(p, 0xaaaaaaaa, rounded(a));
    }
    // Pairs of the numbers of two rows; and the pairs of n numbers of one row.
    static inline V pair(V even, V odd) {
        const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
        return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(odd)));
    }
    static inline V load_pairs(const Bf16 *p, int64_t n) {
        const __m512i pairs =
            n == 2 * W ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << n) - 1, p);
        return _mm512_castsi512_ps(pairs);
    }
    static inline V widened(__m256i a) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
    }
    // Rounded to bfloat16, in the upper half of each lane; the lower half is undefined.
    static inline __m512i rounded(V a) {
        const __m512i bits = _mm512_castps_si512(a);
        const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), even);
        const V sum = _mm512_castsi512_ps(_mm512_add_epi32(bits, up));
        // Where a is a quiet (0) or signalling (1) NaN, the result is a as a quiet NaN (2); else
        // the sum.
        const __m512i kNaN = _mm512_set1_epi32(0x22);
        return _mm512_castps_si512(_mm512_fixupimm_ps(sum, a, kNaN, 0));
    }
    // The same in the lower half, with zero above.
    static inline __m512i upper(V a) { return _mm512_srli_epi32(rounded(a), 16); }
    static inline __m512i upper_halves(__m512i a, __m512i b) {
        alignas(64) static constexpr uint16_t kOdd[32] = {
            1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
        return _mm512_permutex2var_epi16(a, _mm512_load_si512(kOdd), b);
    }
    // Pairs of rounded numbers.
    static inline __m512i paired(V even, V odd) {
        return _mm512_mask_blend_epi16(0xaaaaaaaa, upper(even), rounded(odd));
    }
    static inline __m256i half(V a) {
        return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
};

struct F64 {
    using T = double;
    using V = __m512d;
    using M = __mmask8;
    static constexpr int W = 8;
    static constexpr T kRound = 0x1.8p52;
    static constexpr T kShift = 0x1.8p52 + 1023;

    static inline M first(int64_t n) { return (M)((1u << n) - 1); }
    static inline V load(const T *p) { return _mm512_loadu_pd(p); }
    static inline void store(T *p, V a) { _mm512_storeu_pd(p, a); }
    static inline void stream(T *p, V a) { _mm512_stream_pd(p, a); }
    static inline V load_n(const T *p, int64_t n) { return _mm512_maskz_loadu_pd(first(n), p); }
    static inline void store_n(T *p, V a, int64_t n) { _mm512_mask_storeu_pd(p, first(n), a); }
    static inline V set1(T x) { return _mm512_set1_pd(x); }
    static inline V zero() { return _mm512_setzero_pd(); }

    static inline V add(V a, V b) { return _mm512_add_pd(a, b); }
    static inline V sub(V a, V b) { return _mm512_sub_pd(a, b); }
    static inline V mul(V a, V b) { return _mm512_mul_pd(a, b); }
    static inline V div(V a, V b) { return _mm512_div_pd(a, b); }
    static inline V sqrt(V a) { return _mm512_sqrt_pd(a); }
    static inline V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
    static inline V fnma(V a, V b, V c) { return _mm512_fnmadd_pd(a, b, c); }
    static inline V fms(V a, V b, V c) { return _mm512_fmsub_pd(a, b, c); }
    static inline V fnms(V a, V b, V c) { return _mm512_fnmsub_pd(a, b, c); }
    static inline V min_(V a, V b) { return _mm512_min_pd(a, b); }
    static inline V max_(V a, V b) { return _mm512_max_pd(a, b); }

    static inline M lt(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
    static inline M le(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ); }
    static inline M gt(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
    static inline M ge(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
    static inline M eq(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
    static inline M unordered(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q); }
    static inline M both(M a, M b) { return (M)(a & b); }
    static inline M either(M a, M b) { return (M)(a | b); }
    static inline bool any(M a) { return a != 0; }
    static inline uint32_t bits(M a) { return a; }
    static inline V select(M m, V a, V b) { return _mm512_mask_blend_pd(m, b, a); }
    static inline V keep(M m, V a) { return _mm512_maskz_mov_pd(m, a); }

    static inline V sign() { return _mm512_set1_pd(-0.0); }
    static inline V abs(V a) { return _mm512_andnot_pd(sign(), a); }
    static inline V neg(V a) { return _mm512_xor_pd(sign(), a); }
    static inline V copysign(V mag, V sgn) { // 0xd8: third ? second : first, per bit
        return _mm512_castsi512_pd(_mm512_ternarylogic_epi64(
            _mm512_castpd_si512(mag), _mm512_castpd_si512(sgn), _mm512_castpd_si512(sign()), 0xd8));
    }
    static inline V round(V a) { return sub(add(a, set1(kRound)), set1(kRound)); }
    static inline V exponent(V t) {
        return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t), 52));
    }
    static inline V pow2(V n) { return exponent(add(n, set1(kShift))); }

    static inline void transpose(V (&r)[W]) {
        V t[W];
        for (int i = 0; i < W; i += 2) { // 2 x 2 blocks within 128-bit lanes
            t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
        }
        for (int i = 0; i < 2; ++i) { // then the 4 x 4 square of such blocks
            V a = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x88);
            V b = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xdd);
            V c = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x88);
            V d = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xdd);
            r[i] = _mm512_shuffle_f64x2(a, c, 0x88);
            r[i + 2] = _mm512_shuffle_f64x2(b, d, 0x88);
            r[i + 4] = _mm512_shuffle_f64x2(a, c, 0xdd);
            r[i + 6] = _mm512_shuffle_f64x2(b, d, 0xdd);
        }
    }
    // r[k] = lane i from p[i * ld + k], i, k < W.
    static inline void load_transposed(const T *p, int64_t ld, V (&r)[W]) {
        for (int i = 0; i < W; ++i) r[i] = load(p + i * ld);
        transpose(r);
    }
    // r[k] = lane i from p[i * ld + k], i < W, k < 4. Two rows share a vector from the start.
    static inline void load_columns(const T *p, int64_t ld, V (&r)[4]) {
        V x[4];
        for (int i = 0; i < 4; ++i) { // rows 0 2, 1 3, 4 6, 5 7
            const T *const q = p + (i / 2 * 4 + i % 2) * ld;
            const V low = _mm512_castpd256_pd512(_mm256_loadu_pd(q));
            x[i] = _mm512_insertf64x4(low, _mm256_loadu_pd(q + 2 * ld), 1);
        }
        const V a = _mm512_unpacklo_pd(x[0], x[1]), b = _mm512_unpackhi_pd(x[0], x[1]);
        const V c = _mm512_unpacklo_pd(x[2], x[3]), d = _mm512_unpackhi_pd(x[2], x[3]);
        r[0] = _mm512_shuffle_f64x2(a, c, 0x88);
        r[1] = _mm512_shuffle_f64x2(b, d, 0x88);
        r[2] = _mm512_shuffle_f64x2(a, c, 0xdd);
        r[3] = _mm512_shuffle_f64x2(b, d, 0xdd);
    }
    static inline void deinterleave(V a, V b, V &g, V &u) {
        g = _mm512_shuffle_f64x2(a, b, 0x44);
        u = _mm512_shuffle_f64x2(a, b, 0xee);
    }
};

} // namespace
} // namespace ffncore
