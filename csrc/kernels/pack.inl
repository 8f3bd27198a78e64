// Moving matrices: into panels (pack, pack_tiles), out of tiles (store), and sums along a row.
//
//   pack        dst[k][width] <- src(r, k), rows become columns; zero beyond the last row
//   pack_tiles  dst[tile][k][rows of the tile] <- src(r, k)
//   store       out(r, c) (+)= tile[r][c] + bias
// Each has two fast cases, for the index that is contiguous in memory: a copy of vectors, or W x W
// transposes in registers. Every other stride takes the plain loop.
#pragma once

namespace ffncore {
namespace {

template <class T> inline int64_t smaller(int64_t a, T b) { return a < b ? a : b; }

// Where rows of src lie far apart no hardware prefetcher follows. 8 ahead cover the latency of L3.
constexpr int64_t kAhead = 8;
template <class T> constexpr int64_t kLine = 64 / sizeof(T);

template <class F>
void pack(const typename F::T *src, int64_t row, int64_t step, int64_t rows, int64_t depth,
          typename F::T *dst, int64_t ld, int64_t width) {
    using V = typename F::V;
    constexpr int W = F::W;
    if (row == 1 || (step != 1 && rows == 0)) {
        for (int64_t k = 0; k < depth; ++k) {
            for (int64_t r = 0; r < rows; r += kLine<typename F::T>)
                __builtin_prefetch(src + (k + kAhead) * step + r);
            for (int64_t r = 0; r < width; r += W) {
                const int64_t have = rows - r;
                const V v = have >= W  ? F::load(src + k * step + r)
                            : have > 0 ? F::load_n(src + k * step + r, (int)have)
                                       : F::zero();
                if (width - r >= W)
                    F::store(dst + k * ld + r, v);
                else
                    F::store_n(dst + k * ld + r, v, (int)(width - r));
            }
        }
        return;
    }
    if (step == 1) {
        for (int64_t r = 0; r < width; r += W) {
            const int to = (int)smaller(width - r, W);
            for (int64_t k = 0; k < depth; k += W) {
                const int n = (int)smaller(depth - k, W);
                V v[W];
                // Each row's next line: for the next columns, or for the next tile of the caller.
                for (int i = 0; i < W && r + i < rows; ++i)
                    __builtin_prefetch(src + (r + i) * row + k + kLine<typename F::T>);
                if (n == W && r + W <= rows) {
                    F::load_transposed(src + r * row + k, row, v);
                } else {
#pragma GCC unroll 16
                    for (int i = 0; i < W; ++i)
                        v[i] = r + i < rows ? F::load_n(src + (r + i) * row + k, n) : F::zero();
                    F::transpose(v);
                }
                typename F::T *out = dst + k * ld + r;
                if (n == W && to == W) {
#pragma GCC unroll 16
                    for (int i = 0; i < W; ++i) F::store(out + i * ld, v[i]);
                } else {
#pragma GCC unroll 16 // indices known to the compiler: v stays in registers
                    for (int i = 0; i < W; ++i)
                        if (i < n) F::store_n(out + i * ld, v[i], to);
                }
            }
        }
        return;
    }
    for (int64_t k = 0; k < depth; ++k)
        for (int64_t r = 0; r < width; ++r)
            dst[k * ld + r] = r < rows ? src[r * row + k * step] : 0;
}

template <class F>
void pack_tiles(const typename F::T *src, int64_t row, int64_t step, int64_t rows, int64_t depth,
                typename F::T *dst, int64_t tile) {
    using T = typename F::T;
    constexpr int kStep = kTileStride;
    const int64_t size = depth * kStep + kTileGap;
    if (row != 1 || tile > kStep) {
        for (int64_t r0 = 0; r0 < rows; r0 += tile, dst += size)
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t r = 0; r < smaller(rows - r0, tile); ++r)
                    dst[k * kStep + r] = src[(r0 + r) * row + k * step];
        return;
    }
    // One pass over k for all tiles, so that a row of src is read once, in order.
    for (int64_t k = 0; k < depth; ++k, dst += kStep) {
        const T *from = src + k * step;
        if (k + kAhead < depth)
            for (int64_t r = 0; r < rows + kLine<T> - 1; r += kLine<T>)
                __builtin_prefetch(from + kAhead * step + smaller(r, rows - 1));
        int64_t r = 0, at = 0;
        for (; r + kStep <= rows; r += tile, at += size) // whole stride readable
            __builtin_memcpy(dst + at, from + r, kStep * sizeof(T));
        for (; r < rows; r += tile, at += size)
            for (int64_t i = 0; i < smaller(rows - r, tile); ++i) dst[at + i] = from[r + i];
    }
}

template <class F>
void store(const typename F::T *c, int64_t ldc, int64_t rows, int64_t cols,
           const typename F::T *bias, int64_t bias_row, int64_t bias_col, typename F::T *out,
           int64_t row, int64_t col, bool add) {
    using V = typename F::V;
    constexpr int W = F::W;
    const bool by_row = bias && bias_col == 0;
    if (col == 1 && (!bias || bias_col <= 1)) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < cols; j += W) {
                const int n = (int)smaller(cols - j, W);
                V v = F::load(c + r * ldc + j); // tiles are whole vectors wide
                if (bias)
                    v = F::add(v, by_row ? F::set1(bias[r * bias_row])
                                         : F::load_n(bias + r * bias_row + j, n));
                typename F::T *to = out + r * row + j;
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
                    v[i] = i < have ? F::load(c + (r + i) * ldc + j) : F::zero();
                    if (bias && i < have) v[i] = F::add(v[i], F::set1(bias[(r + i) * bias_row]));
                }
                F::transpose(v);
#pragma GCC unroll 16 // indices known to the compiler: v stays in registers
                for (int i = 0; i < W; ++i) {
                    if (i >= n) break;
                    typename F::T *to = out + r + (j + i) * col;
                    F::store_n(to, add ? F::add(F::load_n(to, have), v[i]) : v[i], have);
                }
            }
        return;
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < cols; ++j) {
            typename F::T v = c[r * ldc + j];
            if (bias) v = v + bias[r * bias_row + j * bias_col];
            typename F::T *to = out + r * row + j * col;
            *to = add ? *to + v : v;
        }
}

template <class F>
void sum_along(const typename F::T *m, int64_t row, int64_t col, int64_t rows, int64_t cols,
               typename F::T *sums) {
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
                            lanes[j] = m[(r + i) * row + (c + j) * col];
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

} // namespace
} // namespace ffncore
