// The micro-kernel, written once for every instruction set and dtype.
//
//   c [MR][NV * W] (+)= sum_k A(r, k) * b[k][NV * W],   block by block
//
// MR * NV accumulators stay in registers. Each step of k loads NV vectors of b and broadcasts MR
// elements of A. Vectors run over outputs, never over k. So each output is one chain of fma, in one
// order of k, within a block of 512, as the arithmetic contract says, and tiles of every shape give
// the same bits. A call may run through several blocks, since starting a call costs as much as 2 to
// 4 % of 512 steps.
// Tiles of 14 x 2 and 6 x 4 AVX-512 vectors use 28 and 24 of 32 registers and need 16 and 10 loads
// for 28 and 24 fma. So the two fma ports are the limit, not the two load ports. AVX2, with 16
// registers, has 6 x 2.
// A few rows take the tiles of G panels side by side. Each panel is a stream of its own from
// memory, and more chains of fma hide their latency. 16-bit weights are widened in registers. That
// takes 2 instructions for a vector of two steps of a packed panel, which do not show where a few
// tokens wait for memory. With many tokens, the first tile stores the widened numbers for the
// others, as the store port is idle anyway. A 16-bit gradient is rounded before it is stored. A has
// two base pointers with half of the rows each, so that gate and up can share a tile, and seven row
// offsets fit in the address registers.
#pragma once

namespace ffncore {
namespace {

// The order of a sum: 0, 1, 2, 3, ...; or with the odd term of each pair first: 1, 0, 3, 2, ...
enum Order { kRising, kOddFirst };

template <int N> struct Constant {
    static constexpr int kValue = N;
};

// Terms of the sum in one step of k: 2 where an element is a pair.
template <class F> constexpr int64_t kTerms = 1;

// What a panel of B is: rows of S; a packed panel; a packed panel whose widened numbers are stored
// for other tiles.
enum Form { kRows, kPanel, kKeptPanel };

// Stores a row of sums to whole lines of memory, past the caches.
template <class F, int NV, class C> inline void stream_row(C *c, const typename F::V (&row)[NV]) {
    constexpr int together = sizeof(C) == sizeof(typename F::T) ? 1 : 2; // vectors of a line
    static_assert(NV % together == 0);
#pragma GCC unroll 4
    for (int v = 0; v < NV; v += together)
        if constexpr (together == 1)
            F::stream(c + v * F::W, row[v]);
        else
            F::stream(c + v * F::W, row[v], row[v + 1]);
}

// S is the type that B holds: T or a 16-bit type. C is T, or the 16-bit type of a gradient that
// sums over one block. G panels of packed weights are read side by side.
template <class F, class S, Order order, int NV, int MR, Form form = kRows, class C = typename F::T,
          int G = 1>
void tile(const TileArgs<typename F::T> &t) {
    using T = typename F::T;
    using V = typename F::V;
    constexpr int half = (MR + 1) / 2;
    constexpr int64_t kRun = 16; // floats in a cache line: a run of k is one line of a row of A
    // Steps of k at a time: two where the order of the sum goes by pairs, or B holds 16 bits.
    constexpr int kTogether = order == kOddFirst || sizeof(S) == 2 ? 2 : 1;
    // Tiles that a packed panel has columns for.
    constexpr int kShare = kPanelBytes / (int)sizeof(T) / (NV * F::W);
    const int64_t row = t.row, step = t.step, ldb = t.ldb;
    const S *b = (const S *)t.b;
    // Without a prefetch address the loop prefetches c, which is needed soon anyway; so it has no
    // branch.
    const char *prefetch = t.prefetch ? t.prefetch : (const char *)t.c;
    const int64_t fetch_step = t.prefetch ? t.prefetch_step : 0;
    const int64_t fetch_jump = t.prefetch ? t.prefetch_jump : 0;
    const int64_t fetch_run = t.prefetch ? t.prefetch_run - kRun * fetch_step : 0;
    T *keep = t.keep;
    bool add = t.add;
    const T *start = t.start;
    int64_t k0 = 0, s = 0;
    do {
        V acc[G * MR][NV];
#pragma GCC unroll 16
        for (int r = 0; r < G * MR; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] = F::zero();
        if (G == 1 && start)
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) acc[r][v] = F::load(start + r * t.ldc + v * F::W);

        constexpr int64_t block = kBlock / kTerms<F>;
        const int64_t end = t.depth - k0 < block ? t.depth : k0 + block;
        for (; k0 < end; k0 += t.segment, ++s) {
            const T *a0 = t.a0 + s * t.jump, *a1 = t.a1 + s * t.jump;
            const int64_t n = end - k0 < t.segment ? end - k0 : t.segment;
            // Adds the terms of this step (ahead = 0) or of the next one (ahead = 1). The next step
            // has pointers of its own, which are hidden from the compiler; so both steps use the
            // same row offsets, which are few enough to stay in registers.
            const auto terms = [&](auto ahead) __attribute__((always_inline)) {
                constexpr int next = ahead.kValue;
                const T *a0_at = a0 + next * step, *a1_at = a1 + next * step;
                if (next) __asm__("" : "+r"(a0_at), "+r"(a1_at));
                const auto a_at = [&](int r) __attribute__((always_inline)) {
                    return F::set1(r < half ? a0_at[r * row] : a1_at[(r - half) * row]);
                };
                if constexpr (G > 1) {
                    V av[MR];
#pragma GCC unroll 16
                    for (int r = 0; r < MR; ++r) av[r] = a_at(r);
#pragma GCC unroll 16
                    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
                        for (int v = 0; v < NV; ++v) {
                            const S *at =
                                b + g / kShare * t.panel +
                                (g % kShare * NV + v) * F::W * (form == kRows ? 1 : kLaneStep<S>);
                            V bv;
                            if constexpr (form == kRows)
                                bv = F::load(at + next * ldb);
                            else
                                bv = load_step<F, next>(at);
#pragma GCC unroll 16
                            for (int r = 0; r < MR; ++r)
                                acc[g * MR + r][v] = F::fma(av[r], bv, acc[g * MR + r][v]);
                        }
                    return;
                }
                V bv[NV];
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) {
                    if constexpr (form == kRows)
                        bv[v] = F::load(b + next * ldb + v * F::W);
                    else
                        bv[v] = load_step<F, next>(b + v * F::W * kLaneStep<S>);
                    if (form == kKeptPanel) F::store(keep + (next * NV + v) * F::W, bv[v]);
                }
#pragma GCC unroll 16
                for (int r = 0; r < MR; ++r) {
                    const V av = a_at(r);
#pragma GCC unroll 4
                    for (int v = 0; v < NV; ++v) acc[r][v] = F::fma(av, bv[v], acc[r][v]);
                }
            };
            const auto fetch = [&]() __attribute__((always_inline)) {
                if constexpr (G > 1) {
                    if (t.ahead)
#pragma GCC unroll 16
                        for (int g = 0; g < G; g += kShare) {
                            const S *line = b + g / kShare * t.panel;
                            __builtin_prefetch((const char *)line + t.ahead, 0, 2);
                            __builtin_prefetch((const char *)line + t.ahead + 64, 0, 2);
                        }
                    return;
                }
                __builtin_prefetch(prefetch, 0, 2);
                if (NV == 2) __builtin_prefetch(prefetch + 64, 0, 2);
                prefetch += fetch_step;
            };
            const auto advance = [&](int steps) __attribute__((always_inline)) {
                a0 += steps * step;
                a1 += steps * step;
                b += steps * ldb;
                if (form == kKeptPanel) keep += steps * NV * F::W;
            };
            const auto steps = [&]() __attribute__((always_inline)) {
                if constexpr (kTogether == 1) {
                    terms(Constant<0>{});
                } else if (order == kRising) {
                    terms(Constant<0>{});
                    terms(Constant<1>{});
                } else {
                    terms(Constant<1>{});
                    terms(Constant<0>{});
                }
                fetch();
                if (kTogether == 2 && sizeof(S) == sizeof(T)) fetch();
                if (kTogether == 2 && sizeof(S) < sizeof(T)) prefetch += fetch_step; // one for both
                advance(kTogether);
            };
            for (int64_t run = n / kRun; run > 0; --run) {
#pragma GCC unroll 4
                for (int k = 0; k < kRun; k += kTogether) steps();
                prefetch += fetch_run;
            }
            for (int64_t k = n % kRun; k >= kTogether; k -= kTogether) steps();
            if (kTogether == 2 && n % 2) {
                if (order == kOddFirst) // the missing odd term is +0 * +0
#pragma GCC unroll 16
                    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
                        for (int v = 0; v < NV; ++v) acc[r][v] = F::add(acc[r][v], F::zero());
                terms(Constant<0>{});
                fetch();
                advance(1);
            }
            prefetch += fetch_jump;
        }

