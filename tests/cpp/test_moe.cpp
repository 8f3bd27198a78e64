// Tests mixtures of experts through the C ABI, for the address and undefined-behaviour sanitizers.
//
//     y[t] = sum over slots s of w[t, s] FFN_e(x[t]),  e = ids[t, s]
//
// Arrays are heap blocks of exactly the size that they need. All levels, numbers of threads,
// chunks, raw and packed experts, saved and recomputed preactivations have to give the bits of the
// first result. The first result is compared with the dense layer (which test_engine.cpp tests),
// one token and slot at a time: bit by bit where a token has one expert of weight 1, else within a
// rounding of each output.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/include/ffncore.h"
#include "half.h"

namespace {

std::string where; // the current case, for the message of a failure

#define CHECK(condition) ((condition) ? void() : failed(__LINE__, #condition))
void failed(int line, const char *condition) {
    std::printf("test_moe.cpp:%d: failed: %s\n    %s\n    last error: %s\n", line, condition,
                where.c_str(), ffncore_last_error());
    std::exit(1);
}

std::mt19937_64 generator;
double random_unit() { return std::uniform_real_distribution<double>(-1, 1)(generator); }

template <class T> std::vector<T> numbers(int64_t n, double scale = 1) {
    std::vector<T> out(n);
    for (T &v : out) v = T(scale * random_unit());
    return out;
}

template <class T> ffncore_matrix matrix(std::vector<T> &v, int64_t rows, int64_t cols) {
    return {v.empty() ? nullptr : v.data(), rows, cols, cols, 1, kType<T>};
}
template <class T> ffncore_vector vector(std::vector<T> &v, int64_t length) {
    return {v.empty() ? nullptr : v.data(), length, 1, kType<T>};
}

struct Sizes {
    int64_t tokens, top_k, experts, d, f;
    bool gated, on_input;
};

// Arrays [E, ...] of the experts, or of their gradients.
template <class T> struct Experts {
    std::vector<T> gate, up, down, b_gate, b_up, b_down;
    explicit Experts(const Sizes &s)
        : gate(numbers<T>(s.gated ? s.experts * s.f * s.d : 0, 0.5)),
          up(numbers<T>(s.experts * s.f * s.d, 0.5)), down(numbers<T>(s.experts * s.d * s.f, 0.5)),
          b_gate(numbers<T>(s.gated ? s.experts * s.f : 0)), b_up(numbers<T>(s.experts * s.f)),
          b_down(numbers<T>(s.experts * s.d)) {}
    ffncore_experts view(const Sizes &s) {
        const int64_t d = s.d, f = s.f;
        ffncore_experts e{};
        e.size = sizeof e;
        e.first = {sizeof e.first,    matrix(gate, f, d), matrix(up, f, d),  matrix(down, d, f),
                   vector(b_gate, f), vector(b_up, f),    vector(b_down, d), nullptr};
        if (!s.gated) e.first.gate = {};
        e.count = s.experts;
        e.gate_stride = e.up_stride = e.down_stride = f * d;
        e.b_gate_stride = e.b_up_stride = f;
        e.b_down_stride = d;
        return e;
    }
    std::vector<std::vector<T> *> all() { return {&gate, &up, &down, &b_gate, &b_up, &b_down}; }
};

ffncore_weights expert(const ffncore_experts &all, int64_t e, size_t element) {
    ffncore_weights w = all.first;
    auto move = [&](void *&data, int64_t stride) {
        if (data) data = (char *)data + e * stride * int64_t(element);
    };
    move(w.gate.data, all.gate_stride);
    move(w.up.data, all.up_stride);
    move(w.down.data, all.down_stride);
    move(w.b_gate.data, all.b_gate_stride);
    move(w.b_up.data, all.b_up_stride);
    move(w.b_down.data, all.b_down_stride);
    return w;
}

template <class T> struct Case {
    Sizes s;
    std::vector<T> x, grad_y;
    std::vector<float> factors;
    std::vector<int32_t> ids;
    Experts<T> experts;
    ffncore_activation act;
    std::vector<char> packed;
    int64_t packed_stride = 0;

    explicit Case(const Sizes &s, bool ones)
        : s(s), x(numbers<T>(s.tokens * s.d)), grad_y(numbers<T>(s.tokens * s.d)),
          factors(s.tokens * s.top_k, 1.0f), ids(s.tokens * s.top_k), experts(s) {
        ffncore_activation_init(&act, s.gated ? FFNCORE_SILU : FFNCORE_XIELU);
        for (int32_t &id : ids) id = int32_t(generator() % uint64_t(s.experts + !ones)) - !ones;
        if (!ones) factors = numbers<float>(s.tokens * s.top_k);
        const ffncore_experts view = experts.view(s);
        packed_stride = ffncore_packed_bytes(kType<T>, &view.first);
        packed_stride += 64 - packed_stride % 64;
        packed.resize(s.experts * packed_stride);
        for (int64_t e = 0; e < s.experts; ++e) {
            const ffncore_weights w = expert(view, e, sizeof(T));
            CHECK(ffncore_pack(kType<T>, &w, packed.data() + e * packed_stride) == FFNCORE_OK);
        }
    }
    ffncore_experts given(bool by_pack) {
        ffncore_experts e = experts.view(s);
        if (!by_pack) return e;
        for (ffncore_matrix *m : {&e.first.gate, &e.first.up, &e.first.down}) m->data = nullptr;
        e.first.packed = packed.data();
        e.packed_stride = packed_stride;
        return e;
    }

    // y; the gradients of x and of the routing weights; then, for raw experts, all others.
    std::vector<std::vector<char>> run(bool by_pack, bool keep) {
        std::vector<T> y(x.size()), grad_x(x.size());
        std::vector<float> grad_factors(factors.size());
        Experts<T> grads(s);
        const int64_t bytes = ffncore_moe_saved_bytes(kType<T>, ids.data(), s.tokens, s.top_k,
                                                      s.experts, s.f, s.gated);
        CHECK(bytes >= 0);
        std::vector<char> saved(bytes + 1);
        ffncore_moe_forward_args f{};
        f.size = sizeof f;
        f.x = matrix(x, s.tokens, s.d);
        f.y = matrix(y, s.tokens, s.d);
        f.experts = given(by_pack);
        f.activation = act;
        f.expert_ids = ids.data();
        f.routing_weights = matrix(factors, s.tokens, s.top_k);
        f.weight_on_input = s.on_input;
        f.saved = keep ? saved.data() : nullptr;
        CHECK(ffncore_moe_forward(&f) == FFNCORE_OK);
        double alpha_p = 0, alpha_n = 0;
        ffncore_moe_backward_args b{};
        b.size = sizeof b;
        b.x = f.x;
        b.grad_y = matrix(grad_y, s.tokens, s.d);
        b.experts = f.experts;
        b.activation = act;
        b.expert_ids = f.expert_ids;
        b.routing_weights = f.routing_weights;
        b.weight_on_input = s.on_input;
        b.saved = f.saved;
        b.grad_x = matrix(grad_x, s.tokens, s.d);
        b.grad_routing_weights = matrix(grad_factors, s.tokens, s.top_k);
        b.grad_experts = grads.view(s);
        if (by_pack) b.grad_experts.first = {sizeof(ffncore_weights), {}, {}, {}, {}, {}, {}, {}};
        b.grad_alpha_p = by_pack ? nullptr : &alpha_p;
        b.grad_alpha_n = by_pack ? nullptr : &alpha_n;
        CHECK(ffncore_moe_backward(&b) == FFNCORE_OK);
        std::vector<std::vector<char>> out;
        auto add = [&](const auto &v) {
            const char *data = (const char *)v.data();
            out.emplace_back(data, data + v.size() * sizeof v[0]);
        };
        add(y), add(grad_x), add(grad_factors);
        if (by_pack) return out;
        for (std::vector<T> *v : grads.all()) add(*v);
        add(std::vector<double>{alpha_p, alpha_n});
        return out;
    }

    // Computes one token through one expert, by the dense layer.
    std::vector<T> dense(int64_t token, int64_t e) {
        std::vector<T> row(x.begin() + token * s.d, x.begin() + (token + 1) * s.d), y(s.d);
        ffncore_forward_args a{};
        a.size = sizeof a;
        a.x = matrix(row, 1, s.d);
        a.y = matrix(y, 1, s.d);
        a.weights = expert(experts.view(s), e, sizeof(T));
        a.activation = act;
        CHECK(ffncore_ffn_forward(&a) == FFNCORE_OK);
        return y;
    }
};

template <class T> void compare_with_dense(Case<T> &c, const std::vector<char> &bytes, bool ones) {
    const Sizes &s = c.s;
    const T *const y = (const T *)bytes.data();
    for (int64_t t = 0; t < s.tokens && !s.on_input; ++t) {
        std::vector<double> sum(s.d), size(s.d);
        for (int64_t slot = 0; slot < s.top_k; ++slot) {
            const int64_t place = t * s.top_k + slot;
            if (c.ids[place] < 0) continue;
            const std::vector<T> row = c.dense(t, c.ids[place]);
            if (ones && s.top_k == 1) CHECK(!std::memcmp(row.data(), y + t * s.d, s.d * sizeof(T)));
            for (int64_t i = 0; i < s.d; ++i) {
                sum[i] += c.factors[place] * double(row[i]);
                size[i] += std::abs(c.factors[place] * double(row[i]));
            }
        }
        for (int64_t i = 0; i < s.d; ++i)
            CHECK(std::abs(double(y[t * s.d + i]) - sum[i]) <= 4 * kEpsilon<T> * (size[i] + 1e-3));
    }
}

template <class T> void test(const Sizes &sizes, bool ones) {
    Case<T> c(sizes, ones);
    std::vector<std::vector<char>> first;
    for (int32_t level = 0; level < ffncore_isa_count(); ++level)
        for (int threads : {1, 3})
            for (int chunk : {0, 1})
                for (bool keep : {true, false}) {
                    where = std::string(ffncore_isa_name(level)) + ", threads " +
                            std::to_string(threads) + ", chunk " + std::to_string(chunk) +
                            (keep ? ", kept, " : ", recomputed, ") + std::to_string(sizes.tokens) +
                            " tokens, dtype " + std::to_string(kType<T>);
                    CHECK(ffncore_isa_use(ffncore_isa_name(level)) == FFNCORE_OK);
                    CHECK(ffncore_set_num_threads(threads) == FFNCORE_OK);
                    ffncore_debug_plan(chunk, 0, 0, -1, 1);
                    const auto raw = c.run(false, keep);
                    if (first.empty()) {
                        first = raw;
                        compare_with_dense(c, first[0], ones);
                    }
                    CHECK(raw == first);
                    where += ", packed";
                    const auto packed = c.run(true, keep);
                    for (size_t i = 0; i < packed.size(); ++i) CHECK(packed[i] == first[i]);
                }
    ffncore_debug_plan(0, 0, 0, -1, 0);
}

} // namespace

int main() {
    for (bool gated : {false, true})
        for (bool on_input : {false, true}) {
            const Sizes some{37, 3, 5, 19, 35, gated, on_input};
            test<float>(some, false);
            test<Half<7>>(some, false);
            test<Half<10>>(some, false);
            const Sizes alone{70, 1, 2, 33, 70, gated, on_input};
            test<float>(alone, true);
            test<Half<7>>(alone, true);
        }
    test<float>({530, 2, 1, 5, 9, true, false}, false); // an expert with several blocks of rows
    std::printf("test_moe: passed\n");
}
