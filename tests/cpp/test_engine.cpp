// Tests every way through the engine by its C ABI, for the address and undefined-behaviour
// sanitizers.
//
//     y = h W_down^T + b_down,   h = act(x W_gate^T + b_gate) * (x W_up^T + b_up)
//
// Arrays are heap blocks of exactly the size that their strides need. Gaps hold NaN (inputs) or a
// mark that must not be changed (outputs). The workspace is NaN before each call, and the memory
// behind the bytes that the call may use is poisoned. The first result is compared with plain sums
// in double. All others (level, plan, threads, strides, packed, saved or recomputed, any subset of
// the gradients) have to equal the first bit by bit. accuracy.cpp tests the activations themselves;
// the reference here takes them from the elementwise call in float64, at the scalar level.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <sanitizer/asan_interface.h> // its macros are empty without the sanitizer

#include "../../csrc/core/workspace.h"
#include "../../csrc/include/ffncore.h"
#include "half.h"

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kMark = 777; // no result is 777

std::string where;         // the current case, for the message of a failure
double worst = 0;          // the largest error so far, as a share of what is allowed
char *forbidden = nullptr; // the end of the workspace
size_t forbidden_bytes = 0;

#define CHECK(condition) ((condition) ? void() : failed(__LINE__, #condition))
void failed(int line, const char *condition) {
    std::printf("test_engine.cpp:%d: failed: %s\n    %s\n    last error: %s\n", line, condition,
                where.c_str(), ffncore_last_error());
    std::exit(1);
}

constexpr int kLayouts = 8, kRepeated = 8; // in layout kRepeated all rows are the same memory
template <class T> class Array {
  public:
    Array() = default;
    Array(int64_t rows, int64_t cols, int layout, double fill, double gap = kMark)
        : rows_(rows), cols_(cols) {
        const int64_t strides[][2] = {{cols, 1},         {1, rows},     {cols + 3, 1},
                                      {3 * cols + 1, 3}, {-cols, -1},   {1, -rows},
                                      {-cols - 2, 1},    {1, rows + 5}, {0, 1}};
        row_ = strides[layout][0], col_ = strides[layout][1];
        if (rows * cols == 0) return; // absent
        at_ = std::max<int64_t>(0, (1 - rows) * row_) + std::max<int64_t>(0, (1 - cols) * col_);
        memory_.assign((rows - 1) * std::abs(row_) + (cols - 1) * std::abs(col_) + 1, T(gap));
        each([&](T &v, auto...) { v = T(fill); });
    }
    template <class Body> void each(const Body &body) {
        for (int64_t i = 0; i < rows_; ++i)
            for (int64_t j = 0; j < cols_; ++j) body((*this)(i, j), i, j);
    }
    template <class Term> void sum(int64_t n, const Term &term) { // adds to the elements
        each([&](T &v, auto i, auto j) {
            for (int64_t k = 0; k < n; ++k) v += term(i, j, k);
        });
    }
    T &operator()(int64_t i, int64_t j = 0) { return memory_[at_ + i * row_ + j * col_]; }
    explicit operator bool() const { return !memory_.empty(); }
    bool gaps_kept() const {
        const int64_t marks = std::count(memory_.begin(), memory_.end(), T(kMark));
        return marks == int64_t(memory_.size()) - rows_ * cols_;
    }
    Array input(int layout) { // a copy
        Array to(rows_, cols_, layout, 0, kNan);
        to.each([&](T &v, auto i, auto j) { v = (*this)(i, j); });
        return to;
    }
    T *data() { return *this ? &(*this)(0) : nullptr; }
    operator ffncore_matrix() { return {data(), rows_, cols_, row_, col_, kType<T>}; }
    operator ffncore_vector() { return {data(), rows_, row_, kType<T>}; }

  private:
    int64_t rows_ = 0, cols_ = 0, row_ = 0, col_ = 0, at_ = 0;
    std::vector<T> memory_;
};

// Gradient i has the shape of input i; y and h have that of their gradients.
enum { X, GATE, UP, DOWN, B_GATE, B_UP, B_DOWN, ALPHA_P, ALPHA_N, Y, PRE_GATE, PRE_UP, H, ARRAYS };
constexpr int kAll = (1 << Y) - 1; // all gradients, one bit each

