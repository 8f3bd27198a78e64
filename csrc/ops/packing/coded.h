// Packed quantised weights: codes with scales, which are expanded to float32 where they are used.
//
// gate, up and down are matrices of their own, each in a format of its own. A matrix is cut into
// units of 16 outputs. The parts of a unit, each aligned to 64 bytes:
//
//   codes    [k][16 codes of 1, 2, 4 or 8 bits]; of 5 and 6 bits the lower 4 bits
//   high     [k][16 codes of 1 or 2 bits]: the upper bits of codes of 5 and 6 bits
//   numbers  scales, zeros and offsets, as far as the format has them, [groups][16] each: float32,
//            float16, bfloat16, or int8 times factors, float16 [groups / factor_groups][16]
//
// The places of a step's codes are told at ExpandArgs (kernels.h). Outputs beyond the last one have
// codes and numbers of 0. A buffer begins with a CodedHeader; the biases stand at its end.
#pragma once
#include "packing.h"

namespace ffncore {

enum { kScale, kZero, kOffset, kPlanes };

// Where numbers lie in a unit; offsets in bytes.
struct CodedPlane {
    int64_t kind; // NumberKind
    int64_t data, factors, factor_groups;
};

struct CodedLayout {
    int64_t rows, cols; // outputs and inputs; rows == 0: absent
    int64_t bits, e4m3, group;
    int64_t at, unit_bytes, high; // of the first unit in the buffer; of a unit; in a unit
    CodedPlane planes[kPlanes];
    float table[16], center;
};

struct CodedHeader {
    PackedHeader packed; // with kCodedMagic
    int64_t bytes, b_gate, b_up, b_down;
    CodedLayout gate, up, down;
};

constexpr uint64_t kCodedMagic = 0x3130434341504646u; // "FFPACC01"

// Numbers of [rows, groups] to be packed. Without factors, data is float32.
struct NumbersInput {
    const void *data; // nullptr: absent
    int64_t row, col; // strides in elements, which may be 0
    int64_t kind;     // NumberKind
    const float *factors;
    int64_t factor_row, factor_groups;
};
struct CodedInput {
    const uint8_t *codes; // [rows, cols]; nullptr: absent
    int64_t rows, cols, bits, e4m3, group;
    const float *table;
    float center;
    NumbersInput numbers[kPlanes];
};

// Lays out the parts of a buffer; the biases of `packed` are present or absent.
CodedHeader coded_header(const PackedHeader &packed, const CodedInput &gate, const CodedInput &up,
                         const CodedInput &down);
// Whether a header is one that coded_header makes, so that no part lies outside of its bytes.
bool consistent(const CodedHeader &header);

void pack_coded(const CodedHeader &header, const CodedInput (&matrices)[3],
                const float *const (&biases)[3], const Kernels<float> &kernels, int threads,
                char *to);
template <class T> Weights<T> coded_view(const char *packed);
// Writes the numbers to matrices of float32 of any strides, as unpack_weights does.
void unpack_coded(const char *packed, const Output (&matrices)[3], const Output (&biases)[3],
                  const Kernels<float> &kernels, int threads);

// Outputs [lane, lane + vectors * width) of unit u, for some steps, as numbers dst[step][ld].
void expand(const Kernels<float> &kernels, const Coded &m, int64_t u, int64_t lane, int64_t vectors,
            Steps steps, float *dst, int64_t ld);

// What the kernels need to read some steps of unit u, without where the numbers go.
ExpandArgs expand_args(const Coded &m, int64_t u, Steps steps);

} // namespace ffncore
