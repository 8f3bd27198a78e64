// The micro-kernel, written once for every ISA and dtype.
//
//   c [MR][NV * W] (+)= sum_k A(r, k) * b[k][NV * W],   k < depth <= 512
//
// MR * NV accumulators stay in registers; each step of k loads NV vectors of b and broadcasts MR
// elements of A. Vectors run over outputs, never over k, so each output is one fma chain in
// increasing k: the contract's block, with the same bits for every tile shape. 14 x 2 and 6 x 4
// AVX-512 vectors use 28 and 24 of 32 accumulators and need 16 and 10 loads for 28 and 24 fma: the
// two fma ports are the limit, not the two load ports. AVX2 has 16 registers: 6 x 2.
// A has two base pointers, half of the rows each: gate and up share a tile, and seven row offsets
// fit the address registers.
#pragma once

namespace ffncore {
namespace {

template <class F, int NV, int MR> void tile(const TileArgs<typename F::T> &t) {
    using T = typename F::T;
    using V = typename F::V;
    constexpr int half = (MR + 1) / 2;
    // Prefetches come after every 16 k: 16 floats are one cache line of a row of A.
    constexpr int64_t kRun = 16;
    V acc[MR][NV];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
            acc[r][v] = F::zero();

    const int64_t row = t.row, step = t.step, ldb = t.ldb;
    const T *b = t.b;
    const char *prefetch = t.prefetch;
    int64_t groups = t.groups;
    for (int64_t k0 = 0, s = 0; k0 < t.depth; k0 += t.segment, ++s) {
        const T *a0 = t.a0 + s * t.jump, *a1 = t.a1 + s * t.jump;
        int64_t left = t.depth - k0 < t.segment ? t.depth - k0 : t.segment;
        while (left > 0) {
            const int64_t run = left < kRun ? left : kRun;
#pragma GCC unroll 4
            for (int64_t k = 0; k < run; ++k) {
                V bv[NV];
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v)
                    bv[v] = F::load(b + v * F::W);
#pragma GCC unroll 16
                for (int r = 0; r < MR; ++r) {
                    const V av = F::set1(r < half ? a0[r * row] : a1[(r - half) * row]);
#pragma GCC unroll 4
                    for (int v = 0; v < NV; ++v)
                        acc[r][v] = F::fma(av, bv[v], acc[r][v]);
                }
                a0 += step;
                a1 += step;
                b += ldb;
            }
            left -= run;
            if (groups > 0) {
                const char *line = prefetch;
                for (int64_t i = 0; i < t.lines; ++i, line += t.line_stride)
                    __builtin_prefetch(line, 0, 2);
                prefetch += t.group_stride;
                --groups;
            }
        }
    }

    T *c = t.c;
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r, c += t.ldc)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            const V sum = t.add ? F::add(F::load(c + v * F::W), acc[r][v]) : acc[r][v];
            F::store(c + v * F::W, sum);
        }
}

// Fills table[NV][1..MR].
template <class F, int NV, int MR> struct FillTiles {
    static void fill(Kernels<typename F::T> &k) {
        k.tile[NV][MR] = tile<F, NV, MR>;
        FillTiles<F, NV, MR - 1>::fill(k);
    }
};
template <class F, int NV> struct FillTiles<F, NV, 0> {
    static void fill(Kernels<typename F::T> &) {}
};

} // namespace
} // namespace ffncore
