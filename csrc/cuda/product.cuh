// The products of a layer, over groups of rows, as kernels with a tile and an epilogue as
// parameters:
//
//   row_product   C [rows, n] = sum over terms of A [rows, k] B [k, n]; each group has its own B
//   sum_product   C [g][m, n] = sum over the rows of the group of A [row][m] B [row][n]
//
// A block computes one tile; the scheduler chooses which. The sums then go through shared memory,
// so that neighbouring threads have neighbouring columns, and memory is accessed by vectors. The
// epilogue gets kRun columns of a row at a time. Its interface:
//
//   of(group)          returns the epilogue of a group
//   (row, col, x)      takes columns col, col + 1, ...; (row, col, gate, up) for a gated tile. It
//                      has to leave out the columns beyond n itself
//   kSums              whether it returns something to be summed over kSumColumns columns of a row
//   sum(row, part, x)  then takes the sum of part col / kSumColumns
#pragma once
#include "epilogue.cuh"
#include "operand.cuh"
#include "scheduler.cuh"
#include "swizzle.cuh"

namespace ffncore::cuda {

constexpr int kSumColumns = 32;

// Gives the first `rows` rows of the tile to the epilogue. The tile begins at (row0, col0) of C.
template <class Tile, class Epilogue>
__device__ __forceinline__ void write_tile(const Tile &tile, int64_t row0, int64_t col0,
                                           int64_t rows, const Epilogue &write) {
    constexpr int takers = Tile::kColumns / kRun; // threads for each row
    tile.leave();
    __syncthreads();
    const int c = threadIdx.x % takers * kRun;
#pragma unroll 1
    for (int r = threadIdx.x / takers; r < Tile::kM; r += Tile::kThreads / takers) {
        struct alignas(kRun * sizeof(float)) Taken {
            float numbers[kRun];
        };
        const float *const sums = (const float *)shared_memory();
        const Taken x = *(const Taken *)(sums + staged(r, c));
        const int64_t row = row0 + r, col = col0 + c;
        if constexpr (Tile::kGated) {
            const Taken up = *(const Taken *)(sums + staged(r, c + Tile::kColumns));
            if (r < rows) write(row, col, x.numbers, up.numbers);
        } else if constexpr (Epilogue::kSums) {
            decltype(write(row, col, x.numbers)) sum{};
            if (r < rows) sum = write(row, col, x.numbers);
            sum = sum_lanes<kSumColumns / kRun>(sum);
            if (r < rows && c % kSumColumns == 0) write.sum(row, col / kSumColumns, sum);
        } else {
            if (r < rows) write(row, col, x.numbers);
        }
    }
}

// B has a matrix for each of one or two terms; or, for a gated tile, gate and up of one term.
template <class A, class B> struct RowProduct {
    Groups groups;
    int terms;
    Operand<A> a[2];
    Operand<B> b[2];
    int64_t n, depth;
};

template <class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads)
    row_product(RowProduct<typename Tile::A, typename Tile::B> p, Epilogue all) {
    const int64_t tiles_m = p.groups.tiles(), tiles_n = ceil_div<int64_t>(p.n, Tile::kColumns);
    if ((int64_t)blockIdx.x >= tiles_m * tiles_n) return;
    const TileAt at = raster(blockIdx.x, tiles_m, tiles_n);
    const RowTile rows = row_tile(p.groups, at.m);
    const int64_t col = at.n * Tile::kColumns;

    Tile tile;
    tile.clear();
    for (int term = 0; term < p.terms; ++term) {
        const Operand<typename Tile::A> &a = p.a[term];
        const Half<typename Tile::A> sides_a[2] = {{a, rows.begin, rows.end},
                                                   {a, rows.begin + 64, rows.end}};
        const Operand<typename Tile::B> b = p.b[term].of_group(rows.group);
        const Half<typename Tile::B> sides_b[2] = {
            {b, col, p.n},
            {Tile::kGated ? p.b[1].of_group(rows.group) : b, Tile::kGated ? col : col + 64, p.n}};
        tile.add(sides_a, sides_b, 0, p.depth);
    }

    write_tile(tile, rows.begin, col, rows.end - rows.begin, all.of(rows.group));
}

template <class A, class B> struct SumProduct {
    Groups groups; // the rows that are summed over
    Operand<A> a;  // lines are rows, of m columns
    Operand<B> b;  // lines are rows, of n columns
    int64_t m, n;
};

template <class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads)
    sum_product(SumProduct<typename Tile::A, typename Tile::B> p, Epilogue all) {
    const int64_t group = blockIdx.y;
    const TileAt at =
        raster(blockIdx.x, ceil_div<int64_t>(p.m, Tile::kM), ceil_div<int64_t>(p.n, Tile::kN));
    const int64_t row = at.m * Tile::kM, col = at.n * Tile::kN;
    const Half<typename Tile::A> a[2] = {{p.a, row, p.m}, {p.a, row + 64, p.m}};
    const Half<typename Tile::B> b[2] = {{p.b, col, p.n}, {p.b, col + 64, p.n}};

    Tile tile;
    tile.clear();
    tile.add(a, b, p.groups.begin(group), p.groups.end(group));
    write_tile(tile, row, col, p.m - row, all.of(group));
}

// The blocks that a product needs.
template <class Tile, class A, class B> Blocks blocks_of(const RowProduct<A, B> &p) {
    return {p.groups.most_tiles() * ceil_div<int64_t>(p.n, Tile::kColumns), 1};
}
template <class Tile, class A, class B> Blocks blocks_of(const SumProduct<A, B> &p) {
    return {ceil_div<int64_t>(p.m, Tile::kM) * ceil_div<int64_t>(p.n, Tile::kN), p.groups.count};
}

} // namespace ffncore::cuda
