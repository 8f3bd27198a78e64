// Converts one array element at a time to float and back: for tails, strides without a fast case,
// and the scalar level. The vector operations of vec_<isa>.h give the same bits, except in the
// payload of a NaN.
//
//   bfloat16  the upper half of a float
//   float16   1 sign, 5 exponent (bias 15) and 10 fraction bits
//   codes     those of a step of quantised weights (ExpandArgs), as two words of 32 bits
//
// Narrowing rounds to nearest even; a NaN stays a NaN.
#pragma once

namespace ffncore {
namespace {

inline uint32_t float_bits(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// Even lanes use the lower word and odd lanes the upper one, which are equal for 1 and 2 bits.
template <int Bits> inline uint64_t code_words(const void *p) {
    uint64_t words = 0;
    __builtin_memcpy(&words, p, kUnit * Bits / 8);
    return Bits == 4 ? words : words | words << 32;
}

inline float number(float x) { return x; }
inline double number(double x) { return x; }
inline float number(Bf16 x) { return bits_float((uint32_t)x.bits << 16); }
inline float number(F16 x) {
    const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest < 0x0400) { // subnormal: a normal float, so it is exact in every floating-point state
        const float value = (float)rest * 0x1p-24f;
        return bits_float(sign | float_bits(value));
    }
    const uint32_t bias = rest < 0x7c00 ? 127 - 15 : 255 - 31; // inf, NaN: to the highest exponent
    return bits_float(sign | ((rest << 13) + (bias << 23)));
}

inline void put(float *to, float x) { *to = x; }
inline void put(double *to, double x) { *to = x; }
inline void put(Bf16 *to, float x) {
    const uint32_t bits = float_bits(x);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    to->bits = (uint16_t)(nan ? bits >> 16 | 0x40 : rounded >> 16);
}
inline void put(F16 *to, float x) {
    const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    uint32_t out;
    if (rest > 0x7f800000) {
        out = 0x7e00 | (rest >> 13 & 0x1ff);
    } else if (rest >= 0x477ff000) { // halfway from the largest, 65504, to 65536: infinity
        out = 0x7c00;
    } else if (rest < 0x38800000) { // below 2^-14: a multiple of 2^-24
        // A float between 1/2 and 1 is a multiple of 2^-24. So the sum rounds to such a multiple,
        // and its low bits are the result.
        out = float_bits(bits_float(rest) + 0.5f) - float_bits(0.5f);
    } else {
        const uint32_t even = rest >> 13 & 1;
        out = (rest - ((127 - 15) << 23) + 0xfff + even) >> 13;
    }
    to->bits = (uint16_t)(sign | out);
}

} // namespace
} // namespace ffncore