struct Sizes {
    int64_t t, d, f;
    bool gated;
    template <class T> Array<T> array(int i, int layout, double fill) const {
        const int64_t g = gated ? f : 0, one = 1;
        const int64_t s[][2] = {{t, d},     {g, d},     {f, d}, {d, f}, {g, 1}, {f, 1}, {d, 1},
                                {one, one}, {one, one}, {t, d}, {t, g}, {t, f}, {t, f}};
        return Array<T>(s[i][0], s[i][1], layout, fill);
    }
};

template <class T> ffncore_weights weights(Array<T> *a, const char *packed = nullptr) {
    ffncore_weights w{sizeof w, a[GATE], a[UP], a[DOWN], a[B_GATE], a[B_UP], a[B_DOWN], packed};
    if (packed) w.gate.data = w.up.data = w.down.data = nullptr;
    return w;
}
template <class T>
ffncore_backward_args backward_args(Array<T> *in, Array<T> *out, Array<double> *alphas,
                                    const ffncore_activation &act) {
    ffncore_backward_args a{};
    a.size = sizeof a, a.x = in[X], a.grad_y = in[Y], a.weights = weights(in);
    a.activation = act, a.grad_x = out[X], a.grad_gate = out[GATE], a.grad_up = out[UP];
    a.grad_down = out[DOWN], a.grad_b_gate = out[B_GATE], a.grad_b_up = out[B_UP];
    a.grad_b_down = out[B_DOWN], a.grad_alpha_p = alphas[0].data();
    return a.grad_alpha_n = alphas[1].data(), a;
}
template <class T>
ffncore_activation_args elementwise_args(Array<T> *in, Array<T> *out, Array<double> *alphas,
                                         const ffncore_activation &act) {
    ffncore_activation_args a{};
    a.size = sizeof a, a.activation = act, a.gate = in[PRE_GATE];
    a.up = in[PRE_UP], a.h = out[H], a.grad_h = in[H], a.grad_gate = out[PRE_GATE];
    a.grad_up = out[PRE_UP], a.grad_alpha_p = alphas[0].data();
    return a.grad_alpha_n = alphas[1].data(), a;
}

// Four variants, whose values are exact in float. A kind ignores options that it does not have.
ffncore_activation make_activation(int kind, int variant, bool gated) {
    ffncore_activation a;
    ffncore_activation_init(&a, kind);
    if (variant == 0) return a;
    a.gate_multiplier = a.alpha = 0.5 + 0.25 * variant, a.gate_softcap = variant == 2 ? 2 : 0;
    a.alpha_p = 0.5, a.alpha_n = -0.25, a.beta = a.negative_slope = 0.25, a.eps = -0.125;
    if (gated) a.clamp = variant - 1, a.limit = 0.875, a.up_offset = 0.5 * (variant - 2);
    if (gated && variant > 1) a.up_softcap = 1.5;
    return a;
}

double random_unit() { // -1 to 1
    static std::mt19937_64 generator;
    return double(generator() >> 11) * 0x1p-52 - 1;
}

// The next call will use this buffer: it is NaN, and poisoned behind the bytes that it may use.
template <class Cost, class... Args> void bound_workspace(const Cost &cost_of, Args... args) {
    ffncore_cost cost{};
    cost.size = sizeof cost;
    CHECK(cost_of(args..., &cost) == FFNCORE_OK);
    ASAN_UNPOISON_MEMORY_REGION(forbidden, forbidden_bytes);
    ffncore_clear_workspace();
    const ffncore::Lease lease(size_t(cost.extra_bytes));
    std::memset(lease.data(), 0xFF, size_t(cost.extra_bytes));
    forbidden = static_cast<char *>(lease.data()) + cost.extra_bytes;
    forbidden_bytes = -cost.extra_bytes & 0xFFFF; // a lease has a multiple of 64 KiB
    ASAN_POISON_MEMORY_REGION(forbidden, forbidden_bytes);
}

const struct {
    int64_t token_chunk, ff_chunk, token_slice;
    int32_t rows, threads;
} kPlans[] = {{0, 0, 0, -1, 1}, {1, 1, 1, -1, 1}, {0, 0, 0, 1, 1},
              {0, 0, 0, 0, 2},  {1, 1, 1, 0, 1},  {1, 1, 0, 1, 2}};

