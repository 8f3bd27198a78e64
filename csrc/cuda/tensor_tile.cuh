// A tile of a product on the tensor cores: sums [128 x 128] += A [128 x k] B [k x 128], A and B of
// 16 bits, the sums in float.
//
// Four warps have 64 x 64 of the tile each: 4 x 8 fragments of 16 x 8, in 128 registers of sums. A
// step of 16 k takes 4 + 4 ldmatrix for 32 mma, so a warp reads less shared memory for each FLOP
// than a warp of 32 x 64 would. k goes in steps of 32 through a ring of four buffers. A buffer
// takes 16 KiB, so two blocks fit on a multiprocessor. Three steps are being copied while one is
// used, which covers the latency of global memory.
//
// In a gated product B is 64 columns of gate and the same 64 of up.
#pragma once
#include "copy.cuh"
#include "mma.cuh"
#include "operand.cuh"
#include "swizzle.cuh"

namespace ffncore::cuda {

template <class Element, bool a_along_k, bool b_along_k, bool gated> struct TensorTile {
    using A = Element;
    using B = Element;
    static constexpr bool kGated = gated;
    static constexpr int kM = 128, kN = 128, kK = 32, kThreads = 128, kStages = 4;
    static constexpr int kColumns = gated ? kN / 2 : kN; // columns of the product in a tile
    static constexpr int kElements = kChunkBytes / (int)sizeof(Element); // of a chunk
    static constexpr int kSideBytes = kM * kK * (int)sizeof(Element);
    static constexpr int kSharedBytes = kStages * 2 * kSideBytes;
    static_assert(kSharedBytes >= kM * kStagedRow * (int)sizeof(float)); // for leave()

    // The first row or column, within the tile, of a fragment of a warp.
    __host__ __device__ static constexpr int fragment_row(int warp, int i) {
        return warp / 2 * 64 + i * 16;
    }
    __host__ __device__ static constexpr int fragment_column(int warp, int j) {
        return warp % 2 * 64 + j * 8;
    }

    float sums[4][8][4];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
    }

    // Adds the products over k in [k0, k1).
    __device__ void add(const Half<A> (&a)[2], const Half<B> (&b)[2], int64_t k0, int64_t k1) {
        const int64_t steps = ceil_div<int64_t>(k1 - k0, kK);
        const Fetcher<a_along_k> fetch_a(a, k0, k1);
        const Fetcher<b_along_k> fetch_b(b, k0, k1);
        const auto fetch = [&](int64_t step) {
            if (step < steps) {
                fetch_a.fetch(step, side(int(step % kStages), false));
                fetch_b.fetch(step, side(int(step % kStages), true));
            }
            commit_copies();
        };
        __syncthreads(); // all threads have read the ring
#pragma unroll
        for (int step = 0; step < kStages - 1; ++step) fetch(step);
        for (int64_t i = 0; i < steps; ++i) {
            wait_for_copies<kStages - 2>();
            __syncthreads();
            fetch(i + kStages - 1);
            multiply(int(i % kStages));
        }
        wait_for_copies<0>();
    }

