// A matrix as a product reads it: lines that are contiguous in memory.
//
//   along k   a line is a row (m or n), its numbers follow k:   x, weights [out, in]
//   across    a line is a k, its numbers follow m or n:         transposed weights, sums over rows
//
// Lines may be gathered: line i is then lines[i] of the array (a token's row of x). A product over
// groups shifts the array by a group's weights.
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

template <class T> struct Operand {
    const T *data = nullptr;
    int64_t stride = 0;             // elements from line to line
    const int32_t *lines = nullptr; // nullptr: 0, 1, 2, ...
    int64_t group_stride = 0;       // elements from group to group
    bool aligned = false; // every line begins at a multiple of 16 bytes: copied as it lies

    __device__ __forceinline__ Operand of_group(int64_t g) const {
        Operand mine = *this;
        mine.data += g * group_stride;
        return mine;
    }
    __device__ __forceinline__ const T *line(int64_t i) const {
        return data + (lines ? lines[i] : i) * stride;
    }
};

// Rows or columns [first, end) of a product, as one half of a tile's side takes them: gate and up
// are the two halves of a gated tile, the same matrix gives both halves elsewhere.
template <class T> struct Half {
    Operand<T> of;
    int64_t first, end;
};

// The half that has place `at` of a side's 128: member by member, so that it stays in registers.
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
