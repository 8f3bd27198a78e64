// Tests the forward pass of a layer, dense and a mixture, against loops in double.
#include "layer_case.h"

namespace {

template <class T, class W> void test_layer(const Case &c) {
    Layer<T, W> layer(c);
    std::vector<T> saved(2 * layer.slots * c.f);
    layer.forward.saved = saved.data();
    layer.run([](const auto &forward, const auto &w, Arena &arena) {
        layer_forward(forward, w, arena, nullptr);
    });
    layer.compare(true);
}

template <class T, class W> void test_layers() {
    for (const bool gated : {false, true})
        for (const bool turned : {false, true}) {
            test_layer<T, W>({5, 40, 72, 1, 0, gated, false, turned});
            test_layer<T, W>({130, 16, 65, 1, 0, gated, false, turned});
            test_layer<T, W>({0, 8, 8, 1, 0, gated, false, turned});
            for (const bool on_input : {false, true}) {
                test_layer<T, W>({30, 40, 24, 7, 3, gated, on_input, turned});
                test_layer<T, W>({200, 8, 9, 2, 2, gated, on_input, turned});
                test_layer<T, W>({0, 8, 8, 4, 2, gated, on_input, turned});
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
