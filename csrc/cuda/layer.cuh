// What both passes of a layer begin with: its weights, how tokens go to experts, the workspace.
//
//   gate, up [E, f, d]; down [E, d, f]; ids, weights [T, k]
//
// A dense layer is a mixture of one expert without ids; its rows are the tokens, in their order. A
// mixture has at most R = T k rows, in the order of their experts (permute.cuh). How many there are
// is known only on the device. With the weights on the input, the weighted and rounded rows of x
// are an array of their own.
#pragma once
#include "combine.cuh"
#include "permute.cuh"
#include "product.cuh"
#include "simt_tile.cuh"
#include "tensor_tile.cuh"

namespace ffncore::cuda {

// The tiles of a layer's products, for x of type T and weights of type W.
template <class T, class W> struct Tiles { // 16 bits; W is T
    template <bool b_along_k, bool gated> using Rows = TensorTile<W, true, b_along_k, gated>;
    using Sums = TensorTile<T, false, false, false>;
};
template <class W> struct Tiles<float, W> {
    template <bool b_along_k, bool gated> using Rows = SimtTile<W, true, b_along_k, gated>;
    using Sums = SimtTile<float, false, false, false>;
};
constexpr int64_t kTileRows = 128; // rows of each of these tiles

// Hands out parts of the workspace, each at a multiple of 256 bytes; or only counts their bytes.
class Arena {
  public:
    Arena() = default;
    explicit Arena(void *base) : base_((char *)base), counts_(false) {}
    template <class A> A *take(int64_t elements) {
        constexpr int64_t kAlign = 256;
        A *const part = counts_ ? nullptr : (A *)(base_ + used_);
        used_ += ceil_div(elements * (int64_t)sizeof(A), kAlign) * kAlign;
        return part;
    }
    bool counts() const { return counts_; }
    int64_t used() const { return used_; }

