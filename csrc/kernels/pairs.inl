// Operands for an instruction that takes pairs of bfloat16. A pair is the terms k and k + 1, k
// even, in the place of a float, with the odd term in its upper half. A missing odd term is +0.
//
//   pack_pairs        dst[k / 2][r] <- src(r, k), src(r, k + 1)
//   pack_pair_tiles   dst[tile][k / 2][rows of the tile] <- the same
//   join_rows         dst[r / 2][columns] <- numbers of rows r and r + 1, rounded
//
// As in pack.inl, the cases where k or r is contiguous in memory are fast, and others take a plain
// loop. Where k is contiguous, pairs lie in memory already and are transposed like floats. Where r
// is contiguous, two steps are interleaved.
#pragma once

namespace ffncore {
namespace {

inline float pair_at(const Bf16 *src, int64_t step, bool both) {
    return bits_float((uint32_t)src->bits | (both ? (uint32_t)src[step].bits << 16 : 0));
}

// width is a multiple of a vector.
template <class F>
void pack_pairs(const void *from, int64_t row, int64_t step, int64_t rows, int64_t depth,
                typename F::T *dst, int64_t ld, int64_t width) {
    using V = typename F::V;
    constexpr int W = F::W;
    const Bf16 *src = (const Bf16 *)from;
    if (row == 1) {
        for (int64_t k = 0; k < depth; k += 2, dst += ld) {
            const Bf16 *even = src + k * step;
            const bool both = k + 1 < depth;
            for (int64_t r = 0; r < rows; r += kLine<Bf16>) {
                __builtin_prefetch(even + kAhead * step + r);
                __builtin_prefetch(even + (kAhead + 1) * step + r);
            }
            for (int64_t r = 0; r < width; r += W) {
                const int64_t n = rows - r < 0 ? 0 : smaller(rows - r, W);
                const V a = n == W ? F::load(even + r) : n ? F::load_n(even + r, n) : F::zero();
                const V b = !both || n == 0 ? F::zero()
                            : n == W        ? F::load(even + step + r)
                                            : F::load_n(even + step + r, n);
                F::store(dst + r, F::pair(a, b));
            }
        }
        return;
    }
    if (step == 1) {
        for (int64_t r = 0; r < width; r += W)
            for (int64_t k = 0; k < depth; k += 2 * W) {
                const int64_t n = smaller(depth - k, 2 * W);
                V v[W];
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) {
                    const Bf16 *numbers = src + (r + i) * row + k;
                    __builtin_prefetch(numbers + kLine<Bf16>);
                    v[i] = r + i >= rows ? F::zero() : F::load_pairs(numbers, n);
                }
                F::transpose(v);
#pragma GCC unroll 16 // the indices are constants then, so v stays in registers
                for (int i = 0; i < W; ++i)
                    if (2 * i < n) F::store(dst + (k / 2 + i) * ld + r, v[i]);
            }
        return;
    }
    for (int64_t k = 0; k < depth; k += 2, dst += ld)
        for (int64_t r = 0; r < width; ++r)
            dst[r] = r < rows ? pair_at(src + r * row + k * step, step, k + 1 < depth) : 0;
}

template <class F>
void pack_pair_tiles(const void *array, int64_t row, int64_t step, int64_t rows, int64_t depth,
                     typename F::T *dst, int64_t tile) {
    constexpr int kStep = kTileStride;
    const Bf16 *src = (const Bf16 *)array;
    const int64_t size = (depth + 1) / 2 * kStep + kTileGap;
    // One pass over k for all tiles, so that a row of src is read once, in order.
    for (int64_t k = 0; k < depth; k += 2, dst += kStep) {
        const Bf16 *from = src + k * step;
        const bool both = k + 1 < depth;
        int64_t r = 0, at = 0;
        if (row == 1 && tile <= kStep) {
            if (k + kAhead + 1 < depth)
                for (int64_t i = 0; i < rows + kLine<Bf16> - 1; i += kLine<Bf16>) {
                    const Bf16 *ahead = from + kAhead * step + smaller(i, rows - 1);
                    __builtin_prefetch(ahead);
                    __builtin_prefetch(ahead + step);
                }
            for (; r + kStep <= rows; r += tile, at += size) { // a whole stride can be read
                const auto odd = both ? F::load_n(from + step + r, kStep) : F::zero();
                F::store_n(dst + at, F::pair(F::load_n(from + r, kStep), odd), kStep);
            }
        }
        for (; r < rows; r += tile, at += size)
            for (int64_t i = 0; i < smaller(rows - r, tile); ++i)
                dst[at + i] = pair_at(from + (r + i) * row, step, both);
    }
}

// Stores rows [r0, r0 + n) of numbers as pairs of rows, dst[r / 2]. Where only one row of a pair is
// among them, the other half of the pair is left as it is; but with `last`, an even last row is
// paired with +0.
template <class F>
void join_rows(const typename F::T *numbers, int64_t ld, int64_t r0, int64_t n, int64_t cols,
               bool last, typename F::T *dst, int64_t dst_ld) {
    for (int64_t c = 0; c < cols; c += F::W) {
        int64_t r = r0;
        const auto number = [&](int64_t row) { return F::load(numbers + (row - r0) * ld + c); };
        const auto to = [&] { return (Bf16 *)(dst + r / 2 * dst_ld + c); };
        if (r % 2 && n > 0) {
            F::store_odd(to(), number(r));
            ++r;
        }
        for (; r + 1 < r0 + n; r += 2) F::store_pairs(to(), number(r), number(r + 1));
        if (r >= r0 + n) continue;
        if (last)
            F::store_pairs(to(), number(r), F::zero());
        else
            F::store_even(to(), number(r));
    }
}

} // namespace
} // namespace ffncore
