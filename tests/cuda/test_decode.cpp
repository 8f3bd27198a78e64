// Tests the forward pass for few tokens against loops in double, and its promise that the bits of a
// token depend neither on the other tokens nor on the alignment.
#include <cstring>
#include <optional>
#include <sys/mman.h>

#include "../../csrc/cuda/decode.cuh"
#include "support.h"

namespace {

struct Case {
    int64_t tokens, d, f;
    bool gated, bias;
    int64_t pad = 0, offset = 0;    // between and before all lines, in elements
    int64_t experts = 1, top_k = 0; // top_k 0: dense
    bool on_input = false;
    int64_t col = 1; // stride of x and y within a row
};

// A copy of lines that ends where a protected page begins.
template <class T> struct AtAnEnd {
    static constexpr int64_t kPage = 4096;
    int64_t size, pages;
    char *memory;
    AtAnEnd(const T *from, int64_t lines, int64_t length, int64_t stride)
        : size(((lines - 1) * stride + length) * sizeof(T)), pages(ceil_div(size, kPage) * kPage),
          memory((char *)mmap(nullptr, pages + kPage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
        mprotect(memory + pages, kPage, PROT_NONE);
        std::memcpy(memory + pages - size, from, size);
    }
    AtAnEnd(const AtAnEnd &) = delete;
    ~AtAnEnd() { munmap(memory, pages + kPage); }
    const T *begin() const { return (const T *)(memory + pages - size); }
};

// Ids of each kind: experts that repeat, and ids that are no expert; token 1 has no expert.
std::vector<int32_t> make_ids(const Case &c) {
    const int32_t none[] = {-1, -7, (int32_t)c.experts, INT32_MAX, INT32_MIN};
    std::vector<int32_t> ids(c.tokens * c.top_k);
    for (int64_t slot = 0; slot < (int64_t)ids.size(); ++slot)
        ids[slot] = slot / c.top_k == 1 || generator() % 4 == 0
                        ? none[generator() % 5]
                        : (int32_t)(generator() % c.experts);
    return ids;
}

template <class A, class W> struct Layer {
    Case c;
    Array<A> x;
    Array<W> gate, up, down;
    Array<W> b_gate, b_down;
    Array<float> b_up, weights;
    std::vector<int32_t> ids;

    explicit Layer(const Case &c)
        : c(c), x(c.tokens, c.d, c.d * c.col + c.pad, c.offset),
          gate(c.experts * c.f, c.d, c.d + c.pad, c.offset),
          up(c.experts * c.f, c.d, c.d + c.pad, c.offset),
          down(c.experts * c.d, c.f, c.f + c.pad, c.offset), b_gate(c.experts, c.f, 2 * c.f, 0),
          b_down(c.experts, c.d, c.d, 0), b_up(c.experts, c.f, c.f, 0),
          weights(c.tokens, c.top_k, c.top_k + 2, 0), ids(make_ids(c)) {
        // The weight of a slot without an expert is NaN, which shows if it is used.
        for (int64_t slot = 0; slot < (int64_t)ids.size(); ++slot)
            if (!has_expert(slot))
                ((float *)weights.begin())[slot / c.top_k * weights.stride + slot % c.top_k] = NAN;
    }

    int64_t slots() const { return std::max<int64_t>(c.top_k, 1); } // of a token
    bool has_expert(int64_t slot) const {
        return !c.top_k || (ids[slot] >= 0 && ids[slot] < c.experts);
    }

    struct Outputs {
        std::vector<A> h, y; // h [tokens * slots, f], y [tokens, d]
    };

    // Computes tokens [first, first + count).
    Outputs run(int64_t first, int64_t count, bool may_be_aligned = true,
                bool at_an_end = false) const {
        std::optional<AtAnEnd<A>> end_of_x;
        std::optional<AtAnEnd<W>> ends[3];
        const auto matrix = [&](int i, const Array<W> &array, int64_t lines, int64_t length) {
            const W *data = array.begin();
            if (at_an_end)
                data = ends[i].emplace(data, c.experts * lines, length, array.stride).begin();
            Operand<W> all = operand_of(data, array.stride, lines * array.stride);
            all.aligned = all.aligned && may_be_aligned;
            return all;
        };
        LayerWeights<W> w{};
        w.experts = c.experts, w.d = c.d, w.f = c.f, w.gated = c.gated;
        w.gate = matrix(0, gate, c.f, c.d), w.up = matrix(1, up, c.f, c.d);
        w.down = matrix(2, down, c.d, c.f);
        if (c.bias) {
            if (c.gated) w.b_gate = {b_gate.begin(), 2, 2 * c.f, kTypeOf<W>};
            w.b_up = {b_up.begin(), 1, c.f, kFloat32};
            w.b_down = {b_down.begin(), 1, c.d, kTypeOf<W>};
        }
        const int64_t y_row = c.d * c.col + 3;
        Result<A> y(count + 1, y_row);
        LayerForward<A> layer{};
        layer.tokens = count;
        layer.x = {x.begin() + first * x.stride, x.stride, c.col, 0};
        if (at_an_end)
            layer.x.data = end_of_x.emplace(layer.x.data, count, c.d * c.col, x.stride).begin();
        layer.y = {y.data.data(), y_row, c.col, 0};
        layer.act.kind = kSilu;
        layer.act.alpha = layer.act.gate_multiplier = 1;
        if (c.top_k) {
            layer.routing.ids = ids.data() + first * c.top_k;
            layer.routing.top_k = c.top_k;
            layer.routing.weights = {weights.begin() + first * weights.stride, weights.stride, 1,
                                     0};
            layer.routing.on_input = c.on_input;
        }

        Arena counting;
        decode_forward(layer, w, counting, nullptr);
        CHECK(std::isnan(y.at(0, 0)));
        constexpr int64_t guard = 512;
        Workspace memory(counting.used() + guard);
        Arena arena(memory.begin());
        decode_forward(layer, w, arena, nullptr);
        CHECK(arena.used() == counting.used());

        const int64_t size = count * slots() * c.f;
        const int64_t copy =
            c.col == 1 || c.d == 1 ? 0 : ceil_div<int64_t>(count * c.d * sizeof(A), 256) * 256;
        CHECK(arena.used() == copy + ceil_div<int64_t>(size * sizeof(A), 256) * 256);
        const A *h = (const A *)((char *)memory.begin() + copy);
        for (const char *p = (const char *)(h + size);
             p < (char *)memory.begin() + arena.used() + guard; ++p)
            CHECK(*p == (char)0xff);

        Outputs out{{h, h + size}, {}};
        for (int64_t r = 0; r <= count; ++r)
            for (int64_t i = 0; i < y_row; ++i)
                if (r < count && i % c.col == 0 && i / c.col < c.d)
                    out.y.push_back(y.data[r * y_row + i]);
                else
                    CHECK(std::isnan(y.at(r, i)));
        return out;
    }

    // Compares h with the formula for x, and y with the formula for the h that was computed, so
    // that no rounding counts twice.
    void check() const {
        const Outputs out = run(0, c.tokens);
        int wrong = 0;
        for (int64_t t = 0; t < c.tokens; ++t) {
            // 0.03 is for float16: 1e-6 of it is half of the smallest number.
            std::vector<double> sum(c.d), size(c.d, 0.03);
            for (int64_t s = 0; s < slots(); ++s) {
                const int64_t slot = t * slots() + s, e = c.top_k ? ids[slot] : 0;
                const A *h = out.h.data() + slot * c.f;
                if (!has_expert(slot)) {
                    for (int64_t j = 0; j < c.f; ++j) wrong += !std::isnan(number(h[j]));
                    continue;
                }
                const double weight = c.top_k ? weights.at(t, s) : 1;
                for (int64_t j = 0; j < c.f; ++j) {
                    double g = c.bias && c.gated ? b_gate.at(e, 2 * j) : 0;
                    double u = c.bias ? b_up.at(e, j) : 0, terms = 1 + std::fabs(g) + std::fabs(u);
                    for (int64_t k = 0; k < c.d; ++k) {
                        const float in = (float)x.at(t, k * c.col);
                        const double v = c.on_input ? rounded<A>(in * (float)weight) : in;
                        const double to_g = c.gated ? v * gate.at(e * c.f + j, k) : 0;
                        const double to_u = v * up.at(e * c.f + j, k);
                        g += to_g, u += to_u, terms += std::fabs(to_g) + std::fabs(to_u);
                    }
                    const double v = c.gated ? g : u, a = v / (1 + std::exp(-v));
                    wrong += !close<A>(number(h[j]), a * (c.gated ? u : 1),
                                       terms * (1 + std::fabs(g)) * (1 + std::fabs(u)));
                }
                const double factor = c.on_input ? 1 : weight;
                for (int64_t i = 0; i < c.d; ++i) {
                    const double b = c.bias ? b_down.at(e, i) : 0;
                    sum[i] += factor * b, size[i] += std::fabs(factor * b);
                    for (int64_t j = 0; j < c.f; ++j) {
                        const double term = factor * number(h[j]) * down.at(e * c.d + i, j);
                        sum[i] += term, size[i] += std::fabs(term);
                    }
                }
            }
            for (int64_t i = 0; i < c.d; ++i)
                wrong += !close<A>(number(out.y[t * c.d + i]), sum[i], size[i]);
        }
        if (wrong)
            std::printf("T %d d %d f %d gated %d pad %d k %d: %d\n", (int)c.tokens, (int)c.d,
                        (int)c.f, c.gated, (int)c.pad, (int)c.top_k, wrong);
        CHECK(wrong == 0);
    }
};

template <class T>
bool same_bits(const std::vector<T> &some, const std::vector<T> &all, int64_t at) {
    return std::memcmp(some.data(), all.data() + at, some.size() * sizeof(T)) == 0;
}

// A token alone, with others, and with one that is NaN; aligned or not.
template <class A, class W> void test_bits(const Case &c) {
    Layer<A, W> layer(c);
    const auto all = layer.run(0, c.tokens);
    const int64_t of_h = layer.slots() * c.f;
    const auto agrees = [&](int64_t first, int64_t count, bool aligned) {
        const auto some = layer.run(first, count, aligned);
        CHECK(same_bits(some.h, all.h, first * of_h) && same_bits(some.y, all.y, first * c.d));
    };
    for (int64_t count : {2, 3, 5, 8, 16}) agrees(0, count, true);
    for (int64_t t = 0; t < c.tokens; t += 3) agrees(t, 1, t % 2);
    agrees(3, 6, true);
    agrees(0, c.tokens, false);

    for (int64_t k = 0; k < c.d; ++k) put((A *)layer.x.begin() + 4 * layer.x.stride + k, NAN);
    const auto beside = layer.run(0, c.tokens);
    for (int64_t t = 0; t < c.tokens; ++t) {
        const std::vector<A> y(beside.y.begin() + t * c.d, beside.y.begin() + (t + 1) * c.d);
        if (t != 4) CHECK(same_bits(y, all.y, t * c.d));
        if (t == 4 && !c.top_k) CHECK(std::isnan(number(y[0])));
    }
}

// Nothing is read beyond the last token, column or number.
template <class A, class W> void test_ends(const Case &c) {
    const Layer<A, W> layer(c);
    const auto all = layer.run(0, c.tokens), at_an_end = layer.run(0, c.tokens, true, true);
    CHECK(same_bits(at_an_end.h, all.h, 0) && same_bits(at_an_end.y, all.y, 0));
}

template <class A, class W> void test_types() {
    // Shapes with tails, with fewer columns than a warp has, and with several batches of chunks.
    const int64_t shapes[][2] = {{1, 1},   {7, 33},   {33, 7},    {33, 257}, {257, 33},
                                 {40, 72}, {1100, 9}, {10, 1096}, {8, 1},    {1024, 4}};
    bool gated = false;
    for (int64_t tokens : {0, 1, 2, 3, 5, 8, 16}) {
        for (const auto &[d, f] : shapes) {
            Layer<A, W>({tokens, d, f, gated, d % 2 == 0}).check();
            gated = !gated;
        }
        gated = !gated; // the next number of tokens takes the other kind
    }
    for (int64_t tokens : {1, 2, 4, 7, 12}) {
        Layer<A, W>({tokens, 61, 35, true, true, 3}).check(); // aligned lines with tails
        Layer<A, W>({tokens, 60, 36, tokens % 2 == 0, true, 4}).check();
        Layer<A, W>({tokens, 40, 72, true, true, 8, 1}).check();
        Layer<A, W>({tokens, 40, 72, false, true, 5, 3}).check();
        Layer<A, W>({tokens, 40, 24, true, true, 0, 0, 1, 0, false, 2}).check();
    }

    for (const bool on_input : {false, true})
        for (const bool with_gate : {false, true}) {
            for (int64_t tokens : {0, 1, 2, 3, 8, 16})
                Layer<A, W>({tokens, 40, 24, with_gate, with_gate, 0, 0, 5, 3, on_input}).check();
            Layer<A, W>({5, 33, 7, with_gate, true, 0, 0, 3, 2, on_input}).check();
            Layer<A, W>({4, 7, 33, with_gate, false, 3, 2, 9, 8, on_input}).check();
            Layer<A, W>({3, 61, 35, with_gate, true, 3, 0, 4, 2, on_input, 2}).check();
            Layer<A, W>({2, 1100, 5, with_gate, true, 0, 0, 2, 1, on_input}).check();
            Layer<A, W>({1, 6, 1100, with_gate, true, 0, 0, 2, 2, on_input}).check();
            Layer<A, W>({3, 9, 16, with_gate, true, 0, 0, 24, 21, on_input}).check(); // two rounds
        }

    for (const bool with_gate : {false, true}) {
        for (const auto &[d, f] : {std::pair<int64_t, int64_t>{8, 5}, {5, 8}, {264, 3}, {3, 264}}) {
            for (int64_t tokens : {1, 3, 9}) test_ends<A, W>({tokens, d, f, with_gate, true});
            test_ends<A, W>({3, d, f, with_gate, true, 0, 0, 2, 2, with_gate});
        }
        test_bits<A, W>({16, 40, 72, with_gate, true});
        test_bits<A, W>({16, 609, 13, with_gate, false, 7});
        test_bits<A, W>({16, 40, 24, with_gate, true, 0, 0, 5, 3, with_gate});
        test_bits<A, W>({16, 13, 45, with_gate, false, 3, 0, 2, 2, !with_gate});
    }
}

} // namespace

int main() {
    test_types<float, float>();
    test_types<Bf16, Bf16>();
    test_types<F16, F16>();
    test_types<float, Bf16>();
    test_types<float, F16>();
    return finish();
}