  private:
    char *base_ = nullptr;
    bool counts_ = true;
    int64_t used_ = 0;
};

template <class W> struct LayerWeights {
    int64_t experts = 1, d = 0, f = 0;
    bool gated = false;
    Operand<W> gate, up, down; // their lines are the rows of [f, d], [f, d], [d, f]; or the columns
    bool up_by_columns = false, down_by_columns = false; // gate is as up
    Bias b_gate, b_up, b_down;
};

// How tokens go to experts; ids == nullptr: all go through the only one.
struct LayerRouting {
    const int32_t *ids = nullptr;
    int64_t top_k = 1;
    Matrix<const float> weights;
    bool on_input = false; // whether the weights multiply the input
};

template <class T> Matrix<T> rows_of(T *data, int64_t columns) { return {data, columns, 1, 0}; }

// An operand whose lines are `stride` elements apart, and whose groups `group` elements.
template <class T> Operand<T> operand_of(const T *data, int64_t stride, int64_t group = 0) {
    const auto whole = [](int64_t bytes) { return bytes % kChunkBytes == 0; };
    const bool aligned =
        whole((int64_t)(uintptr_t)data) && whole(stride * sizeof(T)) && whole(group * sizeof(T));
    return {data, stride, nullptr, group, aligned};
}

// x or dy as products read it: as it lies, or, if its rows are not contiguous, as a copy.
template <class T>
Operand<T> contiguous(const Matrix<const T> &x, int64_t rows, int64_t columns, Arena &arena,
                      cudaStream_t stream) {
    if (x.col == 1 || columns == 1) return operand_of(x.data, x.row);
    T *const copy = arena.take<T>(rows * columns);
    if (!arena.counts())
        launch(gather_rows<T>, {rows}, kRowThreads, 0, stream, nullptr, nullptr,
               Groups{nullptr, nullptr, 1, rows, 1}, x, rows_of(copy, columns), columns);
    return operand_of<T>(copy, columns);
}

// What the products of a mixture need to know of the routing. For a dense layer only groups is set.
struct Routed {
    Groups groups{};
    const int32_t *tokens = nullptr, *place = nullptr;
    const float *factors = nullptr;
};

inline Routed route_rows(const LayerRouting &routing, int64_t tokens, int64_t experts, Arena &arena,
                         cudaStream_t stream) {
    Routed routed;
    routed.groups = {nullptr, nullptr, 1, tokens, kTileRows};
    if (!routing.ids) return routed;
    const int64_t slots = tokens * routing.top_k;
    Permutation p{};
    p.ids = routing.ids;
    p.slots_in = slots;
    p.experts = experts;
    p.tile_height = kTileRows;
    p.counts = arena.take<int32_t>(permutation_counts(slots, experts));
    p.offsets = arena.take<int32_t>(experts + 1);
    p.first_tile = arena.take<int32_t>(experts + 1);
    p.slots = arena.take<int32_t>(slots);
    p.place = arena.take<int32_t>(slots);
    int32_t *const token_of = arena.take<int32_t>(slots);
    float *const factors = arena.take<float>(slots);
    routed = {{p.offsets, p.first_tile, experts, slots, kTileRows}, token_of, p.place, factors};
    if (arena.counts()) return routed;
    launch_permutation(p, stream);
    launch(take_slots<>, {ceil_div<int64_t>(slots, kRowThreads)}, kRowThreads, 0, stream,
           Slots{p.slots, p.place, routing.top_k, routing.weights}, routed.groups, token_of,
           factors);
    return routed;
}

// x as the experts see it: gathered by the tokens of the rows; or, with weights on the input, as an
// array of its own.
template <class T>
Operand<T> rows_of_x(const Matrix<const T> &x, const Routed &routed, const LayerRouting &routing,
                     int64_t tokens, int64_t d, Arena &arena, cudaStream_t stream) {
    if (!routing.ids || !routing.on_input) {
        Operand<T> rows = contiguous(x, tokens, d, arena, stream);
        rows.lines = routed.tokens;
        return rows;
    }
    const int64_t rows = tokens * routing.top_k;
    T *const weighted = arena.take<T>(rows * d);
    if (!arena.counts())
        launch(gather_rows<T>, {rows}, kRowThreads, 0, stream, routed.tokens, routed.factors,
               routed.groups, x, rows_of(weighted, d), d);
    return operand_of<T>(weighted, d);
}

template <class Tile, class A, class B, class Epilogue>
void launch_tiles(const RowProduct<A, B> &p, const Epilogue &epilogue, cudaStream_t stream) {
    static_assert(Tile::kM == kTileRows);
    launch(row_product<Tile, Epilogue>, blocks_of<Tile>(p), Tile::kThreads, Tile::kSharedBytes,
           stream, p, epilogue);
}

// along: the lines of B go along k (operand.cuh).
template <bool gated, class T, class W, class Epilogue>
void launch_product(const RowProduct<T, W> &p, bool along, const Epilogue &epilogue,
                    cudaStream_t stream) {
    if (along)
        launch_tiles<typename Tiles<T, W>::template Rows<true, gated>>(p, epilogue, stream);
    else
        launch_tiles<typename Tiles<T, W>::template Rows<false, gated>>(p, epilogue, stream);
}

// Computes gate and up of every row, for an epilogue.
template <class T, class W>
void launch_hidden(const Routed &routed, const Operand<T> &x, const LayerWeights<W> &w,
                   const HiddenEpilogue<T> &hidden, cudaStream_t stream) {
    const bool along = !w.up_by_columns;
    if (w.gated)
        launch_product<true>(RowProduct<T, W>{routed.groups, 1, {x, {}}, {w.gate, w.up}, w.f, w.d},
                             along, hidden, stream);
    else
        launch_product<false>(RowProduct<T, W>{routed.groups, 1, {x, {}}, {w.up, {}}, w.f, w.d},
                              along, hidden, stream);
}

} // namespace ffncore::cuda
