// Which tile of which group a block of threads works at.
//
// Products over rows of tokens: group g has rows [offset[g], offset[g + 1]) of all rows in the
// experts' order, and tiles [first_tile[g], first_tile[g + 1]) of `height` rows. The counts are
// known on the device alone: the grid is as large as the most unlucky counts need, and blocks
// beyond the last tile return at once. Products that sum over rows have a fixed number of tiles a
// group.
//
// Raster: blocks that run at the same time share what they read in L2 when they cover a square. So
// tiles go in bands of kBand tiles of rows, through all columns, band by band.
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

// 8 x 128 rows of x and a tile's 128 columns: with 132 blocks at a time, a square of about 16 x 8.
constexpr int64_t kBand = 8;

struct TileAt {
    int64_t m, n;
};

__host__ __device__ constexpr TileAt raster(int64_t block, int64_t tiles_m, int64_t tiles_n) {
    const int64_t band = block / (kBand * tiles_n), first = band * kBand;
    const int64_t height = smaller(kBand, tiles_m - first), in_band = block - first * tiles_n;
    return {first + in_band % height, in_band / height};
}

// Rows [begin, end) in the experts' order; offsets == nullptr: one group, all `rows`.
struct Groups {
    const int32_t *offsets;    // [count + 1]
    const int32_t *first_tile; // [count + 1]
    int64_t count;
    int64_t rows; // at most
    int64_t height;

    // Tiles of rows for the most unlucky counts: each group may have one that is not full.
    __host__ __device__ int64_t most_tiles() const {
        const int64_t whole = ceil_div(rows, height);
        return offsets ? smaller(whole + count, rows) : whole;
    }
    __device__ int64_t tiles() const { return offsets ? first_tile[count] : most_tiles(); }
    __device__ int64_t begin(int64_t g) const { return offsets ? offsets[g] : 0; }
    __device__ int64_t end(int64_t g) const { return offsets ? offsets[g + 1] : rows; }
};

// The largest g with first[g] <= tile, of `count` groups: groups without tiles are passed over.
__host__ __device__ constexpr int64_t group_of(const int32_t *first, int64_t count, int64_t tile) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (first[middle] <= tile)
            low = middle;
        else
            high = middle;
    }
    return low;
}

struct RowTile {
    int64_t group, begin, end; // rows [begin, end) of all rows
};

__device__ inline RowTile row_tile(const Groups &groups, int64_t tile) {
    const int64_t g = groups.offsets ? group_of(groups.first_tile, groups.count, tile) : 0;
    const int64_t before = groups.offsets ? groups.first_tile[g] : 0;
    const int64_t begin = groups.begin(g) + (tile - before) * groups.height;
    return {g, begin, smaller(begin + groups.height, groups.end(g))};
}

} // namespace ffncore::cuda
