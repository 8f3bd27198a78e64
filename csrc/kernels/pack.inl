// Moves matrices into panels and out of tiles, and sums along rows:
//
//   pack        dst[k][r] <- src(r, k): rows become columns; zero beyond the last row
//   pack_tiles  dst[tile][k][rows of the tile] <- src(r, k)
//   store       out(r, c) (+)= tile[r][c] + bias
//   sum_along   sums[r] += m(r, 0) + m(r, 1) + ..., in this order
//   widen       dst[k][columns] <- a packed panel of 16-bit elements; narrow does the reverse
//   part_pairs  a packed panel <- pairs of steps
//   stream      copies to memory, past the caches
//   round_bf16  rounds a matrix to bfloat16, in place
//
// S is the type that the array holds: T, or a 16-bit type that is converted to T and back, with one
// rounding. There are two fast cases, by which index is contiguous in memory: a copy of vectors, or
// transposes of W x W elements in registers. All other strides take a plain loop.
#pragma once

namespace ffncore {
namespace {

template <class T> inline int64_t smaller(int64_t a, T b) { return a < b ? a : b; }

// Rows of src that lie far apart are not seen by the hardware prefetcher. Prefetching 8 rows ahead
// covers the latency of L3.
constexpr int64_t kAhead = 8;
template <class T> constexpr int64_t kLine = 64 / sizeof(T);

template <class F, class S>
void pack(const void *from, int64_t row, int64_t step, int64_t rows, int64_t depth,
          typename F::T *dst, int64_t ld, int64_t width) {
    using V = typename F::V;
    constexpr int W = F::W;
    const S *src = (const S *)from;
    if (row == 1 || (step != 1 && rows == 0)) {
        const int64_t whole = smaller(rows, width) / W * W;
        for (int64_t k = 0; k < depth; ++k, src += step, dst += ld) {
            for (int64_t r = 0; r < rows; r += kLine<S>)
                __builtin_prefetch(src + kAhead * step + r);
#pragma GCC unroll 4
            for (int64_t r = 0; r < whole; r += W) F::store(dst + r, F::load(src + r));
            for (int64_t r = whole; r < width; r += W) {
                const int64_t have = rows - r;
                const V v = have > 0 ? F::load_n(src + r, smaller(have, W)) : F::zero();
                F::store_n(dst + r, v, smaller(width - r, W));
            }
        }
        return;
    }
    if (step == 1) {
        for (int64_t r = 0; r < width; r += W) {
            const int to = (int)smaller(width - r, W);
            const S *from = src + r * row;
            typename F::T *out = dst + r;
            int64_t k = 0;
            for (; k + W <= depth && to == W && r + W <= rows; k += W, from += W) {
                const S *next = from + 3 * kLine<S>; // 3 lines of W rows: memory's latency
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i, next += row) __builtin_prefetch(next);
                V v[W];
                F::load_transposed(from, row, v);
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i, out += ld) F::store(out, v[i]);
            }
            for (; k < depth; k += W, from += W) {
                const int n = (int)smaller(depth - k, W);
                V v[W];
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i)
                    v[i] = r + i < rows ? F::load_n(from + i * row, n) : F::zero();
                F::transpose(v);
#pragma GCC unroll 16 // the indices are constants then, so v stays in registers
                for (int i = 0; i < W; ++i, out += ld)
                    if (i < n) F::store_n(out, v[i], to);
            }
        }
        return;
    }
    for (int64_t k = 0; k < depth; ++k)
        for (int64_t r = 0; r < width; ++r)
            dst[k * ld + r] = r < rows ? number(src[r * row + k * step]) : 0;
}

// Copies kTileStride elements, one k of a tile.
template <class F, class S> inline void copy_stride(const S *from, typename F::T *to) {
    if constexpr (sizeof(S) == sizeof *to)
        __builtin_memcpy(to, from, kTileStride * sizeof *to);
    else if constexpr (F::W == kTileStride)
        F::store(to, F::load(from));
    else
        F::store_n(to, F::load_n(from, kTileStride), kTileStride);
}

