// Where the 16-byte chunks of a tile lie in shared memory, so that neither copies nor ldmatrix have
// bank conflicts.
//
// A tile is `rows` rows of `chunks` chunks of 16 bytes. ldmatrix reads the same logical chunk of
// eight consecutive rows. Shared memory serves 128 bytes at a time, which are eight chunks. So
// these eight chunks have to lie in different columns modulo 8:
//
//   chunks = 4   a line of 128 bytes holds two rows: column ^= (row / 2) % 4
//   chunks >= 8  a line holds a row or less:         column ^= row % 8
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

template <int chunks> __host__ __device__ constexpr int swizzled(int row, int chunk) {
    static_assert(chunks == 4 || chunks % 8 == 0);
    return row * chunks + (chunks == 4 ? chunk ^ ((row >> 1) & 3) : chunk ^ (row & 7));
}

// The sums of a tile in shared memory, [rows][128] floats. mma.sync gives a warp 8 rows of 8
// neighbouring columns. Half of them, 4 x 8 floats, are written at a time. So the columns of four
// consecutive rows have to lie in different quarters of the banks.
constexpr int kStagedRow = 128;
__host__ __device__ constexpr int staged(int row, int col) {
    return row * kStagedRow + (col ^ row % 4 * 8);
}

} // namespace ffncore::cuda
