// The forward pass of a layer, as launches on a stream; it allocates nothing, and does not wait.
//
//   dense    h = act(x W_gate^T) (x W_up^T)   y = h W_down^T
//   mixture  the same two products over groups of rows in the order of their experts, then
//            y[t] = sum over slots s of w[t, s] (h W_down^T)[place[t, s]]
//
// x, y [T, d]; gate, up [E, f, d]; down [E, d, f]; ids, weights [T, k]. There are at most R = T k
// rows, or R = T in a dense layer. The workspace holds h [R, f] and, for a mixture, the outputs of
// the rows [R, d] and some integers for each slot; its size depends on the shapes alone. Outputs of
// experts are rounded to the type of x before they are added up, as torch does, which halves the
// memory traffic.
#pragma once
#include "layer.cuh"

namespace ffncore::cuda {

template <class T> struct LayerForward {
    int64_t tokens = 0;
    Matrix<const T> x;
    Matrix<T> y;
    ActivationParams act{};
    LayerRouting routing;
    T *saved = nullptr; // or [gated ? 2 : 1][R][f], which receives gate and up with their bias
};

// With an arena that only counts, nothing is launched.
template <class T, class W>
void layer_forward(const LayerForward<T> &layer, const LayerWeights<W> &w, Arena &arena,
                   cudaStream_t stream) {
    const LayerRouting &routing = layer.routing;
    const bool mixture = routing.ids != nullptr;
    const int64_t rows = layer.tokens * (mixture ? routing.top_k : 1);
    const Routed routed = route_rows(routing, layer.tokens, w.experts, arena, stream);
    const Operand<T> x = rows_of_x(layer.x, routed, routing, layer.tokens, w.d, arena, stream);
    T *const h = arena.take<T>(rows * w.f);
    T *const outputs = mixture ? arena.take<T>(rows * w.d) : nullptr;
    if (arena.counts() || rows == 0) return;

    HiddenEpilogue<T> hidden{layer.act, w.b_gate, w.b_up, rows_of(h, w.f), {}, {}, w.f};
    if (layer.saved) {
        if (w.gated) hidden.save_gate = rows_of(layer.saved, w.f);
        hidden.save_up = rows_of(layer.saved + (w.gated ? rows * w.f : 0), w.f);
    }
    launch_hidden(routed, x, w, hidden, stream);

    const StoreEpilogue<T> store{mixture ? rows_of(outputs, w.d) : layer.y, w.b_down, w.d, false};
    launch_product<false>(
        RowProduct<T, W>{routed.groups, 1, {operand_of<T>(h, w.f), {}}, {w.down, {}}, w.d, w.f},
        !w.down_by_columns, store, stream);
    if (mixture)
        launch(combine_rows<T, T>, {layer.tokens}, kRowThreads, 0, stream, routed.place,
               routing.top_k, Matrix<const T>{outputs, w.d, 1, 0},
               routing.on_input ? nullptr : routed.factors, layer.y, w.d, false);
}

} // namespace ffncore::cuda
