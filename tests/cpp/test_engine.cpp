// Every way through the engine by its C ABI, made for the address and undefined-behaviour sanitizers.
//
//     y = h W_down^T + b_down,   h = act(x W_gate^T + b_gate) * (x W_up^T + b_up)
//
// Arrays are heap blocks of exactly the size that their strides need. Gaps between elements hold NaN
// (inputs) or a mark that has to survive (outputs). The workspace is NaN before each call, and
// poisoned behind the last byte that the call may use. The first result is compared with plain loops
// in long double; all others (level, plan, threads, strides, packed, saved or recomputed, any subset
// of the gradients) with the first, bit by bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <sanitizer/asan_interface.h> // its macros are empty without the sanitizer

#include "../../csrc/core/workspace.h"
#include "../../csrc/include/ffncore.h"

#define CHECK(condition)                                                                           \
    if (!(condition)) {                                                                            \
        std::printf("%s:%d: failed: %s\n    %s\n    last error: %s\n", __FILE__, __LINE__,         \
                    #condition, where.c_str(), ffncore_last_error());                              \
        return false;                                                                              \
    } else                                                                                         \
        static_assert(true)

namespace {

using Wide = long double;
std::string where;            // the case at hand, for a failure's message
double worst = 0;             // the largest error found, as a share of what is allowed
constexpr double kMark = 777; // no result has this value
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// rows x cols elements; a vector has one column.
constexpr int kLayouts = 8, kRepeated = 8; // the last: every row is the same memory
template <class T> class Array {
  public:
    Array() = default;
    Array(int64_t rows, int64_t cols, int layout, double fill, double gap)
        : rows_(rows), cols_(cols) {
        const int64_t strides[][2] = {
            {cols, 1}, {1, rows},      {cols + 3, 1},  {3 * cols + 1, 3}, {-cols, -1},
            {1, -rows}, {-cols - 2, 1}, {1, rows + 5}, {0, 1}};
        row_ = strides[layout][0], col_ = strides[layout][1];
        if (rows * cols == 0) return;
        at_ = std::max<int64_t>(0, (1 - rows) * row_) + std::max<int64_t>(0, (1 - cols) * col_);
        memory_.assign((rows - 1) * std::abs(row_) + (cols - 1) * std::abs(col_) + 1, T(gap));
        each([&](T &to, int64_t, int64_t) { to = T(fill); });
    }
    template <class Body> void each(const Body &body) {
        for (int64_t i = 0; i < rows_; ++i)
            for (int64_t j = 0; j < cols_; ++j) body((*this)(i, j), i, j);
    }
    T &operator()(int64_t i, int64_t j = 0) { return memory_[at_ + i * row_ + j * col_]; }
    Array copy(int layout, double gap) {
        Array other(rows_, cols_, layout, 0, gap);
        other.each([&](T &to, int64_t i, int64_t j) { to = (*this)(i, j); });
        return other;
    }
    bool present() const { return !memory_.empty(); }
    bool gaps_kept() const {
        const int64_t marks = std::count(memory_.begin(), memory_.end(), T(kMark));
        return marks == int64_t(memory_.size()) - rows_ * cols_;
    }
    T *data() { return present() ? &(*this)(0) : nullptr; }
    ffncore_matrix matrix() { return {data(), rows_, cols_, row_, col_}; }
    ffncore_vector vector() { return {data(), rows_, row_}; }

  private:
    int64_t rows_ = 0, cols_ = 0, row_ = 0, col_ = 0, at_ = 0;
    std::vector<T> memory_;
};

double random_unit() { // -1 to 1
    static uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return double(state >> 11) * 0x1p-52 - 1;
}

// `exact` within 16 eps (sqrt(n) + its largest element), the error of sums of n terms of size 1;
// or, where there is a first result, its bits.
template <class T>
bool judge(Array<T> &got, Array<Wide> &exact, Array<T> &first, double eps, double n) {
    bool ok = got.gaps_kept();
    if (!first.present()) {
        Wide largest = 0, error = 0;
        exact.each([&](Wide &v, int64_t, int64_t) { largest = std::max(largest, std::abs(v)); });
        got.each([&](T &v, int64_t i, int64_t j) {
            const Wide off = std::abs(v - exact(i, j));
            error = off <= error ? error : off; // NaN stays
        });
        const double share = double(error / (16 * eps * (std::sqrt(n) + largest)));
        worst = share <= worst ? worst : share;
        ok &= share <= 1;
        first = got.copy(0, kMark);
    }
    got.each([&](T &v, int64_t i, int64_t j) { ok &= !std::memcmp(&v, &first(i, j), sizeof v); });
    return ok;
}

// ---- the reference: values and derivatives

struct Slope {
    Wide value, slope;
};
Slope times_sigma(Wide g, Wide dg, Wide z, Wide dz) { // g sigma(z)
    const Wide s = 1 / (1 + std::exp(-z)), away = 1 / (1 + std::exp(z));
    return {g * s, s * (dg + g * dz * away)};
}
Slope activation(const ffncore_activation &a, Wide v) {
    const Wide pi = std::acos(Wide(-1)), zero = 0, c = a.gate_softcap, r = std::max(v, zero);
    const Wide p = std::log1p(std::exp(Wide(a.alpha_p))), eps = a.eps, cube = 2 * std::sqrt(2 / pi);
    const Wide n = a.beta + std::log1p(std::exp(Wide(a.alpha_n))), cdf = std::erfc(-v / std::sqrt(Wide(2))) / 2;
    const Wide t = c > 0 ? std::tanh(v / c) : 0, g = c > 0 ? c * t : v, dg = 1 - t * t;
    const Wide th = std::tanh(v), m = std::tanh(std::log1p(std::exp(v)));
    const Slope all[] = {
        {v, 1},
        {r, Wide(v > 0)},
        {r * r, 2 * r},
        {v * cdf, cdf + v * std::exp(-v * v / 2) / std::sqrt(2 * pi)},
        times_sigma(v, 1, cube * (v + 0.044715L * v * v * v), cube * (1 + 0.134145L * v * v)),
        times_sigma(g, dg, 1.702L * v, 1.702L),
        times_sigma(g, dg, a.alpha * v, a.alpha),
        times_sigma(1, 0, v, 1),
        {th, 1 - th * th},
        {v * m, m + v * (1 - m * m) / (1 + std::exp(-v))},
        {v * std::clamp<Wide>(v + 3, 0, 6) / 6, v <= -3 ? 0 : v >= 3 ? 1 : (2 * v + 3) / 6},
        v >= 0 ? Slope{v, 1} : Slope{a.negative_slope * v, a.negative_slope},
        v > 0 ? Slope{(p * v + a.beta) * v, 2 * p * v + a.beta}
              : Slope{n * (std::expm1(std::min(v, eps)) - v) + a.beta * v,
                      a.beta + n * (v > eps ? -1 : std::expm1(v))}};
    return all[a.kind];
}

struct Element {
    Wide h, grads[2], alphas[2]; // gradients of gate and up; of up alone in a plain block
};
Element element(const ffncore_activation &a, bool gated, const Wide (&pre)[2], Wide dh) {
    Wide v = pre[gated ? 0 : 1] * a.gate_multiplier, inner = a.gate_multiplier, u = 1, du = 0;
    if (a.clamp == FFNCORE_CLAMP_PRE && v > a.limit) v = a.limit, inner = 0;
    const auto [value, slope] = activation(a, v);
    const bool past = a.clamp == FFNCORE_CLAMP_POST && value > a.limit;
    const Wide act = past ? a.limit : value;
    if (gated) {
        du = !a.clamp || std::abs(pre[1]) <= a.limit;
        u = du > 0 ? pre[1] : std::copysign(Wide(a.limit), pre[1]);
        const Wide c = a.up_softcap, t = c > 0 ? std::tanh(u / c) : 0;
        u = (c > 0 ? c * t : u) + a.up_offset, du *= 1 - t * t;
    }
    const Wide outer = past ? 0 : dh * u, grad = outer * slope * inner;
    Element e{act * u, {gated ? grad : 0, gated ? dh * act * du : grad}, {}};
    const Wide factor = v > 0 ? v * v : std::expm1(std::min(v, Wide(a.eps))) - v;
    e.alphas[v <= 0] = outer * factor / (1 + std::exp(-Wide(v > 0 ? a.alpha_p : a.alpha_n)));
    return e;
}

// Four variants of each kind; float has their option values exactly.
ffncore_activation make_activation(int kind, int variant, bool gated) {
    ffncore_activation a;
    ffncore_activation_init(&a, kind);
    if (variant == 0) return a;
    a.gate_multiplier = 0.5 + 0.25 * variant;
    if (kind == FFNCORE_SILU) a.alpha = 0.5 * variant;
    if (kind == FFNCORE_SILU || kind == FFNCORE_QUICK_GELU) a.gate_softcap = variant == 2 ? 2 : 0;
    if (kind == FFNCORE_LEAKY_RELU) a.negative_slope = 0.25 * variant;
    if (kind == FFNCORE_XIELU) a.alpha_p = 0.5, a.alpha_n = -0.25, a.beta = 0.25, a.eps = -0.125;
    if (gated) a.clamp = variant - 1, a.limit = 0.875, a.up_offset = 0.5 * (variant - 2);
    if (gated && variant > 1) a.up_softcap = 1.5;
    return a;
}

// ---- a layer, in all ways

struct {
    int64_t token_chunk, ff_chunk, token_slice;
    int32_t rows, threads;
} const kPlans[] = {{0, 0, 0, -1, 1}, {1, 1, 1, -1, 2}, {0, 0, 0, 1, 1},
                    {0, 0, 0, 0, 3},  {1, 1, 1, 0, 1},  {1, 1, 0, 1, 3}};

// The next call takes this buffer.
class Workspace {
  public:
    explicit Workspace(const ffncore_cost &cost) : bytes_(size_t(cost.extra_bytes)) {
        ffncore_clear_workspace();
        const ffncore::Lease lease(all());
        data_ = static_cast<char *>(lease.data());
        std::memset(data_, 0xFF, all());
        ASAN_POISON_MEMORY_REGION(data_ + bytes_, all() - bytes_);
    }
    ~Workspace() { ASAN_UNPOISON_MEMORY_REGION(data_ + bytes_, all() - bytes_); }

  private:
    size_t all() const { return (bytes_ + 0xFFFF) / 0x10000 * 0x10000; } // as it rounds small ones
    size_t bytes_;
    char *data_;
};

// Gradient i has the shape of input i; y that of its gradient, and so has h.
enum { X, GATE, UP, DOWN, B_GATE, B_UP, B_DOWN, Y, PRE_GATE, PRE_UP, H, ARRAYS };
constexpr int kAll = (1 << 9) - 1; // what is needed: a bit a gradient (x to b_down), then two alphas

template <class T> class Layer {
  public:
    Layer(int64_t t, int64_t d, int64_t f, bool gated, int variant, const ffncore_activation &act)
        : t_(t), d_(d), f_(f), gated_(gated), repeated_(variant == 3), act_(act) {
        const int64_t shapes[][2] = {{t, d}, {f, d}, {f, d}, {d, f}, {f, 1}, {f, 1},
                                     {d, 1}, {t, d}, {t, f}, {t, f}, {t, f}};
        for (int i = 0; i < ARRAYS; ++i) {
            rows_[i] = !gated && (i == GATE || i == B_GATE || i == PRE_GATE) ? 0 : shapes[i][0];
            cols_[i] = shapes[i][1];
            exact_[i] = Array<Wide>(rows_[i], cols_[i], 0, 0, 0);
            if (i >= B_GATE && i <= B_DOWN && (variant >> (i - B_GATE) & 1)) continue; // no bias
            const double size = 2 / (i >= GATE && i <= DOWN ? std::sqrt(double(cols_[i])) : 1);
            given_[i] = Array<T>(rows_[i], cols_[i], 0, 0, 0);
            given_[i].each([&](T &v, int64_t r, int64_t c) {
                v = i == X && r && repeated_ ? given_[i](0, c) : T(size * random_unit());
            });
        }
        reference();
        where = name_ = std::to_string(8 * sizeof(T)) + " bits, " + std::to_string(t) + " x " +
                        std::to_string(d) + " x " + std::to_string(f) + (gated ? " gated" : "") +
                        ", kind " + std::to_string(act.kind) + ", variant " +
                        std::to_string(variant);
    }

    bool run(bool all_subsets) {
        const int plans = all_subsets ? 2 : std::size(kPlans), last = plans * ffncore_isa_count();
        for (int step = 0; step < last; ++step) {
            const auto &plan = kPlans[step % plans];
            const char *isa = ffncore_isa_name(step / plans);
            where = name_ + ", " + isa + ", plan " + std::to_string(step % plans);
            CHECK(ffncore_isa_use(isa) == FFNCORE_OK);
            ffncore_debug_plan(plan.token_chunk, plan.ff_chunk, plan.token_slice, plan.rows);
            ffncore_set_num_threads(plan.threads);
            for (int i = 0; i < ARRAYS; ++i)
                in_[i] = given_[i].copy(i == X && repeated_ ? int(kRepeated)
                                                            : (step + step % 2 * 3 * i) % kLayouts,
                                        kNan);
            std::vector<char> saved(ffncore_saved_bytes(kType, t_, f_, gated_), -1);
            if (!pack(step) || !elementwise(step)) return false;
            for (const void *packed : {(const void *)nullptr, (const void *)packed_.data()}) {
                if (!forward(packed, nullptr, step) || !forward(packed, saved.data(), step + 1))
                    return false;
                if (saved_.empty()) saved_ = saved; // the other levels read what the first wrote
                const void *from = step % 3 ? saved_.data() : saved.data();
                for (int i = 0; i < (all_subsets ? kAll : 1); ++i) {
                    const int some = i + step * 151 + (packed ? 77 : 0); // 512 subsets, in leaps
                    if (!backward(packed, from, packed ? some : kAll - i, false, i + step) ||
                        !backward(packed, nullptr, packed ? kAll : some + 9, false, i + step + 1) ||
                        !backward(packed, from, some + 5, true, i + step + 2) ||
                        !backward(packed, nullptr, kAll - i, true, i + step + 3))
                        return false;
                }
            }
        }
        return true;
    }

  private:
    void reference() {
        auto &in = given_;
        auto &out = exact_;
        for (int64_t t = 0; t < t_; ++t) {
            std::vector<Wide> dh(f_);
            for (int64_t o = 0; o < d_; ++o) {
                for (int64_t j = 0; j < f_; ++j) dh[j] += Wide(in[Y](t, o)) * in[DOWN](o, j);
                out[B_DOWN](o) += in[Y](t, o);
                out[Y](t, o) = in[B_DOWN].present() ? in[B_DOWN](o) : T(0);
            }
            for (int64_t j = 0; j < f_; ++j) {
                Wide pre[2] = {};
                for (int i = gated_ ? 0 : 1; i < 2; ++i) {
                    if (in[B_GATE + i].present()) pre[i] = in[B_GATE + i](j);
                    for (int64_t c = 0; c < d_; ++c) pre[i] += Wide(in[X](t, c)) * in[GATE + i](j, c);
                    in[PRE_GATE + i](t, j) = T(pre[i]);
                }
                in[H](t, j) = T(dh[j]);
                const Element e = element(act_, gated_, pre, dh[j]);
                for (int i = 0; i < 2; ++i) {
                    alpha_exact_[i](0) += e.alphas[i];
                    if (!gated_ && i == 0) continue;
                    out[PRE_GATE + i](t, j) = e.grads[i];
                    out[B_GATE + i](j) += e.grads[i];
                    for (int64_t c = 0; c < d_; ++c) {
                        out[X](t, c) += e.grads[i] * in[GATE + i](j, c);
                        out[GATE + i](j, c) += e.grads[i] * in[X](t, c);
                    }
                }
                out[H](t, j) = e.h;
                for (int64_t o = 0; o < d_; ++o) {
                    out[Y](t, o) += e.h * in[DOWN](o, j);
                    out[DOWN](o, j) += e.h * in[Y](t, o);
                }
            }
        }
    }

    // An output full of NaN; or, to be added into, of numbers that are in `base_exact` too.
    Array<T> output(int i, int layout) const {
        return Array<T>(rows_[i], cols_[i], (layout + i) % kLayouts, kNan, kMark);
    }
    ffncore_weights weights(Array<T> *a, const void *packed) {
        ffncore_weights w{sizeof w, a[GATE].matrix(), a[UP].matrix(), a[DOWN].matrix(),
                          a[B_GATE].vector(), a[B_UP].vector(), a[B_DOWN].vector(), packed};
        if (packed) w.gate.data = w.up.data = w.down.data = nullptr;
        return w;
    }