template <class F, class S>
void pack_tiles(const void *array, int64_t row, int64_t step, int64_t rows, int64_t depth,
                typename F::T *dst, int64_t tile) {
    constexpr int kStep = kTileStride;
    const S *src = (const S *)array;
    const int64_t size = depth * kStep + kTileGap;
    if (row != 1 || tile > kStep) {
        for (int64_t r0 = 0; r0 < rows; r0 += tile, dst += size)
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t r = 0; r < smaller(rows - r0, tile); ++r)
                    dst[k * kStep + r] = number(src[(r0 + r) * row + k * step]);
        return;
    }
    // One pass over k for all tiles, so that a row of src is read once, in order.
    for (int64_t k = 0; k < depth; ++k, dst += kStep) {
        const S *from = src + k * step;
        if (k + kAhead < depth)
            for (int64_t r = 0; r < rows + kLine<S> - 1; r += kLine<S>)
                __builtin_prefetch(from + kAhead * step + smaller(r, rows - 1));
        int64_t r = 0, at = 0;
        for (; r + kStep <= rows; r += tile, at += size) // a whole stride can be read
            copy_stride<F>(from + r, dst + at);
        for (; r < rows; r += tile, at += size)
            for (int64_t i = 0; i < smaller(rows - r, tile); ++i) dst[at + i] = number(from[r + i]);
    }
}

template <class F, class S>
void store(const typename F::T *c, int64_t ldc, int64_t rows, int64_t cols,
           const typename F::T *bias, int64_t bias_row, int64_t bias_col, void *array, int64_t row,
           int64_t col, bool add) {
    using V = typename F::V;
    constexpr int W = F::W;
    const bool by_row = bias && bias_col == 0;
    S *out = (S *)array;
    if (col == 1 && (!bias || bias_col <= 1)) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < cols; j += W) {
                const int n = (int)smaller(cols - j, W);
                V v = n == W ? F::load(c + r * ldc + j) : F::load_n(c + r * ldc + j, n);
                if (bias)
                    v = F::add(v, by_row ? F::set1(bias[r * bias_row])
                                         : F::load_n(bias + r * bias_row + j, n));
                S *to = out + r * row + j;
                if (n == W)
                    F::store(to, add ? F::add(F::load(to), v) : v);
                else
                    F::store_n(to, add ? F::add(F::load_n(to, n), v) : v, n);
            }
        return;
    }
    if (row == 1 && (!bias || by_row)) {
        for (int64_t r = 0; r < rows; r += W)
            for (int64_t j = 0; j < cols; j += W) {
                const int n = (int)smaller(cols - j, W), have = (int)smaller(rows - r, W);
                V v[W];
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) {
                    const typename F::T *from = c + (r + i) * ldc + j;
                    v[i] = i >= have ? F::zero() : n == W ? F::load(from) : F::load_n(from, n);
                    if (bias && i < have) v[i] = F::add(v[i], F::set1(bias[(r + i) * bias_row]));
                }
                F::transpose(v);
#pragma GCC unroll 16 // the indices are constants then, so v stays in registers
                for (int i = 0; i < W; ++i) {
                    if (i >= n) break;
                    S *to = out + r + (j + i) * col;
                    F::store_n(to, add ? F::add(F::load_n(to, have), v[i]) : v[i], have);
                }
            }
        return;
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < cols; ++j) {
            typename F::T v = c[r * ldc + j];
            if (bias) v = v + bias[r * bias_row + j * bias_col];
            S *to = out + r * row + j * col;
            put(to, add ? number(*to) + v : v);
        }
}

template <class F, class S>
void sum_along(const void *array, int64_t row, int64_t col, int64_t rows, int64_t cols,
               typename F::T *sums) {
    const S *m = (const S *)array;
    using V = typename F::V;
    constexpr int W = F::W;
    for (int64_t r = 0; r < rows; r += W) {
        const int n = (int)smaller(rows - r, W);
        V sum = F::load_n(sums + r, n);
        if (row == 1) {
            for (int64_t c = 0; c < cols; ++c) sum = F::add(sum, F::load_n(m + c * col + r, n));
        } else {
            for (int64_t c = 0; c < cols; c += W) {
                const int k = (int)smaller(cols - c, W);
                V v[W];
                if (col == 1) {
                    for (int i = 0; i < W; ++i)
                        v[i] = i < n ? F::load_n(m + (r + i) * row + c, k) : F::zero();
                } else {
                    typename F::T lanes[W] = {};
                    for (int i = 0; i < W; ++i) {
                        for (int j = 0; j < k && i < n; ++j)
                            lanes[j] = number(m[(r + i) * row + (c + j) * col]);
                        v[i] = i < n ? F::load(lanes) : F::zero();
                    }
                }
                F::transpose(v);
                for (int j = 0; j < k; ++j) sum = F::add(sum, v[j]);
            }
        }
        F::store_n(sums + r, sum, n);
    }
}

