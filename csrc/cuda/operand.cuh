// A matrix as a product reads it: lines that are contiguous in memory.
//
//   along k   there is a line for each m or n, and its numbers go along k: x, weights [out, in]
//   across    there is a line for each k, and its numbers go along m or n: transposed weights, and
//             both operands of a sum over rows
//
// Lines may be gathered; then line i is line lines[i] of the array (a token's row of x). In a
// product over groups, each group has its own array, at a distance of group_stride.
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

template <class T> struct Operand {
    const T *data = nullptr;
    int64_t stride = 0;             // elements from one line to the next
    const int32_t *lines = nullptr; // nullptr: 0, 1, 2, ...
    int64_t group_stride = 0;       // elements from one group to the next
    bool aligned = false; // every line begins at a multiple of 16 bytes, and is copied as it is

    __device__ __forceinline__ Operand of_group(int64_t g) const {
        Operand mine = *this;
        mine.data += g * group_stride;
        return mine;
    }
    __device__ __forceinline__ const T *line(int64_t i) const {
        return data + (lines ? lines[i] : i) * stride;
    }
};

// One half (64) of the rows or columns of a tile: [first, end) of an operand. In a gated tile the
// two halves of the columns are gate and up; elsewhere both halves are of the same matrix.
template <class T> struct Half {
    Operand<T> of;
    int64_t first, end;
};

// The half that has row or column `at` of 128. It is chosen member by member, so that it stays in
// registers.
template <class T> __device__ __forceinline__ Half<T> half_of(const Half<T> (&halves)[2], int at) {
    const bool upper = at >= 64;
    Half<T> half = halves[0];
    half.of.data = upper ? halves[1].of.data : half.of.data;
    half.of.stride = upper ? halves[1].of.stride : half.of.stride;
    half.of.lines = upper ? halves[1].of.lines : half.of.lines;
    half.of.aligned = upper ? halves[1].of.aligned : half.of.aligned;
    half.first = upper ? halves[1].first : half.first;
    half.end = upper ? halves[1].end : half.end;
    return half;
}

} // namespace ffncore::cuda
