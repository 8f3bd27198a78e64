// A whole layer's forward pass, dense and as a mixture, against loops in double.
#include "../../csrc/cuda/forward.cuh"
#include "../../csrc/cuda/simt_tile.cuh"
#include "../../csrc/cuda/tensor_tile.cuh"
#include "support.h"

namespace {

struct Case {
    int64_t tokens, d, f, experts, top_k; // top_k 0: dense
    bool gated, on_input;
};

template <class Of, class T> void test_layer(const Case &c) {
    const int64_t slots = c.tokens * std::max<int64_t>(c.top_k, 1), d = c.d, f = c.f;
    const Array<T> x(c.tokens, d, d, 0), gate(c.experts * f, d, d, 0), up(c.experts * f, d, d, 0),
        down(c.experts * d, f, f, 0);
    const Array<float> weights(slots, 1, 1, 0), b_up(c.experts, f, f, 0),
        b_down(c.experts, d, d, 0);
    std::vector<int32_t> ids(slots);
    for (int32_t &id : ids) id = (int32_t)(generator() % (c.experts + 1)) - 1;
    Result<T> y(c.tokens, d);
    std::vector<T> saved(2 * slots * f);

    LayerWeights<T> w{c.experts,
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
    LayerForward<T> layer{c.tokens, x.operand(), y.matrix(), {}, {}, saved.data()};
    layer.act.kind = kSilu;
    layer.act.alpha = layer.act.gate_multiplier = 1;
    if (c.top_k)
        layer.routing = {ids.data(), c.top_k, {weights.begin(), c.top_k, 1, 0}, c.on_input};
    Arena counting(nullptr);
    layer_forward<Of>(layer, w, counting, nullptr);
    std::vector<char> memory(counting.used() + 256, (char)0xff);
    Arena arena((void *)(((uintptr_t)memory.data() + 255) / 256 * 256));
    layer_forward<Of>(layer, w, arena, nullptr);
    CHECK(arena.used() == counting.used());

    // Rounded where the layer rounds; what is left are sums in float, and single last places.
    double worst = 0, largest = 0;
    for (int64_t t = 0; t < c.tokens; ++t) {
        std::vector<double> sum(d);
        for (int64_t s = 0; s < std::max<int64_t>(c.top_k, 1); ++s) {
            const int64_t slot = t * std::max<int64_t>(c.top_k, 1) + s;
            const int64_t e = c.top_k ? ids[slot] : 0;
            if (e < 0) continue;
            const double factor = c.top_k ? weights.at(slot, 0) : 1;
            std::vector<double> h(f);
            for (int64_t j = 0; j < f; ++j) {
                double g = 0, u = b_up.at(e, j);
                for (int64_t k = 0; k < d; ++k) {
                    const double in =
                        c.on_input ? rounded<T>((float)(x.at(t, k) * factor)) : x.at(t, k);
                    g += in * gate.at(e * f + j, k), u += in * up.at(e * f + j, k);
                }
                const double v = c.gated ? g : u;
                h[j] = rounded<T>((float)(v / (1 + std::exp(-v)) * (c.gated ? u : 1)));
            }
            for (int64_t i = 0; i < d; ++i) {
                double out = b_down.at(e, i);
                for (int64_t j = 0; j < f; ++j) out += h[j] * down.at(e * d + i, j);
                if (c.top_k) out = rounded<T>((float)out);
                sum[i] += (c.top_k && !c.on_input ? factor : 1) * out;
            }
        }
        for (int64_t i = 0; i < d; ++i) {
            worst = std::fmax(worst, std::fabs(y.at(t, i) - sum[i]));
            largest = std::fmax(largest, std::fabs(sum[i]));
            CHECK(!std::isnan(y.at(t, i)));
        }
    }
    CHECK(worst <= (sizeof(T) == 4 ? 1e-6 : kEpsilon<T>)*2 * largest);
}

template <class Of, class T> void test_layers() {
    for (const bool gated : {false, true}) {
        test_layer<Of, T>({5, 40, 72, 1, 0, gated, false});
        test_layer<Of, T>({130, 16, 65, 1, 0, gated, false});
        test_layer<Of, T>({0, 8, 8, 1, 0, gated, false});
        for (const bool on_input : {false, true}) {
            test_layer<Of, T>({30, 40, 24, 7, 3, gated, on_input});
            test_layer<Of, T>({200, 8, 9, 2, 2, gated, on_input});
            test_layer<Of, T>({0, 8, 8, 4, 2, gated, on_input});
        }
    }
}

} // namespace

int main() {
    test_layers<Tiles<SimtTile, float>, float>();
    test_layers<Tiles<TensorTile, Bf16>, Bf16>();
    test_layers<Tiles<TensorTile, F16>, F16>();
    return finish();
}
