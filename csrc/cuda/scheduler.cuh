// Which tile of which group a thread block works on.
//
// In a product over rows of tokens, group g has rows [offsets[g], offsets[g + 1]) of all rows in
// the order of their experts, and tiles [first_tile[g], first_tile[g + 1]) of `height` rows. The
// counts are known only on the device. So the grid is as large as the worst counts need, and blocks
// beyond the last tile return at once. A product that sums over rows has a fixed number of tiles
// for each group.
//
// Raster: blocks that run at the same time share what they read in L2 if their tiles cover a
// square. So tiles are taken in bands of kBand tiles of rows: through all columns of a band, then
// the next band.
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

// 8 x 128 rows of x. 132 blocks that run at the same time then cover about 16 x 8 tiles.
constexpr int64_t kBand = 8;

struct TileAt {
    int64_t m, n;
};

__host__ __device__ constexpr TileAt raster(int64_t block, int64_t tiles_m, int64_t tiles_n) {
    const int64_t band = block / (kBand * tiles_n), first = band * kBand;
    const int64_t height = smaller(kBand, tiles_m - first), in_band = block - first * tiles_n;
    return {first + in_band % height, in_band / height};
}

// The rows [begin, end) of each group, in the order of the experts. offsets == nullptr: there is
// one group, which has all `rows`.
struct Groups {
    const int32_t *offsets;    // [count + 1]
    const int32_t *first_tile; // [count + 1]
    int64_t count;
    int64_t rows; // the most that all groups can have
    int64_t height;

    // The tiles of rows in the worst case, where each group has one that is not full.
    __host__ __device__ int64_t most_tiles() const {
        const int64_t whole = ceil_div(rows, height);
        return offsets ? smaller(whole + count, rows) : whole;
    }
    __device__ int64_t tiles() const { return offsets ? first_tile[count] : most_tiles(); }
    __device__ int64_t begin(int64_t g) const { return offsets ? offsets[g] : 0; }
    __device__ int64_t end(int64_t g) const { return offsets ? offsets[g + 1] : rows; }
};

// The largest g of `count` groups with first[g] <= tile; groups without tiles are skipped.
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
