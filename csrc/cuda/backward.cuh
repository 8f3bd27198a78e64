// The backward pass of a layer, as launches on a stream.
//
//   dh = dy W_down, by the row's weight   -> dgate, dup, h; sums of dh h: the weight's gradient
//   dx = dgate W_gate + dup W_up          of a mixture by rows, then added up over slots
//   dW_gate = dgate^T x, dW_up = dup^T x, dW_down = dy^T h    over each expert's rows
//
// Shapes as in layer.cuh. The workspace holds dgate, dup and h [R, f], a mixture's rows of dx
// [R, d], and gate and up again where the forward pass has not left them. Sums over rows go through
// all rows of an expert in one chain: no atomics, no second pass. A gradient that is absent costs
// nothing; experts without rows get zeros, or (add) keep what they have.
#pragma once
#include "layer.cuh"

namespace ffncore::cuda {

// G: of the weights' gradients, their own type or float.
template <class T, class G> struct LayerBackward {
    int64_t tokens = 0;
    Operand<T> x, grad_y;
    ActivationParams act{};
    LayerRouting routing;
    const T *saved = nullptr; // of the forward pass, or nullptr: gate and up are computed again
    bool add = false;         // to what is there
    Matrix<T> grad_x;
    Matrix<G> grad_gate, grad_up, grad_down, grad_b_gate, grad_b_up, grad_b_down;
    Matrix<float> grad_weights; // of the routing, [T, k]
};

template <class Tile, class T, class G>
void launch_sums(const Groups &groups, const Operand<T> &a, const Operand<T> &b, int64_t m,
                 int64_t n, const Matrix<G> &to, bool add, cudaStream_t stream) {
    if (!to.data) return;
    const SumProduct<T, typename Tile::B> p{groups, a, b, m, n};
    launch(sum_product<Tile, StoreEpilogue<G>>, blocks_of<Tile>(p), Tile::kThreads,
           Tile::kSharedBytes, stream, p, StoreEpilogue<G>{to, {}, n, add});
}

template <class T, class G>
void launch_bias(const Groups &groups, const Matrix<const T> &m, const int32_t *lines,
                 const float *factors, int64_t columns, const Matrix<G> &to, bool add,
                 cudaStream_t stream) {
    if (to.data)
        launch(sum_rows<T, G>, {ceil_div<int64_t>(columns, kRowThreads), groups.count}, kRowThreads,
               0, stream, groups, m, lines, factors, to, columns, add);
}

// Of: the tiles; T: also of the weights.
template <class Of, class T, class G>
void layer_backward(const LayerBackward<T, G> &layer, const LayerWeights<T> &w, Arena &arena,
                    cudaStream_t stream) {
    using Across = typename Of::Across;
    using Sums = typename Of::Sums;
    const LayerRouting &routing = layer.routing;
    const bool mixture = routing.ids != nullptr, add = layer.add;
    const int64_t rows = layer.tokens * (mixture ? routing.top_k : 1), d = w.d, f = w.f;
    const Routed routed = route_rows(routing, layer.tokens, w.experts, Across::kM, arena, stream);
    const bool weighs_input = mixture && routing.on_input;
    const RowsOfX<T> x(layer.x, routed, weighs_input, rows, d, arena, stream);
    const bool rows_of_x = layer.grad_x.data || (weighs_input && layer.grad_weights.data);
    // Parts of whole tiles; on the input one dot product a row.
    const int64_t parts = ceil_div<int64_t>(f, Across::kN) * (Across::kN / Across::kSumColumns);
    T *const dgate = w.gated ? arena.take<T>(rows * f) : nullptr;
    T *const dup = arena.take<T>(rows * f);
    T *const h = arena.take<T>(rows * f);
    T *const again = layer.saved ? nullptr : arena.take<T>((w.gated ? 2 : 1) * rows * f);
    T *const dx = mixture ? arena.take<T>(rows * d) : nullptr;
    float *const dots = mixture ? arena.take<float>(rows * parts) : nullptr;
    if (arena.counts()) return;

    if (again) {
        HiddenEpilogue<T> hidden{layer.act, w.b_gate, w.b_up, {}, {}, {}, f};
        if (w.gated) hidden.save_gate = rows_of(again, f);
        hidden.save_up = rows_of(again + (w.gated ? rows * f : 0), f);
        launch_hidden<Of>(routed, x.x, w, hidden, stream);
    }
    const T *const saved = again ? again : layer.saved;

    Operand<T> dy = layer.grad_y;
    dy.lines = routed.tokens;
    const float *const of_output = weighs_input ? nullptr : routed.factors;
    GradientEpilogue<T> gradient{};
    gradient.act = layer.act;
    if (w.gated) gradient.gate = rows_of(saved, f), gradient.dgate = rows_of(dgate, f);
    gradient.up = rows_of(saved + (w.gated ? rows * f : 0), f);
    gradient.factors = of_output;
    gradient.dup = rows_of(dup, f);
    gradient.h = rows_of(h, f);
    if (!weighs_input && dots) gradient.dots = rows_of(dots, parts);
    gradient.columns = f;
    launch_product<Across>(RowProduct<T, T>{routed.groups, 1, {dy, {}}, {w.down, {}}, f, d},
                           gradient, stream);

    const Operand<T> by_gate = operand_of<T>(dgate, f), by_up = operand_of<T>(dup, f);
    if (rows_of_x) {
        RowProduct<T, T> p{routed.groups, 2, {by_gate, by_up}, {w.gate, w.up}, d, f};
        if (!w.gated) p.terms = 1, p.a[0] = by_up, p.b[0] = w.up;
        launch_product<Across>(
            p, StoreEpilogue<T>{mixture ? rows_of(dx, d) : layer.grad_x, {}, d, !mixture && add},
            stream);
        if (mixture && layer.grad_x.data)
            launch(combine_rows<T, T>, {layer.tokens}, kRowThreads, 0, stream, routed.place,
                   routing.top_k, Matrix<const T>{dx, d, 1, 0},
                   weighs_input ? routed.factors : nullptr, layer.grad_x, d, add);
    }
    if (mixture && layer.grad_weights.data) {
        constexpr int kWarps = 8;
        if (weighs_input)
            launch(dot_rows<T>, {ceil_div<int64_t>(rows, kWarps)}, kWarps * kWarp, 0, stream,
                   routed.groups, Matrix<const T>{dx, d, 1, 0}, routed.tokens,
                   Matrix<const T>{layer.x.data, layer.x.stride, 1, 0}, d, dots);
        const int64_t count = weighs_input ? 1 : parts;
        launch(factor_gradient<T>, {ceil_div<int64_t>(rows, kWarps)}, kWarps * kWarp, 0, stream,
               routed.place, rows, routing.top_k, Matrix<const float>{dots, count, 1, 0}, count,
               routing.ids, weighs_input ? Bias{} : w.b_down,
               Matrix<const T>{layer.grad_y.data, layer.grad_y.stride, 1, 0}, d, layer.grad_weights,
               add);
    }

    if (w.gated) launch_sums<Sums>(routed.groups, by_gate, x.x, f, d, layer.grad_gate, add, stream);
    launch_sums<Sums>(routed.groups, by_up, x.x, f, d, layer.grad_up, add, stream);
    launch_sums<Sums>(routed.groups, dy, operand_of<T>(h, f), d, f, layer.grad_down, add, stream);
    const auto own = [&](const T *m) { return Matrix<const T>{m, f, 1, 0}; };
    if (w.gated)
        launch_bias(routed.groups, own(dgate), nullptr, nullptr, f, layer.grad_b_gate, add, stream);
    launch_bias(routed.groups, own(dup), nullptr, nullptr, f, layer.grad_b_up, add, stream);
    launch_bias(routed.groups, Matrix<const T>{layer.grad_y.data, layer.grad_y.stride, 1, 0},
                routed.tokens, of_output, d, layer.grad_b_down, add, stream);
}

} // namespace ffncore::cuda