template <class T> class Layer {
  public:
    Layer(const Sizes &s, int variant, const ffncore_activation &act)
        : s_(s), repeated_(variant == 3), act_(act) {
        for (int i = 0; i < ARRAYS; ++i) {
            exact_[i] = s.array<double>(i, 0, 0);
            if (i >= B_GATE && i <= B_DOWN && (variant >> (i - B_GATE) & 1)) continue; // no bias
            const double depth = i == DOWN ? s.f : i == GATE || i == UP ? s.d : 1;
            given_[i] = s.array<T>(i, 0, 0);
            given_[i].each([&](T &v, auto r, auto c) {
                v = i == X && r && repeated_ ? given_[i](0, c)
                                             : T(2 / std::sqrt(depth) * random_unit());
            });
        }
        for (const int64_t n : {s.t, s.d, s.f, int64_t(act.kind), int64_t(variant)})
            name_ += std::to_string(n) + ", ";
        where = name_ += s.gated ? "gated, " : "plain, ";
        reference();
    }
    void run(int plans, bool all_subsets) {
        static int layers = 0;
        ++layers;
        for (int step = 0; step < plans * ffncore_isa_count(); ++step) {
            // Level 0 is scalar and slow, so every second plan is enough for large layers.
            if (step / plans == 0 && step % 2 && s_.t * s_.d * s_.f > 50000) continue;
            const int turn = layers + step + step / plans;
            const auto &plan = kPlans[step % plans];
            const char *isa = ffncore_isa_name(step / plans);
            where = name_ + isa + " plan " + std::to_string(step % plans);
            CHECK(ffncore_isa_use(isa) == FFNCORE_OK);
            ffncore_debug_plan(plan.token_chunk, plan.ff_chunk, plan.token_slice, plan.rows,
                               plan.threads > 1);
            ffncore_set_num_threads(plan.threads);
            for (int i = 0; i < ARRAYS; ++i) {
                const int layout = (turn + turn % 2 * 3 * i) % kLayouts; // one for all, or mixed
                in_[i] = given_[i].input(i == X && repeated_ ? kRepeated : layout);
            }
            pack(turn);
            elementwise(turn);
            std::vector<char> saved(ffncore_saved_bytes(kType<T>, s_.t, s_.f, s_.gated), -1);
            for (const char *packed : {(const char *)nullptr, (const char *)packed_.data()}) {
                forward(packed, nullptr, turn);
                forward(packed, saved.data(), turn + 1);
                if (saved_.empty()) saved_ = saved; // all levels read what the first one wrote
                const char *from = turn % 3 ? saved_.data() : saved.data();
                // In a plain layer, subsets that differ only in gate are the same call.
                const int exist = s_.gated ? kAll : kAll & ~(1 << GATE | 1 << B_GATE);
                for (int i = 0; i < (all_subsets && !packed ? kAll : 2); ++i) {
                    if (i & ~exist) continue;
                    const int most = all_subsets ? exist - i : exist, add = (i + turn) % 2;
                    const int some = (i ^ (turn * 151 + (packed ? 77 : 0))) & exist; // in leaps
                    backward(packed, from, packed ? some : most, add, i + turn);
                    backward(packed, nullptr, packed ? most : some, add, i + turn + 1);
                }
            }
        }
    }

  private:
    void reference() {
        auto &in = given_;
        Array<double> *const out = exact_, pre[ARRAYS];
        for (int i = PRE_GATE; i <= H; ++i) pre[i] = out[i];
        for (int i = 0; i < 2; ++i) {
            auto &w = in[GATE + i], &bias = in[B_GATE + i], &x = in[X];
            pre[PRE_GATE + i].each([&](double &v, auto, auto j) { v = bias ? bias(j) : T(0); });
            pre[PRE_GATE + i].sum(s_.d,
                                  [&](auto t, auto j, auto k) { return 1.0 * x(t, k) * w(j, k); });
        }
        auto &down = in[DOWN], &dy = in[Y];
        pre[H].sum(s_.d, [&](auto t, auto j, auto k) { return 1.0 * dy(t, k) * down(k, j); });
        const auto a = elementwise_args(pre, out, &out[ALPHA_P], act_);
        ffncore_isa_use("scalar");
        CHECK(ffncore_activation_forward(&a) == FFNCORE_OK);
        CHECK(ffncore_activation_backward(&a) == FFNCORE_OK);
        for (int i = PRE_GATE; i <= H; ++i)
            in[i].each([&](T &v, auto t, auto j) { v = T(pre[i](t, j)); });
        for (int i = s_.gated ? 0 : 1; i < 2; ++i) {
            auto &w = in[GATE + i], &x = in[X];
            auto &dp = out[PRE_GATE + i];
            out[X].sum(s_.f, [&](auto t, auto c, auto j) { return dp(t, j) * w(j, c); });
            out[GATE + i].sum(s_.t, [&](auto j, auto c, auto t) { return dp(t, j) * x(t, c); });
            out[B_GATE + i].sum(s_.t, [&](auto j, auto, auto t) { return dp(t, j); });
        }
        out[Y].each([&](double &v, auto, auto o) { v = in[B_DOWN] ? in[B_DOWN](o) : T(0); });
        out[Y].sum(s_.f, [&](auto t, auto o, auto j) { return out[H](t, j) * down(o, j); });
        out[DOWN].sum(s_.t, [&](auto o, auto j, auto t) { return out[H](t, j) * dy(t, o); });
        out[B_DOWN].sum(s_.t, [&](auto o, auto, auto t) { return dy(t, o); });
    }
    // What an output holds before a call: NaN, or with `add` a number that is added to.
    static double before(int64_t r, int64_t c, bool add) {
        return add ? double((r * 7 + c * 3) % 11) - 5 : kNan;
    }
    template <class U = T> Array<U> output(int i, int layout, bool add = false) const {
        Array<U> out = s_.array<U>(i, layout % kLayouts, 0);
        return out.each([&](U &v, auto r, auto c) { v = U(before(r, c, add)); }), out;
    }
    // The first result: 16 eps (sqrt(n) or the largest element) is for sums of n terms of size 1.
    template <class U> void check(Array<U> &got, int i, bool add, Array<U> &first) {
        const bool alpha = i == ALPHA_P || i == ALPHA_N;
        if (!got || (alpha && act_.kind != FFNCORE_XIELU)) return;
        if (!first) {
            double largest = std::sqrt(1.0 + (alpha ? s_.t * s_.f : s_.t + s_.d + s_.f)), error = 0;
            exact_[i].each([&](double v, auto...) { largest = std::max(largest, std::abs(v)); });
            got.each([&](U v, auto r, auto c) {
                const double off = std::abs(v - exact_[i](r, c) - (add ? before(r, c, add) : 0));
                error = off <= error ? error : off; // keeps NaN
            });
            const double share = error / (16 * kEpsilon<T> * largest);
            // Preactivations that are rounded to 16 bits can be on the other side of a kink, so
            // gradients are not judged.
            const bool judged = sizeof(T) > 2 || i == Y || i == H;
            worst = share <= worst || !judged ? worst : share;
            CHECK(share <= 1 || !judged);
            first = got;
        }
        got.each([&](U v, auto r, auto c) { CHECK(!std::memcmp(&v, &first(r, c), sizeof v)); });
        CHECK(got.gaps_kept());
    }
    void pack(int layout) {
        const auto w = weights(in_);
        packed_.assign(ffncore_packed_bytes(kType<T>, &w), -1);
        CHECK(ffncore_pack(kType<T>, &w, packed_.data()) == FFNCORE_OK);
        if (first_packed_.empty()) first_packed_ = packed_;
        CHECK(packed_ == first_packed_);
        Array<T> out[ARRAYS];
        for (int i = GATE; i <= B_DOWN; ++i)
            if (given_[i]) out[i] = output(i, layout + i);
        const ffncore_weights into = weights(out);
        CHECK(ffncore_unpack(&into, packed_.data()) == FFNCORE_OK);
        for (int i = GATE; i <= B_DOWN; ++i) check(out[i], i, false, given_[i]);
    }
    void forward(const char *packed, char *saved, int layout) {
        Array<T> y = output(Y, layout);
        const auto w = weights(in_, packed);
        const ffncore_forward_args a{sizeof a, in_[X], y, w, act_, saved};
        bound_workspace(ffncore_forward_cost, &a, packed != nullptr);
        CHECK(ffncore_ffn_forward(&a) == FFNCORE_OK);
        check(y, Y, false, first_[0][Y]);
    }
    void backward(const char *packed, const char *saved, int needs, bool add, int layout) {
        Array<T> out[ARRAYS];
        Array<double> alphas[2];
        for (int i = 0; i < Y; ++i) {
            if (i < ALPHA_P && needs >> i & 1) out[i] = output(i, layout + i, add);
            if (i >= ALPHA_P && needs >> i & 1) alphas[i - ALPHA_P] = output<double>(i, 0, add);
        }
        auto a = backward_args(in_, out, alphas, act_);
        a.weights = weights(in_, packed), a.saved = saved, a.accumulate = add;
        bound_workspace(ffncore_backward_cost, &a);
        CHECK(ffncore_ffn_backward(&a) == FFNCORE_OK);
        for (int i = 0; i < ALPHA_P; ++i) check(out[i], i, add, first_[add][i]);
        for (int i = 0; i < 2; ++i) check(alphas[i], ALPHA_P + i, add, first_alphas_[add][i]);
    }
    void elementwise(int layout) {
        Array<T> out[ARRAYS];
        Array<double> alphas[2], none[2]; // their bits depend on which rows are contiguous
        for (int i = PRE_GATE; i <= H; ++i) out[i] = output(i, layout);
        for (int i = 0; i < 2; ++i) alphas[i] = output<double>(ALPHA_P + i, 0);
        const auto a = elementwise_args(in_, out, alphas, act_);
        CHECK(ffncore_activation_forward(&a) == FFNCORE_OK);
        CHECK(ffncore_activation_backward(&a) == FFNCORE_OK);
        for (int i = PRE_GATE; i <= H; ++i) check(out[i], i, false, first_[0][i]);
        for (int i = 0; i < 2; ++i) check(alphas[i], ALPHA_P + i, false, none[i]);
    }
    const Sizes s_;
    const bool repeated_; // x is one row, with stride 0
    const ffncore_activation act_;
    std::string name_ = "dtype " + std::to_string(kType<T>) + ": "; // T, d, f, kind, variant
    Array<T> given_[ARRAYS], in_[ARRAYS], first_[2][ARRAYS]; // first_: results stored, and added
    Array<double> exact_[ARRAYS], first_alphas_[2][2];
    std::vector<char> packed_, first_packed_, saved_;
};

