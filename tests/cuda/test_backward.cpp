// Tests the backward pass of a layer, dense and a mixture, against the chain rule in double.
#include "../../csrc/cuda/backward.cuh"
#include "../../csrc/cuda/forward.cuh"
#include "support.h"

namespace {

struct Case {
    int64_t tokens, d, f, experts, top_k; // top_k 0: dense
    bool gated, on_input, saves, add, turned;
    Kind kind = kSilu;
};

// A gradient in double, and the one that is tested. Both begin with 1 where gradients are
// accumulated.
template <class G> struct Gradient {
    Result<G> result;
    std::vector<double> expected;
    Gradient(int64_t rows, int64_t cols, bool add)
        : result(rows, cols), expected(rows * cols, add ? 1 : 0) {
        for (G &x : result.data)
            if (add) put(&x, 1);
    }
    double &at(int64_t r, int64_t c) { return expected[r * result.cols + c]; }
    Matrix<G> matrix() { return result.matrix(); }
    AnyMatrix any(int64_t group) { return {result.data.data(), result.cols, 1, group, kTypeOf<G>}; }
    // Allows errors, relative to the largest entry, for sums in float, operands rounded to T, and
    // the result rounded to G.
    template <class T> void compare(const char *name) const {
        double worst = 0, largest = 1e-30;
        for (size_t i = 0; i < expected.size(); ++i) {
            const double error = std::fabs(number(result.data[i]) - expected[i]);
            worst = error > worst || error != error ? error : worst;
            largest = std::fmax(largest, std::fabs(expected[i]));
        }
        const double operands = sizeof(T) == 4 ? 5e-6 : 3 * kEpsilon<T>;
        const bool right = worst <= std::max(operands, kEpsilon<G>) * largest;
        if (!right) std::printf("%s: %g of %g\n", name, worst, largest);
        CHECK(right);
    }
};

// xielu's parameters before softplus, and those of its formula.
constexpr double kAlphaP = 0.4, kAlphaN = -0.3, kBeta = 0.5;
double softplus(double x) { return std::log1p(std::exp(x)); }
double logistic(double x) { return 1 / (1 + std::exp(-x)); }

struct Value {
    double value, slope, by_p, by_n; // the derivatives by v and by the parameters
};
Value activation(Kind kind, double v) {
    const double s = logistic(v);
    if (kind == kSilu) return {v * s, s * (1 + v * (1 - s)), 0, 0};
    const double p = softplus(kAlphaP), n = kBeta + softplus(kAlphaN), em = std::expm1(v);
    if (v > 0) return {v * (p * v + kBeta), 2 * p * v + kBeta, v * v * logistic(kAlphaP), 0};
    return {n * (em - v) + kBeta * v, n * em + kBeta, 0, (em - v) * logistic(kAlphaN)};
}

template <class T, class W, class G> void test_layer(const Case &c) {
    const int64_t k = std::max<int64_t>(c.top_k, 1), slots = c.tokens * k, d = c.d, f = c.f,
                  E = c.experts, x_col = c.turned ? 3 : 1;
    const Array<T> x(c.tokens, 3 * d, 3 * d, 0);
    Array<T> dy(c.tokens, 3 * d, 3 * d + 8, 0);
    for (T &number_of_dy : dy.data) // so that a float16 does not overflow
        put(&number_of_dy, number(number_of_dy) / 16);
    const Weight<W> gate(E, f, d, c.turned), up(E, f, d, c.turned), down(E, d, f, c.turned);
    const Array<float> weights(slots, 1, 1, 0), b_up(E, f, f, 0), b_down(E, d, d, 0);
    std::vector<int32_t> ids(slots);
    for (int32_t &id : ids) id = (int32_t)(generator() % (E + 1)) - 1;
    std::vector<T> saved(2 * slots * f + 1);

    LayerWeights<W> w;
    w.experts = E, w.d = d, w.f = f;
    w.gated = c.gated;
    w.gate = gate.operand(), w.up = up.operand(), w.down = down.operand();
    w.up_by_columns = w.down_by_columns = c.turned;
    w.b_up = {b_up.begin(), 1, f, kFloat32};
    w.b_down = {b_down.begin(), 1, d, kFloat32};
    ActivationParams act{};
    act.kind = c.kind;
    act.alpha = act.gate_multiplier = 1;
    act.xielu_p = (float)softplus(kAlphaP), act.xielu_n = (float)(kBeta + softplus(kAlphaN));
    act.beta = kBeta;
    LayerRouting routing;
    if (c.top_k) routing = {ids.data(), c.top_k, {weights.begin(), c.top_k, 1, 0}, c.on_input};
    const Matrix<const T> x_read{x.begin(), 3 * d, x_col, 0};
    Workspace workspace(1 << 24);
    Result<T> y(c.tokens, d);
    if (c.saves) {
        Arena arena(workspace.begin());
        layer_forward(LayerForward<T>{c.tokens, x_read, y.matrix(), act, routing, saved.data()}, w,
                      arena, nullptr);
        std::fill(workspace.memory.begin(), workspace.memory.end(), (char)0xff);
    }

    Gradient<std::conditional_t<sizeof(T) == 2, G, T>> grad_x(c.tokens, d, c.add);
    Gradient<G> grad_gate(E * f, d, c.add), grad_up(E * f, d, c.add), grad_down(E * d, f, c.add),
        grad_b_up(E, f, c.add), grad_b_down(E, d, c.add);
    Gradient<float> grad_weights(c.tokens, k, c.add);
    const double start = c.add ? 1 : 0;
    double grad_alpha[2] = {c.add ? 1. : NAN, c.add ? 1. : NAN}, by_alpha[2] = {start, start};
    LayerBackward<T> layer{};
    layer.tokens = c.tokens;
    layer.x = x_read, layer.grad_y = {dy.begin(), 3 * d + 8, x_col, 0};
    layer.act = act;
    layer.routing = routing;
    layer.saved = c.saves ? saved.data() : nullptr;
    layer.add = c.add;
    layer.grad_x = grad_x.any(0);
    layer.grad_gate = grad_gate.any(f * d);
    layer.grad_up = grad_up.any(f * d);
    layer.grad_down = grad_down.any(d * f);
    layer.grad_b_up = grad_b_up.any(f);
    layer.grad_b_down = grad_b_down.any(d);
    if (c.top_k) layer.grad_weights = grad_weights.matrix();
    if (c.kind == kXielu) {
        layer.factor_p = logistic(kAlphaP), layer.factor_n = logistic(kAlphaN);
        layer.grad_p = grad_alpha, layer.grad_n = grad_alpha + 1;
    }
    Arena counting, arena(workspace.begin());
    layer_backward(layer, w, counting, nullptr);
    layer_backward(layer, w, arena, nullptr);
    CHECK(arena.used() == counting.used() && arena.used() < (1 << 24) - 256);

    for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t t = slot / k, e = c.top_k ? ids[slot] : 0;
        if (e < 0) continue;
        const double factor = c.top_k ? weights.at(slot, 0) : 1;
        const double in_factor = c.on_input ? factor : 1, out_factor = c.on_input ? 1 : factor;
        std::vector<double> in(d), back(d), h(f);
        for (int64_t i = 0; i < d; ++i)
            in[i] =
                c.on_input ? rounded<T>((float)(x.at(t, i * x_col) * factor)) : x.at(t, i * x_col);
        double by_factor = 0;
        for (int64_t j = 0; j < f; ++j) {
            double g = 0, u = b_up.at(e, j), dh = 0;
            for (int64_t i = 0; i < d; ++i) {
                g += in[i] * gate.at(e, j, i), u += in[i] * up.at(e, j, i);
                dh += dy.at(t, i * x_col) * down.at(e, i, j);
            }
            const double v = rounded<T>((float)(c.gated ? g : u));
            u = c.gated ? rounded<T>((float)u) : 1;
            const Value a = activation(c.kind, v);
            h[j] = a.value * u;
            by_factor += dh * h[j];
            dh *= out_factor;
            const double to_gate = dh * u * a.slope, to_up = c.gated ? dh * a.value : to_gate;
            by_alpha[0] += dh * u * a.by_p, by_alpha[1] += dh * u * a.by_n;
            for (int64_t i = 0; i < d; ++i) {
                if (c.gated) {
                    grad_gate.at(e * f + j, i) += to_gate * in[i];
                    back[i] += to_gate * gate.at(e, j, i);
                }
                grad_up.at(e * f + j, i) += to_up * in[i];
                back[i] += to_up * up.at(e, j, i);
                grad_down.at(e * d + i, j) += out_factor * dy.at(t, i * x_col) * h[j];
            }
            grad_b_up.at(e, j) += to_up;
        }
        for (int64_t i = 0; i < d; ++i) {
            grad_x.at(t, i) += in_factor * back[i];
            grad_b_down.at(e, i) += out_factor * dy.at(t, i * x_col);
            by_factor += dy.at(t, i * x_col) * b_down.at(e, i);
        }
        if (c.on_input) {
            by_factor = 0;
            for (int64_t i = 0; i < d; ++i) by_factor += back[i] * x.at(t, i * x_col);
        }
        grad_weights.at(t, slot % k) += by_factor;
    }
    const auto compare = [&](const auto &gradient, const char *name) {
        gradient.template compare<T>(name);
    };
    compare(grad_x, "x");
    if (c.gated) compare(grad_gate, "gate");
    compare(grad_up, "up");
    compare(grad_down, "down");
    compare(grad_b_up, "b_up");
    compare(grad_b_down, "b_down");
    if (c.top_k) compare(grad_weights, "routing weights");
    if (c.kind == kXielu)
        for (int i : {0, 1}) {
            const double size = 1 + std::fabs(by_alpha[0]) + std::fabs(by_alpha[1]);
            const double off = std::fabs(grad_alpha[i] - by_alpha[i]) / size;
            if (!(off < (sizeof(T) == 4 ? 1e-5 : 3 * kEpsilon<T>)))
                std::printf("xielu: %g, not %g\n", grad_alpha[i], by_alpha[i]);
            CHECK(off < (sizeof(T) == 4 ? 1e-5 : 3 * kEpsilon<T>));
        }
}

// G is the type of the gradients of weights.
template <class T, class W, class G> void test_layers() {
    for (const bool gated : {false, true})
        for (const bool add : {false, true}) {
            test_layer<T, W, G>({5, 40, 72, 1, 0, gated, false, add, add, add});
            test_layer<T, W, G>({130, 16, 33, 1, 0, gated, false, !add, add, false, kXielu});
            test_layer<T, W, G>({0, 8, 8, 1, 0, gated, false, false, add, false, kXielu});
            for (const bool on_input : {false, true}) {
                test_layer<T, W, G>({30, 40, 24, 7, 3, gated, on_input, add, add, !add, kXielu});
                test_layer<T, W, G>({90, 8, 9, 2, 2, gated, on_input, !add, add, on_input});
            }
        }
}

} // namespace

int main() {
    test_layers<float, float, float>();
    test_layers<float, Bf16, Bf16>();
    test_layers<float, F16, float>();
    test_layers<Bf16, Bf16, Bf16>();
    test_layers<Bf16, Bf16, float>();
    test_layers<F16, F16, F16>();
    return finish();
}
