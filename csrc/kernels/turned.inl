// A few tokens times weights that are transposed ("turned") in registers. Nothing is stored in
// between, so reading the weights stays the limit.
//
//   turned   c [MR][W] (+)= sum_k a[r][k] * b[i][k]        raw weights, whose rows are contiguous
//   in k across   c [MR][W] (+)= sum_u a[r][u] * panel[i][u]    packed weights, summed over their
//   outputs
//
// across serves the backward pass: dh sums down over d, and dx sums gate and up over the hidden
// units u. Both terms of a gated layer take one pass, as each cache line of a packed panel has gate
// and up. The chains of fma are those of a tile (gemm.inl): one for each output and block.
#pragma once

namespace ffncore {
namespace {

// A few tokens (MR) times W raw rows of weights. W x W elements of b are transposed in registers,
// then used as W steps of k: 64 shuffles for a square of 16 x 16 allow 16 bytes a cycle, which is
// more than L3 delivers.
template <class F, class S, Order order, int MR> void turned(const TurnedArgs<typename F::T> &t) {
    using T = typename F::T;
    using V = typename F::V;
    constexpr int W = F::W;
    constexpr int kFlip = order == kOddFirst ? 1 : 0;
    const S *b = (const S *)t.b;
    V acc[MR];
#pragma GCC unroll 10
    for (int r = 0; r < MR; ++r) acc[r] = F::zero();
    for (int64_t k = 0; k < t.depth; k += W) {
        const int64_t n = t.depth - k < W ? t.depth - k : W;
        V v[W];
        if (n == W && t.outputs >= W) {
            const S *from = b + k;
            F::load_transposed(from, t.ldb, v);
            for (int i = 0; i < W; ++i) __builtin_prefetch(from + t.ahead + i * t.ldb, 0, 3);
        } else {
            for (int i = 0; i < W; ++i)
                v[i] = i < t.outputs ? F::load_n(b + i * t.ldb + k, n) : F::zero();
            F::transpose(v);
        }
        const T *a = t.a + k;
        if (n == W) {
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
#pragma GCC unroll 10
                for (int r = 0; r < MR; ++r)
                    acc[r] = F::fma(F::set1(a[r * t.row + (i ^ kFlip)]), v[i ^ kFlip], acc[r]);
        } else {
            for (int i = 0; i < (n + kFlip) / (1 + kFlip) * (1 + kFlip); ++i)
                for (int r = 0; r < MR; ++r) // a term beyond the end is +0 * +0
                    acc[r] = (i ^ kFlip) < n
                                 ? F::fma(F::set1(a[r * t.row + (i ^ kFlip)]), v[i ^ kFlip], acc[r])
                                 : F::add(acc[r], F::zero());
        }
    }
#pragma GCC unroll 10
    for (int r = 0; r < MR; ++r) {
        T *c = t.c + r * t.ldc;
        F::store(c, t.add ? F::add(F::load(c), acc[r]) : acc[r]);
    }
}

// A few tokens (MR) times one packed panel, for `steps` rows of it. Squares of W rows x 32 bytes of
// columns are transposed in registers. With two Sides, such groups of columns alternate between
// gate and up, which have sums of their own. A panel is read from its first row to its last, in the
// order of memory, and the sums of a few rows at a time are in registers meanwhile.
// bfloat16 lies in pairs of rows. A pair is moved as one number, and widened afterwards: a vector
// of sums of even rows is followed by that of the odd rows.
template <class T, class S> struct Moved {
    using Type = S;
};
template <class T> struct Moved<T, Bf16> {
    using Type = T;
};
template <class F, class S, Order order, int MR, int Sides>
void across(const AcrossArgs<typename F::T> &t) {
    using T = typename F::T;
    using V = typename F::V;
    constexpr bool paired = kLaneStep<S> == 2;
    constexpr int W = F::W, NV = paired ? 2 : 1, kFlip = order == kOddFirst ? 1 : 0;
    constexpr int kColumns = kGroupBytes / (int)sizeof(T), kLine = kPanelBytes / (int)sizeof(T);
    const auto *rows = (const typename Moved<T, S>::Type *)t.panel;
    for (int64_t step = 0; step < t.steps; step += NV * W, rows += W * kLine) {
        V acc[Sides][NV][MR];
        const auto sums = [&](int side, int v, int r) __attribute__((always_inline)) {
            return t.sums + side * t.side + r * t.ld + step + v * W;
        };
        const auto each = [](const auto &use) __attribute__((always_inline)) {
#pragma GCC unroll 2
            for (int side = 0; side < Sides; ++side)
#pragma GCC unroll 2
                for (int v = 0; v < NV; ++v)
#pragma GCC unroll 8
                    for (int r = 0; r < MR; ++r) use(side, v, r);
        };
        each([&](int side, int v, int r) __attribute__((always_inline)) {
            acc[side][v][r] = t.resumes ? F::load(sums(side, v, r)) : F::zero();
        });
        const auto add = [&](int side, int r, T a, V v) __attribute__((always_inline)) {
            const V av = F::set1(a);
            if constexpr (paired) {
                acc[side][0][r] = F::fma(av, F::even_of(v), acc[side][0][r]);
                acc[side][1][r] = F::fma(av, F::odd_of(v), acc[side][1][r]);
            } else {
                acc[side][0][r] = F::fma(av, v, acc[side][0][r]);
            }
        };
        for (int64_t u = 0; u < t.units; u += kColumns)
#pragma GCC unroll 2
            for (int side = 0; side < Sides; ++side) {
                const auto *from = rows + Sides * u + side * kColumns;
                V v[kColumns];
                F::load_columns(from, kLine, v);
                if (t.ahead && ((uintptr_t)from & 63) == 0) // each cache line once
                    for (int i = 0; i < W; ++i)
                        __builtin_prefetch((const char *)(from + i * kLine) + t.ahead, 0, 2);
                const T *a = t.a[side] + u;
                const int64_t n = t.units - u;
                if (n >= kColumns) {
#pragma GCC unroll 8
                    for (int i = 0; i < kColumns; ++i)
#pragma GCC unroll 8
                        for (int r = 0; r < MR; ++r)
                            add(side, r, a[r * t.row + (i ^ kFlip)], v[i ^ kFlip]);
                    continue;
                }
                for (int i = 0; i < (n + kFlip) / (1 + kFlip) * (1 + kFlip); ++i)
                    for (int r = 0; r < MR; ++r) { // a term beyond the end is +0 * +0
                        const bool there = (i ^ kFlip) < n;
                        add(side, r, there ? a[r * t.row + (i ^ kFlip)] : T(0),
                            there ? v[i ^ kFlip] : F::zero());
                    }
            }
        each([&](int side, int v, int r)
                 __attribute__((always_inline)) { F::store(sums(side, v, r), acc[side][v][r]); });
    }
}

} // namespace
} // namespace ffncore
