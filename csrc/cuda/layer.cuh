// What both passes of a layer begin with: its weights, how tokens go to experts, the workspace.
//
//   gate, up [E, f, d]; down [E, d, f]; ids, weights [T, k]
//
// A dense layer is a mixture of one expert without ids: its rows are the tokens, in their order. A
// mixture has R = T k rows at most, in the experts' order (permute.cuh); how many there are is
// known on the device alone. Weights on the input: the rows of x, multiplied and rounded, are an
// array.
#pragma once
#include "combine.cuh"
#include "permute.cuh"
#include "product.cuh"

namespace ffncore::cuda {

// The tiles of a layer's products: Tile<of the weights, a_along_k, b_along_k, gated>.
template <template <class, bool, bool, bool> class Tile, class W> struct Tiles {
    using Gated = Tile<W, true, true, true>;    // x W_gate^T and x W_up^T
    using Along = Tile<W, true, true, false>;   // x W_up^T, h W_down^T
    using Across = Tile<W, true, false, false>; // dy W_down, dgate W_gate, dup W_up
    using Sums = Tile<W, false, false, false>;  // over rows
};

// Hands out parts of the workspace, each at a multiple of 256 bytes; without a base it only counts.
class Arena {
  public:
    explicit Arena(void *base) : base_((char *)base) {}
    template <class A> A *take(int64_t elements) {
        constexpr int64_t kAlign = 256;
        A *const part = base_ ? (A *)(base_ + used_) : nullptr;
        used_ += ceil_div(elements * (int64_t)sizeof(A), kAlign) * kAlign;
        return part;
    }
    bool counts() const { return !base_; }
    int64_t used() const { return used_; }

  private:
    char *base_;
    int64_t used_ = 0;
};

template <class W> struct LayerWeights {
    int64_t experts = 1, d = 0, f = 0;
    bool gated = false;
    Operand<W> gate, up, down; // lines along k: [f, d], [f, d], [d, f]
    Bias b_gate, b_up, b_down;
};

// How tokens go to experts; ids == nullptr: all through the only one.
struct LayerRouting {
    const int32_t *ids = nullptr;
    int64_t top_k = 1;
    Matrix<const float> weights;
    bool on_input = false; // of a mixture
};

template <class T> Matrix<T> rows_of(T *data, int64_t columns) { return {data, columns, 1, 0}; }

// Lines of our own buffers begin at multiples of 16 bytes where their length is one.
template <class T> Operand<T> operand_of(const T *data, int64_t columns) {
    return {data, columns, nullptr, 0, columns * sizeof(T) % kChunkBytes == 0};
}

// What a mixture's products need to know of the routing; of a dense layer, only its rows.
struct Routed {
    Groups groups{};
    const int32_t *tokens = nullptr, *place = nullptr;
    const float *factors = nullptr;
};

inline Routed route_rows(const LayerRouting &routing, int64_t tokens, int64_t experts,
                         int64_t tile_height, Arena &arena, cudaStream_t stream) {
    Routed routed;
    routed.groups = {nullptr, nullptr, 1, tokens, tile_height};
    if (!routing.ids) return routed;
    const int64_t slots = tokens * routing.top_k;
    Permutation p{};
    p.ids = routing.ids;
    p.slots_in = slots;
    p.experts = experts;
    p.tile_height = tile_height;
    p.counts = arena.take<int32_t>(permutation_counts(slots, experts));
    p.offsets = arena.take<int32_t>(experts + 1);
    p.first_tile = arena.take<int32_t>(experts + 1);
    p.slots = arena.take<int32_t>(slots);
    p.place = arena.take<int32_t>(slots);
    int32_t *const token_of = arena.take<int32_t>(slots);
    float *const factors = arena.take<float>(slots);
    routed = {{p.offsets, p.first_tile, experts, slots, tile_height}, token_of, p.place, factors};
    if (arena.counts()) return routed;
    launch_permutation(p, stream);
    launch(take_slots, {ceil_div<int64_t>(slots, kRowThreads)}, kRowThreads, 0, stream,
           Slots{p.slots, p.place, routing.top_k, routing.weights}, routed.groups, token_of,
           factors);
    return routed;
}

// x as the experts see it: gathered, and with weights on the input an array of its own.
template <class T> struct RowsOfX {
    Operand<T> x;
    T *weighted = nullptr; // [R, d]
    RowsOfX(const Operand<T> &x, const Routed &routed, bool on_input, int64_t rows, int64_t d,
            Arena &arena, cudaStream_t stream)
        : x(x) {
        this->x.lines = routed.tokens;
        if (!on_input) return;
        weighted = arena.take<T>(rows * d);
        if (arena.counts()) return;
        launch(gather_rows<T>, {rows}, kRowThreads, 0, stream, routed.tokens, routed.factors,
               routed.groups, Matrix<const T>{x.data, x.stride, 1, 0}, rows_of(weighted, d), d);
        this->x = operand_of<T>(weighted, d);
    }
};

template <class Tile, class A, class B, class Epilogue>
void launch_product(const RowProduct<A, B> &p, const Epilogue &epilogue, cudaStream_t stream) {
    launch(row_product<Tile, Epilogue>, blocks_of<Tile>(p), Tile::kThreads, Tile::kSharedBytes,
           stream, p, epilogue);
}

// Gate and up of every row, to an epilogue.
template <class Of, class T, class W>
void launch_hidden(const Routed &routed, const Operand<T> &x, const LayerWeights<W> &w,
                   const HiddenEpilogue<T> &hidden, cudaStream_t stream) {
    if (w.gated)
        launch_product<typename Of::Gated>(
            RowProduct<T, W>{routed.groups, 1, {x, {}}, {w.gate, w.up}, w.f, w.d}, hidden, stream);
    else
        launch_product<typename Of::Along>(
            RowProduct<T, W>{routed.groups, 1, {x, {}}, {w.up, {}}, w.f, w.d}, hidden, stream);
}

} // namespace ffncore::cuda
