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

} // namespace ffncore::cuda
