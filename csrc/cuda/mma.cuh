// The instruction of the tensor cores of sm_80, and the one that loads its operands from shared
// memory.
//
//   mma       c [16 x 8] += a [16 x 16] b [16 x 8],  a, b of 16 bits, c of float
//   ldmatrix  loads four 8 x 8 matrices of 16 bits, transposed with `across`
//
// What a lane holds, in registers of two 16-bit numbers (PTX, mma.m16n8k16):
//
//   a  register i: row lane / 4 + 8 (i % 2), columns 2 (lane % 4) + 8 (i / 2) and the next
//   b  register i: rows 2 (lane % 4) + 8 i and the next, column lane / 4
//   c  number i:   row lane / 4 + 8 (i / 2), column 2 (lane % 4) + i % 2
//   ldmatrix, matrix i: row lane / 4, columns 2 (lane % 4) and the next; lane l gives the address
//   of row l % 8 of matrix l / 8
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

struct Place {
    int row, col;
};
__host__ __device__ constexpr Place place_in_a(int lane, int reg) {
    return {lane / 4 + 8 * (reg % 2), 2 * (lane % 4) + 8 * (reg / 2)};
}
__host__ __device__ constexpr Place place_in_b(int lane, int reg) {
    return {2 * (lane % 4) + 8 * reg, lane / 4};
}
__host__ __device__ constexpr Place place_in_c(int lane, int number) {
    return {lane / 4 + 8 * (number / 2), 2 * (lane % 4) + number % 2};
}

// Loads four matrices; register i of a lane belongs to matrix i.
template <bool across>
__device__ __forceinline__ void load_matrices(uint32_t (&registers)[4], const void *row) {
#if defined(__CUDACC__)
    const unsigned from = (unsigned)__cvta_generic_to_shared(row);
    if constexpr (across)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                       "=r"(registers[3])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                       "=r"(registers[3])
                     : "r"(from)
                     : "memory");
#else
    const emulator::Collective<const void *> all(row);
    const int lane = emulator::lane();
    for (int i = 0; i < 4; ++i) {
        uint16_t pair[2];
        for (int j = 0; j < 2; ++j) {
            const int r = lane / 4, c = 2 * (lane % 4) + j;
            pair[j] = ((const uint16_t *)all.take(8 * i + (across ? c : r)))[across ? r : c];
        }
        memcpy(&registers[i], pair, sizeof pair);
    }
#endif
}

#if defined(__CUDACC__)
#define FFNCORE_MMA(type)                                                                          \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                    \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"               \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
    if constexpr (sizeof(T) != 2)
        return;
    else if constexpr (__is_same(T, Bf16))
        FFNCORE_MMA("bf16");
    else
        FFNCORE_MMA("f16");
#else
    struct Operands {
        uint32_t a[4], b[2];
    } mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    const emulator::Collective<Operands> all(mine);
    const auto element = [](const uint32_t &pair, int i) {
        T both[2];
        memcpy(both, &pair, sizeof both);
        return number(both[i]);
    };
    for (int i = 0; i < 4; ++i) {
        const Place at = place_in_c(emulator::lane(), i);
        for (int k = 0; k < 16; ++k) {
            // The lanes that hold a[row][k] and b[k][col], and the registers in which they do.
            const int lane_a = at.row % 8 * 4 + k % 8 / 2, reg_a = at.row / 8 + k / 8 * 2;
            const int lane_b = at.col * 4 + k % 8 / 2, reg_b = k / 8;
            const Operands x = all.take(lane_a), y = all.take(lane_b);
            c[i] += element(x.a[reg_a], k % 2) * element(y.b[reg_b], k % 2);
        }
    }
#endif
}

} // namespace ffncore::cuda