template <class T> void test_layers() {
    const int64_t sizes[][3] = {{1, 1, 1},     {1, 33, 520},  {2, 3, 8},    {2, 520, 65},
                                {7, 17, 31},   {8, 33, 17},   {9, 8, 3},    {15, 31, 65},
                                {16, 65, 1},   {17, 129, 33}, {33, 1, 129}, {65, 9, 520},
                                {130, 33, 31}, {1030, 3, 8},  {3, 2, 1030}};
    // Activations do not depend on 16-bit types, so fewer cases are enough for these.
    const int leap = sizeof(T) == 2 ? 7 : 1, plans = sizeof(T) == 2 ? 4 : 6;
    for (const bool gated : {false, true}) {
        int n = gated;
        for (const auto &[t, d, f] : sizes) {
            n += 5;
            Layer<T>({t, d, f, gated}, n % 8, make_activation(n % 13, n % 4, gated))
                .run(plans, false);
        }
        for (int i = 0; i < 13 * 4; i += leap)
            Layer<T>({9, 3, 17, gated}, i % 8, make_activation(i / 4, i % 4, gated)).run(2, false);
        Layer<T>({0, 3, 5, false}, 0, make_activation(FFNCORE_XIELU, gated, false)).run(6, false);
        Layer<T>({70, 3, 5, gated}, 0, make_activation(FFNCORE_XIELU, 1, gated)).run(2, true);
    }
}