        C *c = (C *)t.c;
        if constexpr (sizeof(S) == sizeof(T) && G == 1)
            if (t.stream) {
#pragma GCC unroll 16
                for (int r = 0; r < MR; ++r, c += t.ldc) stream_row<F>(c, acc[r]);
                return;
            }
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g, c = (C *)t.c + g * t.c_panel)
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r, c += t.ldc)
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) {
                    const V mine = acc[g * MR + r][v];
                    F::store(c + v * F::W, add ? F::add(F::load(c + v * F::W), mine) : mine);
                }
        add = true;
    } while (k0 < t.depth);
}

// Calls fill(height) for the heights 1 to Most.
template <int Most, class Fill> inline void for_heights(const Fill &fill) {
    if constexpr (Most > 0) {
        fill(Constant<Most>{});
        for_heights<Most - 1>(fill);
    }
}

// Groups of G tiles of two vectors, with no more accumulators than one tile of `Most` rows. Where a
// packed panel has the columns of two tiles (AVX2), a group takes whole panels, because each of
// their cache lines would be read twice otherwise. Groups of 5 and 7 would only serve what others
// leave.
template <class F, class S, Order order, Form form, int Most>
void fill_groups(GroupTiles<typename F::T> &group) {
    constexpr int share = kPanelBytes / (int)sizeof(typename F::T) / (2 * F::W);
    for_heights<kGroupRows>([&](auto rows) {
        for_heights<kMaxGroup>([&](auto panels) {
            constexpr int MR = rows.kValue, G = panels.kValue;
            if constexpr (G > 1 && G % share == 0 && G * MR <= Most && G != 5 && G != 7)
                group[G][MR] = tile<F, S, order, 2, MR, form, typename F::T, G>;
        });
    });
}

} // namespace
} // namespace ffncore