// Packed panels of 16-bit elements: float16 lies as [depth][columns], bfloat16 in pairs of k,
// [depth / 2][columns][2], where an odd depth is padded with zero.
constexpr int64_t kPanelColumns = kPanelBytes / (int64_t)sizeof(float);

// Loads the even step that begins at `panel`, or the odd step after it.
template <class F, bool Odd> inline typename F::V load_step(const F16 *panel) {
    return F::load(panel + (Odd ? kPanelColumns : 0));
}
template <class F, bool Odd> inline typename F::V load_step(const Bf16 *panel) {
    return Odd ? F::load_odd(panel) : F::load_even(panel);
}
template <class F>
inline void store_steps(F16 *panel, typename F::V even, typename F::V odd, bool both) {
    F::store(panel, even);
    if (both) F::store(panel + kPanelColumns, odd);
}
template <class F>
inline void store_steps(Bf16 *panel, typename F::V even, typename F::V odd, bool) {
    F::store_pairs(panel, even, odd);
}
template <class S> constexpr int64_t kLaneStep = 1; // elements from one column to the next
template <> constexpr int64_t kLaneStep<Bf16> = 2;

template <class F, class S> void widen(const void *packed, int64_t depth, typename F::T *dst) {
    const S *panel = (const S *)packed;
    for (int64_t k = 0; k < depth; k += 2, panel += 2 * kPanelColumns, dst += 2 * kPanelColumns)
        for (int64_t c = 0; c < kPanelColumns; c += F::W) {
            const S *from = panel + c * kLaneStep<S>;
            F::store(dst + c, load_step<F, false>(from));
            if (k + 1 < depth) F::store(dst + kPanelColumns + c, load_step<F, true>(from));
        }
}

template <class F, class S> void narrow(const typename F::T *src, int64_t depth, void *packed) {
    S *panel = (S *)packed;
    for (int64_t k = 0; k < depth; k += 2, panel += 2 * kPanelColumns, src += 2 * kPanelColumns)
        for (int64_t c = 0; c < kPanelColumns; c += F::W) {
            const bool both = k + 1 < depth;
            store_steps<F>(panel + c * kLaneStep<S>, F::load(src + c),
                           both ? F::load(src + kPanelColumns + c) : F::zero(), both);
        }
}

// Turns pairs of steps, [pairs][columns][2], into a panel of steps, [depth][columns].
inline void part_pairs(const float *pairs, int64_t depth, void *packed) {
    uint16_t *panel = (uint16_t *)packed;
    for (int64_t k = 0; k < depth; k += 2, panel += 2 * kPanelColumns, pairs += kPanelColumns)
        for (int64_t c = 0; c < kPanelColumns; ++c) {
            const uint32_t both = float_bits(pairs[c]);
            panel[c] = (uint16_t)both;
            panel[kPanelColumns + c] = (uint16_t)(both >> 16);
        }
}

inline void stream(const void *from, int64_t bytes, void *to) {
    if ((uintptr_t)to % 64) {
        __builtin_memcpy(to, from, bytes);
        return;
    }
    for (int64_t i = 0; i < bytes / (int64_t)sizeof(float); i += F32::W)
        F32::stream((float *)to + i, F32::load((const float *)from + i));
}

template <class F> void round_bf16(typename F::T *c, int64_t ldc, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r, c += ldc)
        for (int64_t j = 0; j < cols; j += F::W) {
            const int n = (int)smaller(cols - j, F::W);
            F::store_n(c + j, F::round_bf16(F::load_n(c + j, n)), n);
        }
}

} // namespace
} // namespace ffncore
