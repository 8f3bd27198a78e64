// Fills one ISA's table from the bodies. Included last by each isa_<name>.cpp, after its
// vocabulary.
//
// Tile heights per width in vectors. 32 registers (AVX-512): 14 x 2, 6 x 4, 8 x 3; 16 registers
// (AVX2): 6 x 2. One vector: 8 or 10 rows, enough to hide a latency of 4 on two fma ports; there
// the load ports are the limit. The widest tile must not be the highest of those a walk mixes: its
// rows are taken for the narrower last panel, too.
#pragma once
#include "math.inl"

#include "activation.inl"
#include "gemm.inl"
#include "pack.inl"

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

template <class F, int... Rows> void fill_kernels(Kernels<typename F::T> &k) {
    constexpr int rows[] = {Rows...};
    static_assert(((rows[sizeof...(Rows) - 1] <= Rows) && ...));
    k.width = F::W;
    k.vectors = sizeof...(Rows);
    for (int v = 0; v < k.vectors; ++v) k.max_rows[v + 1] = rows[v];
    FillTiles<F, 1, rows[0]>::fill(k);
    FillTiles<F, 2, rows[1]>::fill(k);
    if constexpr (sizeof...(Rows) == 4) {
        FillTiles<F, 3, rows[2]>::fill(k);
        FillTiles<F, 4, rows[3]>::fill(k);
    }
    FillTurned<F, kMaxTurned>::fill(k);
    k.pack = pack<F>;
    k.pack_tiles = pack_tiles<F>;
    k.store = store<F>;
    k.sum_along = sum_along<F>;
    k.act_forward = act_forward<F>;
    k.act_backward = act_backward<F>;
    // Where a vector is one 32-byte group, a tile of two is gate and up already.
    if constexpr (F::W * sizeof(typename F::T) > kGroupBytes) k.split_groups = split_groups<F>;
}

template <int... Rows> const KernelTable *make_table(KernelTable &table, const char *name) {
    table.name = name;
    fill_kernels<F32, Rows...>(table.f32);
    fill_kernels<F64, Rows...>(table.f64);
    return &table;
}

} // namespace
} // namespace ffncore
