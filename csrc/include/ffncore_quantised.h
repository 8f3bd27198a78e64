/* Packed quantised weights in libffncore.so. The rules of ffncore.h hold here, too. */
#ifndef FFNCORE_QUANTISED_H
#define FFNCORE_QUANTISED_H

#include "ffncore.h"

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* Quantised weights, packed: the codes of all matrices with their scales, which calls expand to
 * float32 numbers where they use them:
 *     w = scale (value of the code - zero) + offset
 * in float32, each operation rounded. A group of neighbouring inputs shares a number of each kind.
 * Results have the bits of the layer with these float32 weights. The buffer goes wherever packed
 * weights go, with a float32 x, and to ffncore_unpack. It is at least 64-byte aligned. */
typedef struct ffncore_numbers {
    const void *data;   /* [rows, groups], NULL: absent; float32, or int8 if there are factors */
    int64_t row_stride; /* in elements; 0: the same for all */
    int64_t col_stride;
    int32_t stored;       /* ffncore_dtype, as which the numbers are kept: of at most 32 bits */
    const float *factors; /* NULL, or [rows, groups / factor_groups]: a number is the product of its
                             factor, kept as float16, and data */
    int64_t factor_stride;
    int64_t factor_groups;
} ffncore_numbers;

typedef struct ffncore_coded {
    int64_t rows;         /* outputs */
    int64_t cols;         /* inputs */
    const uint8_t *codes; /* [rows, cols], one byte each; NULL: absent */
    int32_t bits;         /* of a code: 1, 2, 4, 5, 6 or 8 */
    int32_t e4m3;         /* codes of 8 bits: 1: E4M3, 0: int8 */
    float table[16];      /* of up to 4 bits: the values of the codes */
    float center;         /* of 5 and 6 bits: the value is the code less this number */
    int64_t group;        /* inputs with one number */
    ffncore_numbers scale;
    ffncore_numbers zero;
    ffncore_numbers offset;
} ffncore_coded;

typedef struct ffncore_coded_weights {
    size_t size;
    ffncore_coded gate; /* [f, d], absent in a plain block */
    ffncore_coded up;   /* [f, d] */
    ffncore_coded down; /* [d, f] */
    ffncore_vector b_gate;
    ffncore_vector b_up;
    ffncore_vector b_down; /* of float32 */
} ffncore_coded_weights;

int64_t ffncore_coded_bytes(const ffncore_coded_weights *weights);
ffncore_status ffncore_pack_coded(const ffncore_coded_weights *weights, void *packed);
/* The bytes of packed weights, quantised or not, as their header tells, or -1 if it is damaged. It
 * begins at packed, where at least `available` bytes can be read. */
int64_t ffncore_header_bytes(const void *packed, int64_t available);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
