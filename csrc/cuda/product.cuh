// The products of a layer, over groups of rows, as kernels that a tile and an epilogue complete:
//
//   row_product   C [rows, n] = sum over terms of A [rows, k] B [k, n], each group with its own B
//   sum_product   C [g][m, n] = sum over the group's rows of A [row][m] B [row][n]
//
// A block computes one tile; which one is the scheduler's. The epilogue is made for the group, and
// gets what the tile's visit gives, in the product's own rows and columns:
//
//   kSums                 whether it returns what is to be summed (see TensorTile::visit)
//   of(group)             the epilogue of a group
//   (row, col, x0, x1)    columns col and col + 1; (row, col, g0, g1, u0, u1) of a gated tile.
//                         Columns beyond n are not left out: that is its business
//   sum(row, part, x)     part: of kSumColumns columns
#pragma once
#include "operand.cuh"
#include "scheduler.cuh"

namespace ffncore::cuda {

// Two terms, or (gated) the two matrices of one.
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

    const Epilogue write = all.of(rows.group);
    tile.template visit<Epilogue::kSums>(
        [&](int row, int column, auto... numbers) {
            if (rows.begin + row < rows.end)
                return write(rows.begin + row, col + column, numbers...);
            return decltype(write(0, 0, numbers...))();
        },
        [&](int row, int part, float sum) {
            if constexpr (Epilogue::kSums)
                if (rows.begin + row < rows.end)
                    write.sum(rows.begin + row, col / Tile::kSumColumns + part, sum);
        });
}

template <class A, class B> struct SumProduct {
    Groups groups; // their rows are summed over
    Operand<A> a;  // lines are rows, m columns
    Operand<B> b;  // lines are rows, n columns
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
    const Epilogue write = all.of(group);
    tile.template visit<false>(
        [&](int r, int c, float x0, float x1) {
            if (row + r < p.m) write(row + r, col + c, x0, x1);
        },
        [](int, int, float) {});
}

// Blocks that a product needs.
template <class Tile, class A, class B> Blocks blocks_of(const RowProduct<A, B> &p) {
    return {p.groups.most_tiles() * ceil_div<int64_t>(p.n, Tile::kColumns), 1};
}
template <class Tile, class A, class B> Blocks blocks_of(const SumProduct<A, B> &p) {
    return {ceil_div<int64_t>(p.m, Tile::kM) * ceil_div<int64_t>(p.n, Tile::kN), p.groups.count};
}

} // namespace ffncore::cuda
