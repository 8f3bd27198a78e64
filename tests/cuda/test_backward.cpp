// A whole layer's backward pass, dense and as a mixture, against the chain rule in double.
#include "../../csrc/cuda/backward.cuh"
#include "../../csrc/cuda/forward.cuh"
#include "../../csrc/cuda/simt_tile.cuh"
#include "../../csrc/cuda/tensor_tile.cuh"
#include "support.h"

namespace {

struct Case {
    int64_t tokens, d, f, experts, top_k; // top_k 0: dense
    bool gated, on_input, saves, add;
};

// A gradient in double beside the one that is tested; both begin with 1 where they are added to.
template <class G> struct Gradient {
    Result<G> result;
    std::vector<double> expected;
    Gradient(int64_t rows, int64_t cols, bool add)
        : result(rows, cols), expected(rows * cols, add ? 1 : 0) {
        for (G &x : result.data)
            if (add) put(&x, 1);
    }
    double &at(int64_t r, int64_t c) { return expected[r * result.cols + c]; }
    Matrix<G> matrix(int64_t group = 0) {
        Matrix<G> m = result.matrix();
        m.group = group;
        return m;
    }
    // Of the largest entry: sums in float, operands rounded to T.
    template <class T> void compare(const char *name) const {
        double worst = 0, largest = 1e-30;
        for (size_t i = 0; i < expected.size(); ++i) {
            const double error = std::fabs(number(result.data[i]) - expected[i]);
            worst = error > worst || error != error ? error : worst;
            largest = std::fmax(largest, std::fabs(expected[i]));
        }
        const bool right = worst <= (sizeof(T) == 4 ? 5e-6 : 3 * kEpsilon<T>)*largest;
        if (!right) std::printf("%s: %g of %g\n", name, worst, largest);
        CHECK(right);
    }
};

template <class Of, class T, class G> void test_layer(const Case &c) {
    const int64_t k = std::max<int64_t>(c.top_k, 1), slots = c.tokens * k, d = c.d, f = c.f,
                  E = c.experts;
    const Array<T> x(c.tokens, d, d, 0), dy(c.tokens, d, d + 8, 0), gate(E * f, d, d, 0),
        up(E * f, d, d, 0), down(E * d, f, f, 0);
    const Array<float> weights(slots, 1, 1, 0), b_up(E, f, f, 0), b_down(E, d, d, 0);
    std::vector<int32_t> ids(slots);
    for (int32_t &id : ids) id = (int32_t)(generator() % (E + 1)) - 1;
    std::vector<T> saved(2 * slots * f + 1);

    LayerWeights<T> w{E,
                      d,
                      f,
                      c.gated,
                      gate.operand(),
                      up.operand(),
                      down.operand(),
                      {},
                      {b_up.begin(), 1, f, 0},
                      {b_down.begin(), 1, d, 0}};
    w.gate.group_stride = w.up.group_stride = f * d, w.down.group_stride = d * f;
    ActivationParams act{};
    act.kind = kSilu;
    act.alpha = act.gate_multiplier = 1;
    LayerRouting routing;
    if (c.top_k) routing = {ids.data(), c.top_k, {weights.begin(), c.top_k, 1, 0}, c.on_input};
    std::vector<char> memory(1 << 24, (char)0xff);
    void *const base = (void *)(((uintptr_t)memory.data() + 255) / 256 * 256);
    Result<T> y(c.tokens, d);
    if (c.saves) {
        Arena arena(base);
        layer_forward<Of>(
            LayerForward<T>{c.tokens, x.operand(), y.matrix(), act, routing, saved.data()}, w,
            arena, nullptr);
        std::fill(memory.begin(), memory.end(), (char)0xff);
    }

    Gradient<T> grad_x(c.tokens, d, c.add);
    Gradient<G> grad_gate(E * f, d, c.add), grad_up(E * f, d, c.add), grad_down(E * d, f, c.add),
        grad_b_up(E, f, c.add), grad_b_down(E, d, c.add);
    Gradient<float> grad_weights(c.tokens, k, c.add);
    LayerBackward<T, G> layer{};
    layer.tokens = c.tokens;
    layer.x = x.operand(), layer.grad_y = dy.operand();
    layer.act = act;
    layer.routing = routing;
    layer.saved = c.saves ? saved.data() : nullptr;
    layer.add = c.add;
    layer.grad_x = grad_x.matrix();
    layer.grad_gate = grad_gate.matrix(f * d);
    layer.grad_up = grad_up.matrix(f * d);
    layer.grad_down = grad_down.matrix(d * f);
    layer.grad_b_up = grad_b_up.matrix(f);
    layer.grad_b_down = grad_b_down.matrix(d);
    if (c.top_k) layer.grad_weights = grad_weights.matrix();
    Arena counting(nullptr), arena(base);
    layer_backward<Of>(layer, w, counting, nullptr);
    layer_backward<Of>(layer, w, arena, nullptr);
    CHECK(arena.used() == counting.used() && arena.used() < (1 << 24) - 256);

    for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t t = slot / k, e = c.top_k ? ids[slot] : 0;
        if (e < 0) continue;
        const double factor = c.top_k ? weights.at(slot, 0) : 1;
        const double in_factor = c.on_input ? factor : 1, out_factor = c.on_input ? 1 : factor;
        std::vector<double> in(d), back(d), h(f);
        for (int64_t i = 0; i < d; ++i)
            in[i] = c.on_input ? rounded<T>((float)(x.at(t, i) * factor)) : x.at(t, i);
        double by_factor = 0;
        for (int64_t j = 0; j < f; ++j) {
            double g = 0, u = b_up.at(e, j), dh = 0;
            for (int64_t i = 0; i < d; ++i) {
                g += in[i] * gate.at(e * f + j, i), u += in[i] * up.at(e * f + j, i);
                dh += dy.at(t, i) * down.at(e * d + i, j);
            }
            const double v = rounded<T>((float)(c.gated ? g : u));
            u = c.gated ? rounded<T>((float)u) : 1;
            const double s = 1 / (1 + std::exp(-v)), slope = s * (1 + v * (1 - s));
            h[j] = v * s * u;
            by_factor += dh * h[j];
            dh *= out_factor;
            const double to_gate = dh * u * slope, to_up = c.gated ? dh * v * s : to_gate;
            for (int64_t i = 0; i < d; ++i) {
                if (c.gated) {
                    grad_gate.at(e * f + j, i) += to_gate * in[i];
                    back[i] += to_gate * gate.at(e * f + j, i);
                }
                grad_up.at(e * f + j, i) += to_up * in[i];
                back[i] += to_up * up.at(e * f + j, i);
                grad_down.at(e * d + i, j) += out_factor * dy.at(t, i) * h[j];
            }
            grad_b_up.at(e, j) += to_up;
        }
        for (int64_t i = 0; i < d; ++i) {
            grad_x.at(t, i) += in_factor * back[i];
            grad_b_down.at(e, i) += out_factor * dy.at(t, i);
            by_factor += dy.at(t, i) * b_down.at(e, i);
        }
        if (c.on_input) {
            by_factor = 0;
            for (int64_t i = 0; i < d; ++i) by_factor += back[i] * x.at(t, i);
        }
        grad_weights.at(t, slot % k) += by_factor;
    }
    grad_x.template compare<T>("x");
    if (c.gated) grad_gate.template compare<T>("gate");
    grad_up.template compare<T>("up");
    grad_down.template compare<T>("down");
    grad_b_up.template compare<T>("b_up");
    grad_b_down.template compare<T>("b_down");
    if (c.top_k) grad_weights.template compare<T>("routing weights");
}

template <class Of, class T, class G> void test_layers() {
    for (const bool gated : {false, true})
        for (const bool add : {false, true}) {
            test_layer<Of, T, G>({5, 40, 72, 1, 0, gated, false, add, add});
            test_layer<Of, T, G>({130, 16, 33, 1, 0, gated, false, !add, add});
            test_layer<Of, T, G>({0, 8, 8, 1, 0, gated, false, false, add});
            for (const bool on_input : {false, true}) {
                test_layer<Of, T, G>({30, 40, 24, 7, 3, gated, on_input, add, add});
                test_layer<Of, T, G>({90, 8, 9, 2, 2, gated, on_input, !add, add});
            }
        }
}

} // namespace

int main() {
    test_layers<Tiles<SimtTile, float>, float, float>();
    test_layers<Tiles<TensorTile, Bf16>, Bf16, Bf16>();
    test_layers<Tiles<TensorTile, Bf16>, Bf16, float>();
    test_layers<Tiles<TensorTile, F16>, F16, F16>();
    return finish();
}