    // Writes the sums to shared memory, where staged() says. They can be read after a barrier.
    __device__ __forceinline__ void leave() const {
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        struct alignas(8) Pair {
            float numbers[2];
        };
        float *const to = (float *)shared_memory();
        __syncthreads(); // all threads have read the ring
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int lower = 0; lower < 2; ++lower) {
                    const Place at = place_in_c(lane, 2 * lower);
                    const float *x = &sums[i][j][2 * lower];
                    const int row = fragment_row(warp, i) + at.row;
                    *(Pair *)(to + staged(row, fragment_column(warp, j) + at.col)) = {x[0], x[1]};
                }
    }

  private:
    __device__ __forceinline__ static char *side(int stage, bool b) {
        return shared_memory() + (2 * stage + b) * kSideBytes;
    }

    // Copies the part of A or B that a thread copies in every step: four chunks of 16 bytes.
    template <bool along_k> struct Fetcher {
        static constexpr int chunks = (along_k ? kK : kM) / kElements; // of a line
        static constexpr int kTimes = kM * kK / kElements / kThreads;
        // Neighbouring threads take neighbouring chunks; those of one thread are so many lines
        // apart.
        static constexpr int kLines = kThreads / chunks;
        const Element *from[kTimes]; // along k: the chunks of step 0; nullptr beyond the last row
        Half<Element> half;          // across: the half that has the thread's chunks
        int64_t k0, k1;

        __device__ Fetcher(const Half<Element> (&halves)[2], int64_t k0, int64_t k1)
            : k0(k0), k1(k1) {
            const int line = threadIdx.x / chunks, chunk = threadIdx.x % chunks;
            half = half_of(halves, along_k ? 0 : chunk * kElements);
#pragma unroll
            for (int i = 0; along_k && i < kTimes; ++i) {
                const int at = line + i * kLines;
                const Half<Element> &mine = halves[i * kLines / 64];
                const int64_t row = mine.first + at % 64;
                from[i] = row < mine.end ? mine.of.line(row) + k0 + chunk * kElements : nullptr;
            }
        }

        __device__ __forceinline__ void fetch(int64_t step, char *to) const {
            const int line = threadIdx.x / chunks, chunk = threadIdx.x % chunks;
            const int64_t k = k0 + step * kK;
#pragma unroll
            for (int i = 0; i < kTimes; ++i) {
                const Element *chunk_from;
                int64_t left;
                if constexpr (along_k) {
                    chunk_from = from[i] + step * kK;
                    left = from[i] ? k1 - k - chunk * kElements : 0;
                } else {
                    const int64_t m = half.first + chunk * kElements % 64;
                    const int64_t at = k + line + i * kLines;
                    left = at < k1 ? half.end - m : 0;
                    chunk_from = left > 0 ? half.of.line(at) + m : nullptr;
                }
                const int count = left <= 0 ? 0 : (int)smaller<int64_t>(left, kElements);
                char *chunk_to = to + swizzled<chunks>(line + i * kLines, chunk) * kChunkBytes;
                if (half.of.aligned) {
                    copy_16(chunk_to, count ? chunk_from : half.of.data,
                            count * (int)sizeof(Element));
                } else {
#pragma unroll
                    for (int e = 0; e < kElements; ++e)
                        ((Element *)chunk_to)[e] = e < count ? chunk_from[e] : Element{};
                }
            }
        }
    };

    // The address that this lane gives to ldmatrix for four 8 x 8 matrices: those at rows (or
    // columns) first and first + 8, and at k and k + 8, in the order of the registers of mma.
    template <bool along_k>
    __device__ __forceinline__ static const void *matrix_row(const char *side, int first, int k,
                                                             bool k_fastest) {
        const int lane = threadIdx.x % kWarp, matrix = lane / 8, in = lane % 8;
        const int m = first + 8 * (k_fastest ? matrix / 2 : matrix % 2);
        const int step = k + 8 * (k_fastest ? matrix % 2 : matrix / 2);
        constexpr int chunks = (along_k ? kK : kM) / kElements;
        const int place = along_k ? swizzled<chunks>(m + in, step / kElements)
                                  : swizzled<chunks>(step + in, m / kElements);
        return side + place * kChunkBytes;
    }

    __device__ __forceinline__ void multiply(int stage) {
        const char *a = side(stage, false), *b = side(stage, true);
        const int warp = threadIdx.x / kWarp;
#pragma unroll
        for (int k = 0; k < kK; k += 16) {
            uint32_t rows[4][4], columns[8][2];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                load_matrices<!a_along_k>(
                    rows[i], matrix_row<a_along_k>(a, fragment_row(warp, i), k, false));
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                uint32_t both[4];
                load_matrices<!b_along_k>(
                    both, matrix_row<b_along_k>(b, fragment_column(warp, j), k, true));
                columns[j][0] = both[0], columns[j][1] = both[1];
                columns[j + 1][0] = both[2], columns[j + 1][1] = both[3];
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) multiply_add<Element>(sums[i][j], rows[i], columns[j]);
        }
    }
};

} // namespace ffncore::cuda
