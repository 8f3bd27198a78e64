// h = act(gate) * up and its backward pass: the loops over rows and columns, with every option.
//
//     v = gate_multiplier * gate;  clamp "pre":  v = min(v, limit)
//     a = act(v);                  clamp "post": a = min(a, limit)
//     u = clip(up, -limit, limit); u = c tanh(u / c);  u = u + up_offset
//     h = a * u
//     dgate = dh * u * act'(v) * gate_multiplier, or 0 beyond the limit
//     dup = dh * a * (the derivative of u), which is 0 beyond the limits
//
// A plain block has act(up) alone. There is one kernel for each kind of activation, gated or plain,
// with or without options; a call looks it up in a table. float64, which serves for verification,
// has only the kernels with options; options with neutral values change no bit. Rows are
// independent. A short last vector is loaded and stored in part, so nothing outside rows x cols is
// touched. Outputs may be the same arrays as inputs.
#pragma once
#include "activation_kinds.inl"

namespace ffncore {
namespace {

template <class T> inline Settings<T> make_settings(const ActivationParams &p, bool gated) {
    Settings<T> k{};
    k.clamp_pre = gated && p.clamp == 1; // FFNCORE_CLAMP_PRE
    k.clamp_post = gated && p.clamp == 2;
    k.gate_cap = p.gate_softcap != 0;
    k.up_cap = gated && p.up_softcap != 0;
    k.multiplier = T(p.gate_multiplier);
    k.limit = T(p.limit);
    k.offset = T(p.up_offset);
    if (k.gate_cap) {
        k.gate_c = T(p.gate_softcap);
        k.gate_inverse = T(1 / p.gate_softcap);
    }
    if (k.up_cap) {
        k.up_c = T(p.up_softcap);
        k.up_inverse = T(1 / p.up_softcap);
    }
    k.alpha = make_alpha<T>(p.alpha);
    return k;
}

template <class T> inline void kind_settings(const ActivationParams &p, Settings<T> &k) {
    k.negative_slope = T(p.negative_slope);
    k.xielu_p = T(p.xielu_p);
    k.xielu_n = T(p.xielu_n);
    k.beta = T(p.beta);
    k.eps = p.eps < 0 ? T(p.eps) : T(0); // min(v, eps) is used for v <= 0 alone
}

// A whole vector, or the first n lanes of one.
template <class F, bool Whole> struct Lanes {
    int64_t n;

    inline typename F::V load(const typename F::T *p) const {
        return Whole ? F::load(p) : F::load_n(p, n);
    }
    inline void store(typename F::T *p, typename F::V a) const {
        if (Whole)
            F::store(p, a);
        else
            F::store_n(p, a, n);
    }
};

// Calls step(lanes, c) for every vector of a row. Fast: step is compiled twice, so that the loop
// over whole vectors needs no test. Otherwise it is compiled once, and every vector is treated as a
// partial one, which halves the code.
template <class F, bool Fast, class Step>
__attribute__((always_inline)) inline void for_each_vector(int64_t cols, Step step) {
    int64_t c = 0;
    if (Fast)
        for (; c + F::W <= cols; c += F::W) step(Lanes<F, true>{F::W}, c);
    for (; c < cols; c += F::W) step(Lanes<F, false>{cols - c < F::W ? cols - c : F::W}, c);
}

// The bias of a row: absent, one number (col == 0), or a number for each column (col == 1).
template <class F> struct RowBias {
    const typename F::T *p;
    bool along;
    typename F::V splat;

    inline RowBias(const typename F::T *base, int64_t row, int64_t col)
        : p(base ? base + row : nullptr), along(col != 0),
          splat(p && !along ? F::set1(*p) : F::zero()) {}

    template <class L> inline typename F::V add(L lanes, int64_t c, typename F::V x) const {
        if (!p) return x;
        return F::add(x, along ? lanes.load(p + c) : splat);
    }
};

// up with its options, and the derivative of that (slope).
template <class F> struct UpPath {
    typename F::V value, slope;

    inline UpPath(const Settings<typename F::T> &k, typename F::V u) {
        slope = F::set1(1);
        if (k.clamp_pre || k.clamp_post) {
            // The test is "outside", not "inside", so that NaN, which is neither, keeps the slope
            // 1.
            auto outside = F::either(F::lt(u, F::set1(-k.limit)), F::gt(u, F::set1(k.limit)));
            slope = F::select(outside, F::zero(), slope);
            u = clamp<F>(u, -k.limit, k.limit);
        }
        if (k.up_cap) {
            auto t = tanh_both<F>(F::mul(u, F::set1(k.up_inverse)));
            u = F::mul(F::set1(k.up_c), t.value);
            slope = F::mul(slope, t.slope);
        }
        value = F::add(u, F::set1(k.offset));
    }
};

template <class F, class Act, bool Gated, bool Options>
void forward_kernel(const ActivationParams &params, const ActForwardArgs<typename F::T> &args) {
    using T = typename F::T;
    const ActForwardArgs<T> a = args; // a copy, because vector stores may alias args
    Settings<T> k{};
    if (Options) k = make_settings<T>(params, Gated);
    kind_settings(params, k);
    const auto limit = F::set1(k.limit);

    for (int64_t r = 0; r < a.rows; ++r) {
        const T *gate = Gated ? a.gate + r * a.ld : nullptr, *up = a.up + r * a.ld;
        T *h = a.h ? a.h + r * a.ldh : nullptr;
        T *save_gate = Gated && a.save_gate ? a.save_gate + r * a.ld_save : nullptr;
        T *save_up = a.save_up ? a.save_up + r * a.ld_save : nullptr;
        const RowBias<F> b_gate(Gated ? a.b_gate : nullptr, r * a.bias_row, a.bias_col);
        const RowBias<F> b_up(a.b_up, r * a.bias_row, a.bias_col);

        for_each_vector<F, !Options>(a.cols,
                                     [&](auto lanes, int64_t c) __attribute__((always_inline)) {
                                         auto u = b_up.add(lanes, c, lanes.load(up + c)), v = u;
                                         if (Gated) {
                                             v = b_gate.add(lanes, c, lanes.load(gate + c));
                                             if (save_gate) lanes.store(save_gate + c, v);
                                         }
                                         if (save_up) lanes.store(save_up + c, u);
                                         if (!h) return;
                                         if (Options) {
                                             v = F::mul(v, F::set1(k.multiplier));
                                             if (k.clamp_pre) v = F::min_(limit, v);
                                         }
                                         auto act = Act::template value<F>(k, v);
                                         if (Options && k.clamp_post) act = F::min_(limit, act);
                                         if (Gated)
                                             act = F::mul(act, Options ? UpPath<F>(k, u).value : u);
                                         lanes.store(h + c, act);
                                     });
    }
}

template <class Act> struct IsXielu {
    static constexpr bool kValue = false;
};
template <> struct IsXielu<Xielu> {
    static constexpr bool kValue = true;
};

// Sums of 8 columns each, as a tree: lanes i and i + 4, i and i + 2, i and i + 1 are added.
template <class T> struct GroupSums {
    static constexpr int kLanes = 16; // the widest vector
    T positive[kLanes] = {}, negative[kLanes] = {};

    static inline T tree(T *lanes) {
        for (int half = kSumGroup / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
        return lanes[0];
    }

    // Takes the vector at column c of cols. Writes a sum after every group, and at the end.
    template <class F>
    inline void add(typename F::V p, typename F::V n, int64_t c, int64_t cols, T *sum_p, T *sum_n) {
        const int lane = int(c % kSumGroup), end = lane + F::W;
        F::store(positive + lane, p);
        F::store(negative + lane, n);
        if (end < kSumGroup && c + F::W < cols) return;
        for (int i = end; i < kSumGroup; ++i) positive[i] = negative[i] = T(0);
        for (int i = 0; i < end && c - lane + i < cols; i += kSumGroup) {
            sum_p[(c - lane + i) / kSumGroup] = tree(positive + i);
            sum_n[(c - lane + i) / kSumGroup] = tree(negative + i);
        }
    }
};

template <class F, class Act, bool Gated, bool Options>
void backward_kernel(const ActivationParams &params, const ActBackwardArgs<typename F::T> &args) {
    using T = typename F::T;
    using V = typename F::V;
    const ActBackwardArgs<T> a = args; // see forward_kernel
    Settings<T> k{};
    if (Options) k = make_settings<T>(params, Gated);
    kind_settings(params, k);
    const auto limit = F::set1(k.limit);
    GroupSums<T> sums;

    for (int64_t r = 0; r < a.rows; ++r) {
        const T *gate = Gated ? a.gate + r * a.ld_pre : nullptr, *up = a.up + r * a.ld_pre;
        const T *dh = a.dh + r * a.ld_dh;
        T *dpre = Gated ? a.dgate : a.dup, *dup = Gated ? a.dup : nullptr, *h = a.h;
        dpre = dpre ? dpre + r * a.ld_out : nullptr;
        dup = dup ? dup + r * a.ld_out : nullptr;
        h = h ? h + r * a.ld_out : nullptr;

        for_each_vector<F, !Options>(a.cols, [&](auto lanes,
                                                 int64_t c) __attribute__((always_inline)) {
            V u = lanes.load(up + c), v = Gated ? lanes.load(gate + c) : u, g = lanes.load(dh + c);
            auto past = F::first(0); // lanes beyond the limit, where the gradient is 0
            if (Options) {
                v = F::mul(v, F::set1(k.multiplier));
                if (k.clamp_pre) {
                    past = F::gt(v, limit);
                    v = F::min_(limit, v);
                }
            }
            V act, slope;
            typename Xielu::Parts<F> parts;
            if constexpr (IsXielu<Act>::kValue) {
                parts = Xielu::parts<F>(k, v);
                act = parts.value;
                slope = parts.slope;
            } else {
                Act::template both<F>(k, v, act, slope);
            }
            if (Options) {
                slope = F::mul(slope, F::set1(k.multiplier));
                if (k.clamp_post) {
                    past = F::gt(act, limit);
                    act = F::min_(limit, act);
                }
            }
            if (Gated) {
                V du = F::mul(g, act);
                if (Options) {
                    const UpPath<F> path(k, u);
                    u = path.value;
                    du = F::mul(du, path.slope);
                }
                if (dup) lanes.store(dup + c, du);
                act = F::mul(act, u);
                g = F::mul(g, u);
                if (Options && k.clamp_post) g = F::select(past, F::zero(), g);
            }
            if (h) lanes.store(h + c, act);
            if (dpre) {
                V dv = F::mul(g, slope);
                if (Options && k.clamp_pre) dv = F::select(past, F::zero(), dv);
                lanes.store(dpre + c, dv);
            }
            if constexpr (IsXielu<Act>::kValue) {
                if (!a.xielu_p) return;
                const auto inside = F::first(lanes.n); // lanes beyond the columns add +0
                V p = F::keep(parts.positive, F::mul(g, parts.square));
                V n = F::select(parts.positive, F::zero(), F::mul(g, parts.bracket));
                sums.template add<F>(F::keep(inside, p), F::keep(inside, n), c, a.cols,
                                     a.xielu_p + r * a.ld_xielu, a.xielu_n + r * a.ld_xielu);
            }
        });
    }
}

template <class F> struct ActivationTable {
    using T = typename F::T;
    using Forward = void (*)(const ActivationParams &, const ActForwardArgs<T> &);
    using Backward = void (*)(const ActivationParams &, const ActBackwardArgs<T> &);
    static constexpr bool kAlways = sizeof(T) == 8; // float64: kernels with options only

    struct Kind {
        Forward forward[2][2]; // [gated][options]
        Backward backward[2][2];
    };

    template <class Act, class WithOptions = Act> static constexpr Kind kind() {
        using First = typename Choose<kAlways, WithOptions, Act>::Type;
        return {
            {{forward_kernel<F, First, false, kAlways>,
              forward_kernel<F, WithOptions, false, true>},
             {forward_kernel<F, First, true, kAlways>, forward_kernel<F, WithOptions, true, true>}},
            {{backward_kernel<F, First, false, kAlways>,
              backward_kernel<F, WithOptions, false, true>},
             {backward_kernel<F, First, true, kAlways>,
              backward_kernel<F, WithOptions, true, true>}}};
    }

    template <bool C, class A, class B> struct Choose {
        using Type = A;
    };
    template <class A, class B> struct Choose<false, A, B> {
        using Type = B;
    };
};

// In the order of ffncore_activation_kind.
template <class F> inline const typename ActivationTable<F>::Kind &activation_kind(int kind) {
    using Table = ActivationTable<F>;
    static constexpr typename Table::Kind kTable[] = {Table::template kind<Identity>(),
                                                      Table::template kind<Relu>(),
                                                      Table::template kind<Relu2>(),
                                                      Table::template kind<Gelu>(),
                                                      Table::template kind<GeluTanh>(),
                                                      Table::template kind<QuickGelu>(),
                                                      Table::template kind<Silu, SiluOptions>(),
                                                      Table::template kind<Sigmoid>(),
                                                      Table::template kind<Tanh1>(),
                                                      Table::template kind<Mish>(),
                                                      Table::template kind<Hardswish>(),
                                                      Table::template kind<LeakyRelu>(),
                                                      Table::template kind<Xielu>()};
    return kTable[kind];
}

inline bool has_options(const ActivationParams &p, bool gated) {
    return p.gate_multiplier != 1 || p.alpha != 1 || p.gate_softcap != 0 ||
           (gated && (p.clamp != 0 || p.up_offset != 0 || p.up_softcap != 0));
}

template <class F>
inline void act_forward(const ActivationParams &p, const ActForwardArgs<typename F::T> &a) {
    const bool gated = a.gate != nullptr;
    activation_kind<F>(p.kind).forward[gated][has_options(p, gated)](p, a);
}

template <class F>
inline void act_backward(const ActivationParams &p, const ActBackwardArgs<typename F::T> &a) {
    const bool gated = a.gate != nullptr;
    activation_kind<F>(p.kind).backward[gated][has_options(p, gated)](p, a);
}

} // namespace
} // namespace ffncore
