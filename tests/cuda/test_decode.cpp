// The forward pass of few tokens against loops in double, and that a token alone has the bits that
// it has among others, aligned or not.
#include "../../csrc/cuda/decode.cuh"
#include "layer_case.h"

namespace {

template <class T, class W> void run(Layer<T, W> &layer) {
    layer.run([](const auto &forward, const auto &w, Arena &arena) {
        decode_forward(forward, w, arena, nullptr);
    });
}

template <class T, class W> void test_layer(const Case &c) {
    Layer<T, W> layer(c);
    run(layer);
    layer.compare(false);

    // The same numbers elsewhere: the last token alone, and all of them one element further.
    if (c.tokens == 0) return;
    const std::vector<T> all = layer.y.data;
    const auto differ = [&](int64_t first) {
        int count = 0;
        for (int64_t i = 0; i < (int64_t)(all.size() - first); ++i)
            count += number(layer.y.data[i]) != number(all[first + i]);
        return count;
    };
    std::vector<T> moved(layer.x.data.size() + 1);
    for (int64_t i = 0; i < c.tokens * 2 * c.d; ++i) moved[i + 1] = layer.x.begin()[i];
    layer.forward.x.data = moved.data() + 1;
    run(layer);
    CHECK(differ(0) == 0);
    const int64_t last = c.tokens - 1;
    layer.forward.x.data = layer.x.begin() + last * 2 * c.d;
    layer.forward.tokens = 1;
    if (c.top_k) {
        layer.forward.routing.ids += last * c.top_k;
        layer.forward.routing.weights.data += last * c.top_k;
    }
    run(layer);
    CHECK(differ(last * c.d) == 0);
}

template <class T, class W> void test_layers() {
    for (const bool gated : {false, true}) {
        for (const int64_t tokens : {0, 1, 2, 3, 5, 8, 16})
            test_layer<T, W>({tokens, 40, 33, 1, 0, gated, false, false});
        test_layer<T, W>({2, 1, 1, 1, 0, gated, false, false});
        test_layer<T, W>({9, 257, 7, 1, 0, gated, false, false, 1});
        test_layer<T, W>({1, 2080, 24, 1, 0, gated, false, false}); // several rounds of loads
        test_layer<T, W>({16, 1032, 24, 1, 0, gated, false, false});
        for (const bool on_input : {false, true}) {
            test_layer<T, W>({7, 40, 24, 7, 3, gated, on_input, false});
            test_layer<T, W>({16, 33, 9, 2, 2, gated, on_input, false});
            test_layer<T, W>({3, 8, 17, 30, 20, gated, on_input, false}); // more slots than warps
            test_layer<T, W>({1, 1100, 8, 3, 1, gated, on_input, false});
            test_layer<T, W>({0, 8, 8, 4, 2, gated, on_input, false});
        }
    }
}

} // namespace

int main() {
    test_layers<float, float>();
    test_layers<float, Bf16>();
    test_layers<float, F16>();
    test_layers<Bf16, Bf16>();
    test_layers<F16, F16>();
    return finish();
}
