// Where a tile's 16-byte chunks lie in shared memory, so that neither copying nor ldmatrix meets a
// bank twice.
//
// A tile is `rows` rows of `chunks` chunks of 16 bytes. ldmatrix reads one logical chunk of eight
// rows that follow each other; shared memory serves 128 bytes at a time, eight chunks. So these
// eight have to lie in eight different columns of chunks modulo 8:
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

// A tile's sums in shared memory, [rows][128] floats. mma.sync leaves them as 8 rows of 8
// neighbouring columns a warp, half of which, 4 x 8 floats, are written at a time: so four rows
// that follow each other have their columns in different quarters of the banks.
constexpr int kStagedRow = 128;
__host__ __device__ constexpr int staged(int row, int col) {
    return row * kStagedRow + (col ^ row % 4 * 8);
}

} // namespace ffncore::cuda
