// h = act(gate) * up and its backward pass: the loops over rows and columns, with every option.
//
//     v = gate_multiplier * gate;  pre: v = min(v, limit)
//     a = act(v);                  post: a = min(a, limit)
//     u = clip(up, -limit, limit); u = c tanh(u / c);  u = u + up_offset
//     h = a * u,  dgate = dh * u * act'(v) * (multiplier, masks),  dup = dh * a * (slope, mask)
//
// A plain block has act(up) alone. One kernel per kind, gated or plain, with or without options; a
// call looks its kernel up in a table. float64 has the kernels with options only: it is the path of
// verification, and neutral options change no bit. Rows are independent; a short last vector is
// loaded and stored in part, so nothing outside rows x cols is touched. Outputs may be inputs.
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
    k.eps = p.eps < 0 ? T(p.eps) : T(0); // only v <= 0 asks for it
}

template <class F> inline typename F::V load_some(const typename F::T *p, int64_t n) {
    return n >= F::W ? F::load(p) : F::load_n(p, n);
}

template <class F> inline void store_some(typename F::T *p, typename F::V a, int64_t n) {
    if (n >= F::W)
        F::store(p, a);
    else
        F::store_n(p, a, n);
}

// A row's bias: absent, one number (col == 0), or along the columns.
template <class F> struct RowBias {
    const typename F::T *p;
    int64_t col;
    typename F::V splat;

    inline RowBias(const typename F::T *base, int64_t offset, int64_t column)
        : p(base ? base + offset : nullptr), col(column),
          splat(p && col == 0 ? F::set1(*p) : F::zero()) {}

    inline typename F::V add(typename F::V x, int64_t c, int64_t n) const {
        if (!p)
            return x;
        if (col == 0)
            return F::add(x, splat);
        if (col == 1)
            return F::add(x, load_some<F>(p + c, n));
        typename F::T lanes[F::W] = {};
        for (int64_t i = 0; i < (n < F::W ? n : F::W); ++i)
            lanes[i] = p[(c + i) * col];
        return F::add(x, F::load(lanes));
    }
};

