// What an operand offers to the driver of the products (product/gemm.h), C = A B: A gives the rows
// of a tile, B gives panels of columns. Operands are read for some steps of the sum at a time.
//
// The concepts without a T ask for abilities that the driver uses where they are there.
#pragma once
#include <concepts>

#include "../arrays/array.h"
#include "../arrays/ranges.h"

namespace ffncore {

// Where a tile's rows of A lie; see TileArgs.
template <class T> struct RowTile {
    const T *a0, *a1;
    int64_t row, step, segment, jump;
};

// A panel of B for some steps: [steps][ld] of T or of 16-bit elements; or a packed one of these.
struct Panel {
    const void *data;
    int64_t ld;
    bool narrow = false; // 16 bits
    bool packed = false; // and packed
    bool leaves = false; // what the first tile has widened goes to the others
};

// Rows of A that are prepared together, for some steps.
template <class T> struct Strip {
    RowRange rows;
    Steps steps;
    int64_t tile; // rows of a tile, if they are copied
    T *copied;    // where to
};

// ---- A

template <class A, class T>
concept RowOperand =
    requires(const A &a, const Kernels<T> &kernels, RowRange rows, const Strip<T> &strip) {
        // How many of these rows the first tile may take.
        { a.tile_rows(rows) } -> std::same_as<int64_t>;
        // Whether rows are copied, and whether k is contiguous in a whole block of them.
        { a.copies() } -> std::same_as<bool>;
        { a.contiguous() } -> std::same_as<bool>;
        // Copies a strip, if rows are copied; and where some rows of a prepared strip lie.
        a.prepare(kernels, strip);
        { a.get(rows, strip) } -> std::same_as<RowTile<T>>;
    };

// Rows of one matrix, or of two that share a tile. They are fetched ahead, while a tile works.
template <class A>
concept HoldsMatrices = requires(const A &a) {
    { a.first } -> std::convertible_to<Input>;
    { a.second } -> std::convertible_to<Input>;
};

// ---- B

template <class B, class T>
concept PanelOperand =
    requires(const B &b, const Kernels<T> &kernels, int64_t panel, Steps steps, T *to) {
        // In place, or made at `to`.
        { b.get(kernels, panel, steps, to) } -> std::same_as<Panel>;
    };

// May hold other elements than T.
template <class B>
concept HasType = requires(const B &b) {
    { b.type() } -> std::same_as<Element>;
};

// Read in memory's order: where a panel's step k begins, the bytes to be fetched there, and the
// bytes to the next step.
template <class B>
concept ReadInOrder = requires(const B &b, int64_t panel, int64_t k) {
    { b.line(panel, k) } -> std::same_as<const char *>;
    { b.line_bytes() } -> std::same_as<int64_t>;
    { b.line_step() } -> std::same_as<int64_t>;
};

// A panel in memory holds the columns of several tiles' panels: of `share()`.
template <class B>
concept SharesPanels = requires(const B &b) {
    { b.share() } -> std::same_as<int64_t>;
};

// Rows that are contiguous in k can be turned in registers: whether they are, for so many tiles;
// and vector v of a panel from step k on.
template <class B, class T>
concept TurnsInRegisters =
    requires(const B &b, int64_t tiles, int64_t panel, int64_t v, int64_t k) {
        { b.turns(tiles) } -> std::same_as<bool>;
        { b.turn(panel, v, k) } -> std::same_as<TurnedArgs<T>>;
    };

// Copied by strips, if copies(): panels side by side, kBlock steps each.
template <class B, class T>
concept CopiesStrips =
    requires(const B &b, const Kernels<T> &kernels, PanelRange panels, Steps steps, T *to) {
        { b.copies() } -> std::same_as<bool>;
        b.copy(kernels, panels, steps, to);
    };

} // namespace ffncore
