// What the driver of the products (product/gemm.h) requires of its operands. In C = A B, A gives
// the rows of a tile and B gives panels of columns. An operand is read for some steps of the sum at
// a time.
//
//   RowOperand, PanelOperand   required of every A, of every B
//   the other concepts         optional abilities, which the driver uses where an operand has them
#pragma once
#include <concepts>

#include "../arrays/array.h"
#include "../arrays/ranges.h"

namespace ffncore {

// Where the rows of A of a tile lie; see TileArgs.
template <class T> struct RowTile {
    const T *a0, *a1;
    int64_t row, step, segment, jump;
};

// A panel of B for some steps: [steps][ld] of T or of 16-bit elements.
struct Panel {
    const void *data;
    int64_t ld;
    bool narrow = false; // it holds 16-bit elements
    bool packed = false; // they lie as in packed weights (packing.h)
    bool leaves = false; // the first tile stores the widened numbers for the other tiles
};

// Rows of A that are prepared together, for some steps.
template <class T> struct Strip {
    RowRange rows;
    Steps steps;
    int64_t tile; // rows of a tile, if rows are copied
    T *copied;    // buffer of the copy
};

// ---- A

template <class A, class T>
concept RowOperand =
    requires(const A &a, const Kernels<T> &kernels, RowRange rows, const Strip<T> &strip) {
        // How many of these rows the first tile may take.
        { a.tile_rows(rows) } -> std::same_as<int64_t>;
        // Whether rows are copied before they are used.
        { a.copies() } -> std::same_as<bool>;
        // Whether k is contiguous in memory within a whole block of the rows.
        { a.contiguous() } -> std::same_as<bool>;
        // Copies a strip, if rows are copied.
        a.prepare(kernels, strip);
        // Where some rows of a prepared strip lie.
        { a.get(rows, strip) } -> std::same_as<RowTile<T>>;
    };

template <class A> RowRange first_tile(const A &a, RowRange rows) {
    return {rows.first, a.tile_rows(rows)};
}
// The arguments of a tile of these rows, as far as A determines them.
template <class A, class T>
TileArgs<T> tile_args(const A &a, RowRange rows, const Strip<T> &strip) {
    const RowTile<T> at = a.get(rows, strip);
    TileArgs<T> t{};
    t.a0 = at.a0;
    t.a1 = at.a1;
    t.row = at.row;
    t.step = at.step;
    t.segment = at.segment;
    t.jump = at.jump;
    t.depth = strip.steps.count;
    return t;
}

// Gives rows of one matrix, or of two that share a tile. The driver prefetches the next rows while
// a tile is computed.
template <class A>
concept HoldsMatrices = requires(const A &a) {
    { a.first } -> std::convertible_to<Input>;
    { a.second } -> std::convertible_to<Input>;
};

// ---- B

template <class B, class T>
concept PanelOperand =
    requires(const B &b, const Kernels<T> &kernels, int64_t panel, Steps steps, T *to) {
        // The panel where it lies, or a copy of it at `to`.
        { b.get(kernels, panel, steps, to) } -> std::same_as<Panel>;
    };

// May hold elements of another type than T.
template <class B>
concept HasType = requires(const B &b) {
    { b.type() } -> std::same_as<Element>;
};

// Is read in the order of memory. line: where step k of a panel begins; line_bytes: the bytes to
// prefetch there; line_step: the bytes from one step to the next.
template <class B>
concept ReadInOrder = requires(const B &b, int64_t panel, int64_t k) {
    { b.line(panel, k) } -> std::same_as<const char *>;
    { b.line_bytes() } -> std::same_as<int64_t>;
    { b.line_step() } -> std::same_as<int64_t>;
};

// A panel in memory holds the columns of `share()` panels of tiles. The next one begins
// `panel_stride()` elements later.
template <class B>
concept SharesPanels = requires(const B &b) {
    { b.share() } -> std::same_as<int64_t>;
    { b.panel_stride() } -> std::same_as<int64_t>;
};

// Can be transposed in registers, because its rows are contiguous in k. turns: whether this is to
// be done, when so many tiles read the panel; turn: vector v of a panel from step k on.
template <class B, class T>
concept TurnsInRegisters =
    requires(const B &b, int64_t tiles, int64_t panel, int64_t v, int64_t k) {
        { b.turns(tiles) } -> std::same_as<bool>;
        { b.turn(panel, v, k) } -> std::same_as<TurnedArgs<T>>;
    };

// Can be read by the kernels `across`, if `turned`: packed panels of `units()` columns, which are
// summed over. at: where the columns of a panel of the product begin in the one with unit k.
template <class B>
concept ReadsAcross = requires(const B &b, int64_t panel, int64_t k) {
    { b.turned } -> std::convertible_to<bool>;
    { b.units() } -> std::same_as<int64_t>;
    { b.at(panel, k) } -> std::same_as<const char *>;
};

// Gives the sums of a few tokens itself, for some panels side by side.
template <class B, class T>
concept SumsFew = requires(const B &b, const Kernels<T> &kernels, PanelRange panels, Steps steps,
                           const RowTile<T> &a, T *c) {
    b.sum(kernels, panels, steps, a, int64_t(1), c, int64_t(1), false);
};

// Is copied a strip at a time, if copies(): one panel of kBlock steps behind the other.
template <class B, class T>
concept CopiesStrips =
    requires(const B &b, const Kernels<T> &kernels, PanelRange panels, Steps steps, T *to) {
        { b.copies() } -> std::same_as<bool>;
        b.copy(kernels, panels, steps, to);
    };

} // namespace ffncore