// Calls that are refused, and their error texts; nothing is written.
void test_refusals() {
    const Sizes s{2, 3, 4, true};
    const auto act = make_activation(FFNCORE_SILU, 2, true);
    Array<float> in[ARRAYS], out[ARRAYS];
    Array<double> none[2];
    for (int i = 0; i < ARRAYS; ++i) in[i] = s.array<float>(i, 0, 1);
    for (int i = 0; i < ARRAYS; ++i) out[i] = s.array<float>(i, 0, kMark);
    const auto w = weights(in), into = weights(out);
    const ffncore_forward_args f{sizeof f, in[X], out[Y], w, act, nullptr};
    const auto b = backward_args(in, out, none, act);
    const auto e = elementwise_args(in, out, none, act);
    std::vector<char> packed(ffncore_packed_bytes(kType<float>, &w)), fresh = packed;
    CHECK(ffncore_pack(kType<float>, &w, packed.data()) == FFNCORE_OK);
    const auto pack = [&](auto *a) { return ffncore_pack(kType<float>, a, fresh.data()); };
    const auto unpack = [&](auto *a) { return ffncore_unpack(a, packed.data()); };
    const auto refuse = [&](const char *sentence, auto call, auto args, auto mistake) {
        where = std::string("refusal: ") + sentence;
        mistake(args);
        CHECK(call(&args) == FFNCORE_INVALID_ARGUMENT);
        CHECK(std::strstr(ffncore_last_error(), sentence));
        for (auto &array : out) array.each([](float v, auto...) { CHECK(v == float(kMark)); });
        CHECK(std::count(fresh.begin(), fresh.end(), 0) == int64_t(fresh.size()));
        CHECK(call((decltype(&args))nullptr) == FFNCORE_INVALID_ARGUMENT);
        CHECK(std::strstr(ffncore_last_error(), "NULL"));
    };
    const auto forward = ffncore_ffn_forward;
    refuse("args.size", forward, f, [](auto &a) { --a.size; });
    refuse("weights.size", forward, f, [](auto &a) { a.weights.size = 0; });
    refuse("activation.kind", forward, f, [](auto &a) { a.activation.kind = 13; });
    refuse("x has shape", forward, f, [](auto &a) { a.x.cols = 4; });
    refuse("x.data is NULL", forward, f, [](auto &a) { a.x.data = nullptr; });
    refuse("y has shape", forward, f, [](auto &a) { a.y.rows = 1; });
    refuse("down has shape", forward, f, [](auto &a) { a.weights.down.cols = 3; });
    refuse("b_up has length", forward, f, [](auto &a) { a.weights.b_up.length = 5; });
    refuse("b_gate is given", forward, f, [](auto &a) { a.weights.gate.data = nullptr; });
    refuse("weights.packed", forward, f, [&](auto &a) { a.weights.packed = fresh.data(); });
    const auto backward = ffncore_ffn_backward;
    refuse("activation.kind", backward, b, [](auto &a) { a.activation.kind = -1; });
    refuse("x.dtype is 4", backward, b, [](auto &a) { a.x.dtype = 4; });
    refuse("grad_y has dtype", backward, b, [](auto &a) { a.grad_y.dtype = FFNCORE_FLOAT64; });
    refuse("grad_up has dtype", backward, b, [](auto &a) { a.grad_up.dtype = FFNCORE_FLOAT16; });
    refuse("grad_y is absent", backward, b, [](auto &a) { a.grad_y.data = nullptr; });
    refuse("grad_x has shape", backward, b, [](auto &a) { a.grad_x.rows = 3; });
    refuse("grad_down has shape", backward, b, [](auto &a) { a.grad_down.rows = 4; });
    refuse("grad_b_down has length", backward, b, [](auto &a) { a.grad_b_down.length = 4; });
    const auto elementwise = ffncore_activation_backward;
    refuse("args.size", elementwise, e, [](auto &a) { a.size = 8; });
    refuse("activation.kind", elementwise, e, [](auto &a) { a.activation.kind = 13; });
    refuse("gate has shape", elementwise, e, [](auto &a) { a.gate.rows = 3; });
    refuse("weights.size", pack, w, [](auto &a) { a.size = 0; });
    refuse("packed already", pack, w, [&](auto &a) { a.packed = fresh.data(); });
    refuse("x", forward, f, [](auto &a) { a.x.rows = -1; });
    refuse("up", elementwise, e, [](auto &a) { a.up.data = nullptr; });
    refuse("size", unpack, into, [](auto &a) { a.size = 0; });
    refuse("gate", unpack, into, [](auto &a) { a.gate.rows = 3; });
    refuse("down", unpack, into, [](auto &a) { a.down.cols = 3; });
    refuse("b_gate", unpack, into, [](auto &a) { a.b_gate.length = 3; });
    CHECK(ffncore_isa_use("avx9") == FFNCORE_UNSUPPORTED);
    CHECK(std::strstr(ffncore_last_error(), "avx9"));
}

// The level whose instruction this build emulates has to exist wherever its other instructions do,
// because the emulation passes its known-answer test.
void test_levels() {
#if defined(FFNCORE_EMULATE_BF16)
    where = "levels";
    if (!std::strstr(ffncore_cpu_features(), "avx512vnni")) return;
    CHECK(!std::strcmp(ffncore_isa_name(ffncore_isa_count() - 1), "avx512bf16"));
#endif
}

} // namespace

extern "C" __attribute__((visibility("default"))) void __asan_on_error() {
    std::fprintf(stderr, "test_engine: in %s\n", where.c_str());
}

int main() {
    test_levels();
    test_layers<float>();
    test_layers<double>();
    test_layers<Half<7>>();
    test_layers<Half<10>>();
    test_refusals();
    std::printf("test_engine: passed; largest error: %.2f of what is allowed\n", worst);
}