// up with its options, and the factor of its gradient.
template <class F> struct UpPath {
    typename F::V value, slope;

    inline UpPath(const Settings<typename F::T> &k, typename F::V u) {
        slope = F::set1(1);
        if (k.clamp_pre || k.clamp_post) {
            auto inside = F::both(F::ge(u, F::set1(-k.limit)), F::le(u, F::set1(k.limit)));
            slope = F::keep(inside, slope);
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
void forward_kernel(const ActivationParams &params, const ActForwardArgs<typename F::T> &a) {
    using T = typename F::T;
    Settings<T> k{};
    if (Options)
        k = make_settings<T>(params, Gated);
    kind_settings(params, k);
    auto limit = F::set1(k.limit);

    for (int64_t r = 0; r < a.rows; ++r) {
        const RowBias<F> gate_bias(a.b_gate, r * a.bias_row, a.bias_col);
        const RowBias<F> up_bias(a.b_up, r * a.bias_row, a.bias_col);
        for (int64_t c = 0; c < a.cols; c += F::W) {
            const int64_t n = a.cols - c;
            auto u = up_bias.add(load_some<F>(a.up + r * a.ld + c, n), c, n);
            auto v = u;
            if (Gated) {
                v = gate_bias.add(load_some<F>(a.gate + r * a.ld + c, n), c, n);
                if (a.save_gate)
                    store_some<F>(a.save_gate + r * a.ld_save + c, v, n);
            }
            if (a.save_up)
                store_some<F>(a.save_up + r * a.ld_save + c, u, n);
            if (!a.h)
                continue;
            if (Options) {
                v = F::mul(v, F::set1(k.multiplier));
                if (k.clamp_pre)
                    v = F::min_(limit, v);
            }
            auto h = Act::template value<F>(k, v);
            if (Options && k.clamp_post)
                h = F::min_(limit, h);
            if (Gated)
                h = F::mul(h, Options ? UpPath<F>(k, u).value : u);
            store_some<F>(a.h + r * a.ldh + c, h, n);
        }
    }
}

template <class Act> struct IsXielu {
    static constexpr bool kValue = false;
};
template <> struct IsXielu<Xielu> {
    static constexpr bool kValue = true;
};

// The tree over 16 lanes: i and i + 8, i and i + 4, ...
template <class T> inline T tree_sum(T (&lanes)[16]) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

template <class F, class Act, bool Gated, bool Options>
void backward_kernel(const ActivationParams &params, const ActBackwardArgs<typename F::T> &a) {
    using T = typename F::T;
    constexpr bool kIsXielu = IsXielu<Act>::kValue;
    Settings<T> k{};
    if (Options)
        k = make_settings<T>(params, Gated);
    kind_settings(params, k);
    auto limit = F::set1(k.limit);
    T lanes_p[16] = {}, lanes_n[16] = {};

    for (int64_t r = 0; r < a.rows; ++r)
        for (int64_t c = 0; c < a.cols; c += F::W) {
            const int64_t n = a.cols - c, at = r * a.ld_out + c;
            auto dh = load_some<F>(a.dh + r * a.ld_dh + c, n);
            auto u = load_some<F>(a.up + r * a.ld_pre + c, n);
            auto v = Gated ? load_some<F>(a.gate + r * a.ld_pre + c, n) : u;
            auto past = F::first(0); // beyond the limit
            if (Options) {
                v = F::mul(v, F::set1(k.multiplier));
                if (k.clamp_pre) {
                    past = F::gt(v, limit);
                    v = F::min_(limit, v);
                }
            }
            typename F::V act, slope;
            typename Xielu::Parts<F> parts;
            if constexpr (kIsXielu) {
                parts = Xielu::parts<F>(k, v);
                act = parts.value;
                slope = parts.slope;
            } else {
                Act::template both<F>(k, v, act, slope);
            }
            if (Options) {
                slope = F::mul(F::select(past, F::zero(), slope), F::set1(k.multiplier));
                past = F::first(0);
                if (k.clamp_post) {
                    past = F::gt(act, limit);
                    act = F::min_(limit, act);
                }
            }
            auto dact = dh, dslope = slope;
            if (Gated) {
                auto dup = F::mul(dh, act);
                if (Options) {
                    const UpPath<F> path(k, u);
                    u = path.value;
                    dup = F::mul(dup, path.slope);
                }
                if (a.dup)
                    store_some<F>(a.dup + at, dup, n);
                if (a.h)
                    store_some<F>(a.h + at, F::mul(act, u), n);
                dact = F::mul(dh, u);
                if (Options)
                    dact = F::select(past, F::zero(), dact);
            } else if (a.h) {
                store_some<F>(a.h + at, act, n);
            }
            T *out = Gated ? a.dgate : a.dup;
            if (out)
                store_some<F>(out + at, F::mul(dact, dslope), n);

            if constexpr (kIsXielu) {
                if (!a.xielu_p)
                    continue;
                const int lane = int(c % 16);
                auto inside = F::first(n < F::W ? n : F::W);
                auto p = F::keep(parts.positive, F::mul(dact, parts.square));
                auto m = F::select(parts.positive, F::zero(), F::mul(dact, parts.bracket));
                F::store(lanes_p + lane, F::keep(inside, p));
                F::store(lanes_n + lane, F::keep(inside, m));
                if (n > F::W && lane + F::W < 16)
                    continue;
                for (int i = lane + F::W; i < 16; ++i)
                    lanes_p[i] = lanes_n[i] = T(0);
                a.xielu_p[r * a.ld_xielu + c / 16] = tree_sum(lanes_p);
                a.xielu_n[r * a.ld_xielu + c / 16] = tree_sum(lanes_n);
            }
        }
}

constexpr int kKinds = 13; // in the order of ffncore_activation_kind

template <class F> struct ActivationTable {
    using T = typename F::T;
    using Forward = void (*)(const ActivationParams &, const ActForwardArgs<T> &);
    using Backward = void (*)(const ActivationParams &, const ActBackwardArgs<T> &);
    static constexpr bool kAlways = sizeof(T) == 8; // float64: kernels with options only

    struct Kind {
        Forward forward[2][2];   // [gated][options]
        Backward backward[2][2];
    };

    template <class Act, class WithOptions = Act> static constexpr Kind kind() {
        using First = typename Choose<kAlways, WithOptions, Act>::Type;
        return {{{forward_kernel<F, First, false, kAlways>,
                  forward_kernel<F, WithOptions, false, true>},
                 {forward_kernel<F, First, true, kAlways>,
                  forward_kernel<F, WithOptions, true, true>}},
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

template <class F> inline const typename ActivationTable<F>::Kind &activation_kind(int kind) {
    using Table = ActivationTable<F>;
    static constexpr typename Table::Kind kTable[kKinds] = {
        Table::template kind<Identity>(),  Table::template kind<Relu>(),
        Table::template kind<Relu2>(),     Table::template kind<Gelu>(),
        Table::template kind<GeluTanh>(),  Table::template kind<QuickGelu>(),
        Table::template kind<Silu, SiluOptions>(), Table::template kind<Sigmoid>(),
        Table::template kind<Tanh1>(),     Table::template kind<Mish>(),
        Table::template kind<Hardswish>(), Table::template kind<LeakyRelu>(),
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

// The entries of Kernels<T>.
inline void act_forward_f32(const ActivationParams &p, const ActForwardArgs<float> &a) {
    act_forward<F32>(p, a);
}
inline void act_forward_f64(const ActivationParams &p, const ActForwardArgs<double> &a) {
    act_forward<F64>(p, a);
}
inline void act_backward_f32(const ActivationParams &p, const ActBackwardArgs<float> &a) {
    act_backward<F32>(p, a);
}
inline void act_backward_f64(const ActivationParams &p, const ActBackwardArgs<double> &a) {
    act_backward<F64>(p, a);
}

} // namespace
} // namespace ffncore
