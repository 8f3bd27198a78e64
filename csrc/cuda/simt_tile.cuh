// A tile of a product in float, without tensor cores: sums [128 x 128] += A [128 x k] B [k x 128].
//
// Eight warps have 32 x 64 of the tile each, and a thread has 64 sums. For each k a thread reads 8
// + 8 numbers from shared memory, 16 bytes at a time, for 64 fma; so the fma are the limit. The
// lanes of a warp are arranged as 4 x 8. They read 4 or 8 different vectors of an operand, without
// bank conflicts. k goes in steps of 16 through two buffers. The next step waits in registers while
// this one is used, because lines along k have to be transposed, and 16-bit weights widened, on the
// way.
//
// Each sum is one chain of fma over k. A gated tile has 64 columns of gate and the same 64 of up.
#pragma once
#include "operand.cuh"
#include "swizzle.cuh"

namespace ffncore::cuda {

template <class Weight, bool a_along_k, bool b_along_k, bool gated> struct SimtTile {
    using A = float;
    using B = Weight;
    static constexpr bool kGated = gated;
    static constexpr int kM = 128, kN = 128, kK = 16, kThreads = 256;
    static constexpr int kColumns = gated ? kN / 2 : kN;
    // Floats from one k to the next. Lines along k are stored at four k, which 132 spreads over the
    // banks.
    static constexpr int kRow = 132;
    static constexpr int kSideFloats = kK * kRow;
    static constexpr int kSharedBytes = kM * kStagedRow * (int)sizeof(float); // for leave()
    static_assert(kSharedBytes >= 2 * 2 * kSideFloats * (int)sizeof(float));

    // The first of the four rows (i = 0, 1) or columns (j = 0, 1) that a thread has there.
    __host__ __device__ static constexpr int thread_row(int thread, int i) {
        return thread / kWarp / 2 * 32 + i * 16 + thread % kWarp / 8 * 4;
    }
    __host__ __device__ static constexpr int thread_column(int thread, int j) {
        return j * 64 + thread / kWarp % 2 * 32 + thread % 8 * 4;
    }

    struct alignas(kChunkBytes) Vector {
        float numbers[4];
    };

    float sums[8][8];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[i][j] = 0;
    }

    // Adds the products over k in [k0, k1).
    __device__ void add(const Half<A> (&a)[2], const Half<B> (&b)[2], int64_t k0, int64_t k1) {
        float next_a[kVectors][4], next_b[kVectors][4];
        const int64_t steps = ceil_div<int64_t>(k1 - k0, kK);
        __syncthreads(); // all threads have read the buffers
        for (int64_t i = 0; i < steps; ++i) {
            if (i == 0) {
                fetch<a_along_k>(next_a, a, k0, k1);
                fetch<b_along_k>(next_b, b, k0, k1);
            }
            const int buffer = int(i % 2);
            leave<a_along_k>(next_a, side(buffer, false));
            leave<b_along_k>(next_b, side(buffer, true));
            __syncthreads();
            if (i + 1 < steps) {
                fetch<a_along_k>(next_a, a, k0 + (i + 1) * kK, k1);
                fetch<b_along_k>(next_b, b, k0 + (i + 1) * kK, k1);
            }
            multiply(buffer);
        }
    }

    // As TensorTile::leave. The four columns of a thread are contiguous; a warp writes lines of 128
    // bytes.
    __device__ __forceinline__ void leave() const {
        float *const to = (float *)shared_memory();
        __syncthreads(); // all threads have read the buffers
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int row = thread_row(threadIdx.x, i / 4) + i % 4;
                const float *x = &sums[i][4 * j];
                *(Vector *)(to + staged(row, thread_column(threadIdx.x, j))) = {x[0], x[1], x[2],
                                                                                x[3]};
            }
    }

  private:
    static constexpr int kVectors = kM * kK / 4 / kThreads; // of four numbers, for A and B each

    __device__ __forceinline__ static float *side(int buffer, bool b) {
        return (float *)shared_memory() + (2 * buffer + b) * kSideFloats;
    }

    // Where vector number i of a thread begins in the tile: its row or column, and its k.
    template <bool along_k> __device__ __forceinline__ static void place(int i, int &m, int &k) {
        const int n = threadIdx.x + i * kThreads;
        m = along_k ? n / (kK / 4) : n % (kM / 4) * 4;
        k = along_k ? n % (kK / 4) * 4 : n / (kM / 4);
    }

    template <bool along_k, class T>
    __device__ static void fetch(float (&to)[kVectors][4], const Half<T> (&halves)[2], int64_t k0,
                                 int64_t k1) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            int at, k;
            place<along_k>(i, at, k);
            const Half<T> half = half_of(halves, at);
            const int64_t m = half.first + at % 64, step = k0 + k;
            const int64_t here = along_k ? m : step, here_end = along_k ? half.end : k1;
            const int64_t col = along_k ? step : m, col_end = along_k ? k1 : half.end;
            const int64_t left = here < here_end ? col_end - col : 0;
            const T *from = left > 0 ? half.of.line(here) + col : nullptr;
            if (left >= 4 && half.of.aligned) {
                struct alignas(4 * sizeof(T)) Vector {
                    T numbers[4];
                };
                const Vector v = *(const Vector *)from;
#pragma unroll
                for (int e = 0; e < 4; ++e) to[i][e] = number(v.numbers[e]);
            } else {
#pragma unroll
                for (int e = 0; e < 4; ++e) to[i][e] = e < left ? number(from[e]) : 0;
            }
        }
    }

    template <bool along_k>
    __device__ static void leave(const float (&from)[kVectors][4], float *side) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            int m, k;
            place<along_k>(i, m, k);
            float *to = side + k * kRow + m;
#pragma unroll
            for (int e = 0; e < 4; ++e) to[along_k ? e * kRow : e] = from[i][e];
        }
    }

    __device__ __forceinline__ void multiply(int buffer) {
        const float *a = side(buffer, false), *b = side(buffer, true);
        const int thread = threadIdx.x;
#pragma unroll
        for (int k = 0; k < kK; ++k) {
            Vector rows[2], columns[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                rows[i] = *(const Vector *)(a + k * kRow + thread_row(thread, i));
                columns[i] = *(const Vector *)(b + k * kRow + thread_column(thread, i));
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    sums[i][j] =
                        fmaf(rows[i / 4].numbers[i % 4], columns[j / 4].numbers[j % 4], sums[i][j]);
        }
    }
};

} // namespace ffncore::cuda
