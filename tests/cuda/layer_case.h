// A layer with random numbers, dense or a mixture, and its forward pass as loops in double, which
// round where the kernels do.
#pragma once
#include "../../csrc/cuda/forward.cuh"
#include "support.h"

namespace {

struct Case {
    int64_t tokens, d, f, experts, top_k; // top_k 0: dense
    bool gated, on_input, turned;         // turned: weights by columns, x with gaps between columns
    int64_t offset = 0;                   // of x, in elements from an aligned address
};

template <class T, class W> struct Layer {
    const Case c;
    const int64_t slots, x_col;
    Array<T> x;
    const Weight<W> gate, up, down;
    const Array<float> weights, b_up, b_down;
    std::vector<int32_t> ids;
    Result<T> y;
    LayerWeights<W> w;
    LayerForward<T> forward;

    explicit Layer(const Case &c)
        : c(c), slots(c.tokens * std::max<int64_t>(c.top_k, 1)), x_col(c.turned ? 2 : 1),
          x(c.tokens, 2 * c.d, 2 * c.d, c.offset), gate(c.experts, c.f, c.d, c.turned),
          up(c.experts, c.f, c.d, c.turned), down(c.experts, c.d, c.f, c.turned),
          weights(slots, 1, 1, 0), b_up(c.experts, c.f, c.f, 0), b_down(c.experts, c.d, c.d, 0),
          ids(slots), y(c.tokens, c.d) {
        const int32_t none[] = {-1, -1, (int32_t)c.experts, INT32_MIN};
        for (int32_t &id : ids) {
            id = (int32_t)(generator() % (c.experts + 1));
            if (id == c.experts) id = none[generator() % 4];
        }
        w.experts = c.experts, w.d = c.d, w.f = c.f;
        w.gated = c.gated;
        w.gate = gate.operand(), w.up = up.operand(), w.down = down.operand();
        w.up_by_columns = w.down_by_columns = c.turned;
        w.b_up = {b_up.begin(), 1, c.f, kFloat32};
        w.b_down = {b_down.begin(), 1, c.d, kFloat32};
        forward = {c.tokens, {x.begin(), 2 * c.d, x_col, 0}, y.matrix(), {}, {}, nullptr};
        forward.act.kind = kSilu;
        forward.act.alpha = forward.act.gate_multiplier = 1;
        if (c.top_k)
            forward.routing = {ids.data(), c.top_k, {weights.begin(), c.top_k, 1, 0}, c.on_input};
    }
    Layer(const Layer &) = delete;

    // Calls pass(forward, w, arena) once with an arena that counts, and once with memory.
    template <class Pass> void run(const Pass &pass) {
        Arena counting;
        pass(forward, w, counting);
        Workspace workspace(counting.used());
        Arena arena(workspace.begin());
        pass(forward, w, arena);
        CHECK(arena.used() == counting.used());
        CHECK(workspace.end_stays(counting.used()));
    }

    // rounded_outputs: the output of an expert is rounded before it is multiplied by its weight.
    std::vector<double> expected(bool rounded_outputs) const {
        const int64_t d = c.d, f = c.f, k = std::max<int64_t>(c.top_k, 1);
        std::vector<double> all(c.tokens * d);
        for (int64_t slot = 0; slot < slots; ++slot) {
            const int64_t t = slot / k, e = c.top_k ? ids[slot] : 0;
            if (e < 0 || e >= c.experts) continue;
            const double factor = c.top_k ? weights.at(slot, 0) : 1;
            std::vector<double> h(f);
            for (int64_t j = 0; j < f; ++j) {
                double g = 0, u = b_up.at(e, j);
                for (int64_t i = 0; i < d; ++i) {
                    const double own = x.at(t, i * x_col);
                    const double in = c.on_input ? rounded<T>((float)(own * factor)) : own;
                    g += in * gate.at(e, j, i), u += in * up.at(e, j, i);
                }
                const double v = c.gated ? g : u;
                h[j] = rounded<T>((float)(v / (1 + std::exp(-v)) * (c.gated ? u : 1)));
            }
            for (int64_t i = 0; i < d; ++i) {
                double out = b_down.at(e, i);
                for (int64_t j = 0; j < f; ++j) out += h[j] * down.at(e, i, j);
                if (rounded_outputs && c.top_k) out = rounded<T>((float)out);
                all[t * d + i] += (c.top_k && !c.on_input ? factor : 1) * out;
            }
        }
        return all;
    }

    // The remaining errors are those of sums in float, and of single last places.
    void compare(bool rounded_outputs) const {
        const std::vector<double> all = expected(rounded_outputs);
        double worst = 0, largest = 0;
        for (size_t i = 0; i < all.size(); ++i) {
            const double error = std::fabs(number(y.data[i]) - all[i]);
            worst = error > worst || error != error ? error : worst;
            largest = std::fmax(largest, std::fabs(all[i]));
        }
        const bool right = worst <= (sizeof(T) == 4 ? 1e-6 : kEpsilon<T>)*2 * largest;
        if (!right)
            std::printf("    T %ld, d %ld, f %ld, %ld of %ld experts: %g of %g\n", (long)c.tokens,
                        (long)c.d, (long)c.f, (long)c.top_k, (long)c.experts, worst, largest);
        CHECK(right);
    }
};

} // namespace
