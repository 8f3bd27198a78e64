// Fills the kernel table of one instruction set with the kernels of the other .inl files. Each
// isa_<name>.cpp includes this file last, after its vocabulary (vec_<isa>.h).
//
// The template parameters Rows... are the heights of tiles of 1, 2, 3 and 4 vectors. 32 registers
// (AVX-512) have room for 14 x 2, 8 x 3 and 6 x 4; 16 registers (AVX2) for 6 x 2. Tiles of one
// vector have 8 or 10 rows, enough to hide a latency of 4 cycles on two fma ports; there the load
// ports are the limit. The widest tile must not be higher than the narrower ones: its height is
// also used for the last panel, which may be narrower.
#pragma once
#include "math.inl"

#include "activation.inl"
#include "norm.inl"
#include "pack.inl"
#include "route.inl"

#include "expand.inl"
#include "factors.inl"
#include "gemm.inl"
#include "turned.inl"

namespace ffncore {
namespace {

template <class F> void split_groups(typename F::T *c, int64_t ldc, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r, c += ldc) {
        typename F::V gate, up;
        F::deinterleave(F::load(c), F::load(c + F::W), gate, up);
        F::store(c, gate);
        F::store(c + F::W, up);
    }
}

template <class F, class C, Order order, int NV, int Rows, class Tiles>
void fill_rounded(Tiles &rounded) {
    for_heights<Rows>([&](auto height) {
        rounded[NV][height.kValue] = tile<F, typename F::T, order, NV, height.kValue, kRows, C>;
    });
}

// For arrays of S, which is T or a 16-bit type.
template <class F, class S, Order order, int... Rows> void fill_access(Access<typename F::T> &a) {
    constexpr int rows[] = {Rows...}, widest = sizeof...(Rows);
    a.pack = pack<F, S>;
    a.pack_tiles = pack_tiles<F, S>;
    a.store = store<F, S>;
    a.sum_along = sum_along<F, S>;
    if constexpr (order == kRising || sizeof(S) == 2) // bfloat16's weights are bfloat16
        for_heights<kMaxTurned>(
            [&](auto height) { a.turned[height.kValue] = turned<F, S, order, height.kValue>; });
    if constexpr (order == kRising || sizeof(S) == 2)
        // 8 columns and the sums of gate and up, which take two vectors each in bfloat16, fill 32
        // registers. With 16 registers a few sums are in L1.
        for_heights<kLaneStep<S> == 1 && widest == 4 ? kMaxAcross : 4>([&](auto height) {
            a.across[0][height.kValue] = across<F, S, order, height.kValue, 1>;
            a.across[1][height.kValue] = across<F, S, order, height.kValue, 2>;
        });
    if constexpr (sizeof(S) == 2) {
        a.widen = widen<F, S>;
        a.narrow = narrow<F, S>;
        if constexpr (kLaneStep<S> == 1) a.part = part_pairs;
        for_heights<rows[1]>([&](auto height) {
            a.tile[0][height.kValue] = tile<F, S, order, 2, height.kValue>;
            a.tile[1][height.kValue] = tile<F, S, order, 2, height.kValue, kPanel>;
            a.tile[2][height.kValue] = tile<F, S, order, 2, height.kValue, kKeptPanel>;
        });
        fill_groups<F, S, order, kPanel, rows[1]>(a.group);
        fill_rounded<F, S, order, 2, rows[1]>(a.rounded);
        fill_rounded<F, S, order, widest, rows[widest - 1]>(a.rounded);
    }
}

template <class F, Order order, int NV, int Rows> void fill_tiles(Kernels<typename F::T> &k) {
    k.max_rows[NV] = Rows;
    for_heights<Rows>([&](auto height) {
        k.tile[NV][height.kValue] = tile<F, typename F::T, order, NV, height.kValue>;
    });
}

template <class F, Order order, int... Rows> void fill_kernels(Kernels<typename F::T> &k) {
    constexpr int rows[] = {Rows...};
    static_assert(((rows[sizeof...(Rows) - 1] <= Rows) && ...));
    k.width = F::W;
    k.vectors = sizeof...(Rows);
    fill_tiles<F, order, 1, rows[0]>(k);
    fill_tiles<F, order, 2, rows[1]>(k);
    if constexpr (sizeof...(Rows) == 4) {
        fill_tiles<F, order, 3, rows[2]>(k);
        fill_tiles<F, order, 4, rows[3]>(k);
    }
    if constexpr (order == kRising) fill_groups<F, typename F::T, order, kRows, rows[1]>(k.group);
    k.stream = stream;
    k.drain = F32::drain;
    k.act_forward = act_forward<F>;
    k.act_backward = act_backward<F>;
    k.scale = scale<F>;
    k.combine = combine<F>;
    k.dot_groups = dot_groups<F>;
    k.route = route<F>;
    k.route_backward = route_backward<F>;
    k.norm_forward = norm_forward<F>;
    k.norm_backward = norm_backward<F>;
    // Where a vector is one 32-byte group, a tile of two vectors is gate and up already.
    if constexpr (F::W * sizeof(typename F::T) > kGroupBytes) k.split_groups = split_groups<F>;
    if constexpr (order == kRising && sizeof(typename F::T) == 4) {
        constexpr int vectors = sizeof...(Rows) == 4 ? kFewVectors : 2; // with few registers, 2
        k.expand = ByFormat<F, Expand>::run;
        k.few_vectors = vectors;
        for_heights<kMaxFew>([&](auto height) {
            k.few[height.kValue] = ByFormat<F, Few<height.kValue, vectors>::template Of>::run;
        });
    }
    if constexpr (sizeof(typename F::T) == 8) {
        fill_access<F, double, order, Rows...>(k.of[kFloat64]);
    } else {
        fill_access<F, float, order, Rows...>(k.of[kFloat32]);
        fill_access<F, Bf16, order, Rows...>(k.of[kBfloat16]);
        if constexpr (order == kOddFirst)
            k.round = round_bf16<F>;
        else
            fill_access<F, F16, order, Rows...>(k.of[kFloat16]);
    }
}

template <int... Rows> const KernelTable *make_table(KernelTable &table, const char *name) {
    table.name = name;
    fill_kernels<F32, kRising, Rows...>(table.f32);
    fill_kernels<F32, kOddFirst, Rows...>(table.bf16);
    fill_kernels<F64, kRising, Rows...>(table.f64);
    return &table;
}

} // namespace
} // namespace ffncore
