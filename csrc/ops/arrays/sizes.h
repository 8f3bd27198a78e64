// Sizes that every part of the engine uses: bytes of an element, whole multiples, and the length of
// a partial sum.
#pragma once
#include <cstdint>

#include "../../kernels/kernels.h"

namespace ffncore {

inline int64_t element_bytes(Element type) {
    return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Terms of a partial sum: 64 blocks. Blocks are added in order to a partial sum, and partial sums
// are added in order to the sum. The longest chain of additions of a sum of n terms is then
// 512 + 64 + n / 32768, instead of 512 + n / 512: 700 instead of 8300 for 4 million terms. This is
// a part of the arithmetic contract.
constexpr int64_t kPartialSum = 64 * kBlock;

} // namespace ffncore
