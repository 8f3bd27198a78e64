// What the driver of the products (gemm.h) requires of an epilogue, which takes each finished tile
// of C:
//
//   TakesTiles       required: it takes the sums of a tile
//   AnnouncedTiles   optional: it is told before a tile is done
//   WritesTiles      optional: the micro-kernel writes some tiles itself
#pragma once
#include <concepts>

#include "../arrays/array.h"
#include "../arrays/ranges.h"

namespace ffncore {

// A tile of C: rows of A times a panel of B. `cols` are the columns of the panel that exist.
struct Tile {
    RowRange rows;
    int64_t panel;
    ColumnRange cols;
};

// Takes the sums of a tile, [rows][width of the panel].
template <class E, class T>
concept TakesTiles = requires(const E &e, const Tile &tile, T *sums) { e(tile, sums); };

// Is told before the last block of a tile, so that it can prefetch what the tile will need.
template <class E>
concept AnnouncedTiles = requires(const E &e, const Tile &tile) { e.begin(tile); };

// Lets the micro-kernel write some tiles (those that are `direct`) straight to their place (`at`)
// in the array (`of`).
template <class E>
concept WritesTiles = requires(const E &e, const Tile &tile, int64_t row, int64_t col) {
    { e.direct(tile) } -> std::same_as<bool>;
    { e.of(row) } -> std::same_as<const Output &>;
    { e.at(row, col) } -> std::same_as<char *>;
    { e.add } -> std::convertible_to<bool>;
    { e.stream } -> std::convertible_to<bool>;
};

} // namespace ffncore
