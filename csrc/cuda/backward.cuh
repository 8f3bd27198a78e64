// The backward pass of a layer, as launches on a stream.
//
//   dh = w dy W_down                      -> dgate, dup, h; sums of dh h for the gradient of w
//   dx = dgate W_gate + dup W_up          in a mixture for each row, then added up over slots
//   dW_gate = dgate^T x, dW_up = dup^T x, dW_down = dy^T h    over the rows of each expert
//
// w is the routing weight of a row, if it is on the output. Shapes are those of layer.cuh. The
// workspace holds dgate, dup and h [R, f], the rows of dx of a mixture [R, d], and gate and up
// where the forward pass has not saved them. A sum over rows goes through all rows of an expert in
// one chain: there are no atomics and no second pass. A gradient that is absent costs nothing. The
// gradients of experts without rows become zero, or with `add` stay as they are.
#pragma once
#include "layer.cuh"

namespace ffncore::cuda {

// A gradient has the type of the array that it belongs to, or float.
template <class T> struct LayerBackward {
    int64_t tokens = 0;
    Matrix<const T> x, grad_y;
    ActivationParams act{};
    LayerRouting routing;
    const T *saved = nullptr; // by the forward pass; nullptr: gate and up are recomputed
    bool add = false;         // gradients are added to the arrays' values
    AnyMatrix grad_x, grad_gate, grad_up, grad_down, grad_b_gate, grad_b_up, grad_b_down;
    Matrix<float> grad_weights; // of the routing weights, [T, k]
    // For xielu's parameters: the factors of their sums, and where the gradients go.
    double factor_p = 0, factor_n = 0;
    double *grad_p = nullptr, *grad_n = nullptr;
};

// Calls run(Matrix) for a gradient that is present, of W (or the type of x) or float.
template <class W, class Run> void with_type(const AnyMatrix &to, const Run &run) {
    if (!to.data) return;
    if (to.type == kFloat32)
        run(to.of<float>());
    else
        run(to.of<W>());
}

template <class T, class W>
void launch_sums(const Groups &groups, const Operand<T> &a, const Operand<T> &b, int64_t m,
                 int64_t n, const AnyMatrix &to, bool add, cudaStream_t stream) {
    using Tile = typename Tiles<T, W>::Sums;
    const SumProduct<T, T> p{groups, a, b, m, n};
    with_type<W>(to, [&]<class G>(const Matrix<G> &out) {
        launch(sum_product<Tile, StoreEpilogue<G>>, blocks_of<Tile>(p), Tile::kThreads,
               Tile::kSharedBytes, stream, p, StoreEpilogue<G>{out, {}, n, add});
    });
}

template <class T, class W>
void launch_bias(const Groups &groups, const Matrix<const T> &m, const int32_t *lines,
                 const float *factors, int64_t columns, const AnyMatrix &to, bool add,
                 cudaStream_t stream) {
    with_type<W>(to, [&]<class G>(const Matrix<G> &out) {
        launch_sum_rows(groups, m, lines, factors, out, columns, add, stream);
    });
}

inline void launch_xielu(const Groups &groups, const float *sums, int64_t parts, double *of_warps,
                         double factor, double *to, bool add, cudaStream_t stream) {
    if (!to) return;
    launch(sum_parts<>, {kSumBlocks}, kSumThreads, 0, stream, groups, sums, parts, of_warps);
    launch(finish_sum<>, {1}, kWarp, 0, stream, of_warps, factor, to, add);
}

template <class T, class W>
void layer_backward(const LayerBackward<T> &layer, const LayerWeights<W> &w, Arena &arena,
                    cudaStream_t stream) {
    using Across = typename Tiles<T, W>::template Rows<false, false>;
    const LayerRouting &routing = layer.routing;
    const bool mixture = routing.ids != nullptr, add = layer.add;
    const bool xielu = layer.grad_p || layer.grad_n;
    const int64_t tokens = layer.tokens, rows = tokens * (mixture ? routing.top_k : 1);
    const int64_t d = w.d, f = w.f;
    const Routed routed = route_rows(routing, tokens, w.experts, arena, stream);
    const bool on_input = mixture && routing.on_input;
    const Operand<T> x = rows_of_x(layer.x, routed, routing, tokens, d, arena, stream);
    Operand<T> dy = contiguous(layer.grad_y, tokens, d, arena, stream);
    dy.lines = routed.tokens;
    const bool rows_of_dx = layer.grad_x.data || (on_input && layer.grad_weights.data);
    // A row's dot product with h is kept in parts of 32 columns, for whole tiles. (With the weight
    // on the input there is one part, the dot product with x.)
    const int64_t parts = ceil_div<int64_t>(f, Across::kN) * (Across::kN / kSumColumns);
    T *const dgate = w.gated ? arena.take<T>(rows * f) : nullptr;
    T *const dup = arena.take<T>(rows * f);
    T *const h = arena.take<T>(rows * f);
    T *const again = layer.saved ? nullptr : arena.take<T>((w.gated ? 2 : 1) * rows * f);
    T *const dx = mixture ? arena.take<T>(rows * d) : nullptr;
    float *const dots = mixture ? arena.take<float>(rows * parts) : nullptr;
    float *const positive = xielu ? arena.take<float>(2 * rows * parts) : nullptr;
    double *const of_warps = xielu ? arena.take<double>(kSumParts) : nullptr;
    if (arena.counts()) return;

    if (again) {
        HiddenEpilogue<T> hidden{layer.act, w.b_gate, w.b_up, {}, {}, {}, f};
        if (w.gated) hidden.save_gate = rows_of(again, f);
        hidden.save_up = rows_of(again + (w.gated ? rows * f : 0), f);
        launch_hidden(routed, x, w, hidden, stream);
    }
    const T *const saved = again ? again : layer.saved;

    const float *const of_output = on_input ? nullptr : routed.factors;
    const auto gradient = [&]<bool sums>() {
        GradientEpilogue<T, sums> epilogue{};
        epilogue.act = layer.act;
        if (w.gated) epilogue.gate = rows_of(saved, f), epilogue.dgate = rows_of(dgate, f);
        epilogue.up = rows_of(saved + (w.gated ? rows * f : 0), f);
        epilogue.factors = of_output;
        epilogue.dup = rows_of(dup, f);
        epilogue.h = rows_of(h, f);
        if (!on_input && dots) epilogue.dots = rows_of(dots, parts);
        if (sums) epilogue.positive = rows_of(positive, parts);
        if (sums) epilogue.negative = rows_of(positive + rows * parts, parts);
        epilogue.columns = f;
        launch_product<false>(RowProduct<T, W>{routed.groups, 1, {dy, {}}, {w.down, {}}, f, d},
                              w.down_by_columns, epilogue, stream);
    };
    if (xielu) {
        gradient.template operator()<true>();
        launch_xielu(routed.groups, positive, parts, of_warps, layer.factor_p, layer.grad_p, add,
                     stream);
        launch_xielu(routed.groups, positive + rows * parts, parts, of_warps, layer.factor_n,
                     layer.grad_n, add, stream);
    } else {
        gradient.template operator()<false>();
    }

    const Operand<T> by_gate = operand_of<T>(dgate, f), by_up = operand_of<T>(dup, f);
    if (rows_of_dx) {
        RowProduct<T, W> p{routed.groups, 2, {by_gate, by_up}, {w.gate, w.up}, d, f};
        if (!w.gated) p.terms = 1, p.a[0] = by_up, p.b[0] = w.up;
        const auto product = [&](const auto &epilogue) {
            launch_product<false>(p, w.up_by_columns, epilogue, stream);
        };
        if (mixture) product(StoreEpilogue<T>{rows_of(dx, d), {}, d, false});
        with_type<T>(layer.grad_x, [&]<class G>(const Matrix<G> &out) {
            if (mixture)
                launch(combine_rows<G, T>, {tokens}, kRowThreads, 0, stream, routed.place,
                       routing.top_k, Matrix<const T>{dx, d, 1, 0},
                       on_input ? routed.factors : nullptr, out, d, add);
            else
                product(StoreEpilogue<G>{out, {}, d, add});
        });
    }
    if (mixture && layer.grad_weights.data) {
        constexpr int kWarps = 8;
        if (on_input)
            launch(dot_rows<T>, {ceil_div<int64_t>(rows, kWarps)}, kWarps * kWarp, 0, stream,
                   routed.groups, Matrix<const T>{dx, d, 1, 0}, routed.tokens, layer.x, d, dots);
        const int64_t count = on_input ? 1 : parts;
        launch(factor_gradient<T>, {ceil_div<int64_t>(rows, kWarps)}, kWarps * kWarp, 0, stream,
               routed.place, rows, routing.top_k, Matrix<const float>{dots, count, 1, 0}, count,
               routing.ids, on_input ? Bias{} : w.b_down, layer.grad_y, d, layer.grad_weights, add);
    }

    const Groups &groups = routed.groups;
    if (w.gated) launch_sums<T, W>(groups, by_gate, x, f, d, layer.grad_gate, add, stream);
    launch_sums<T, W>(groups, by_up, x, f, d, layer.grad_up, add, stream);
    launch_sums<T, W>(groups, dy, operand_of<T>(h, f), d, f, layer.grad_down, add, stream);
    const auto own = [&](const T *m) { return Matrix<const T>{m, f, 1, 0}; };
    if (w.gated)
        launch_bias<T, W>(groups, own(dgate), nullptr, nullptr, f, layer.grad_b_gate, add, stream);
    launch_bias<T, W>(groups, own(dup), nullptr, nullptr, f, layer.grad_b_up, add, stream);
    launch_bias<T, W>(groups, layer.grad_y, routed.tokens, of_output, d, layer.grad_b_down, add,
                      stream);
}

} // namespace ffncore::cuda
