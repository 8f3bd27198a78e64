// What every kernel uses: element types, and CUDA's keywords and functions.
//
// A kernel is compiled twice: by nvcc for a GPU, and by an ordinary C++ compiler for the tests. For
// the latter, tests/cuda/cuda_emulator.h defines CUDA's keywords and functions on a CPU: a thread
// is a fiber, and a block runs until all its fibers have ended. So everything but the timing is
// tested without a GPU. Kernels use nothing of CUDA that is not in this file, copy.cuh or mma.cuh.
// They are templates even where nothing varies, so that several files can include them.
#pragma once
#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulator.h"
#endif

namespace ffncore::cuda {

// ---- elements: float, and 16-bit types that are computed with in float

struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

// The type that an array holds, where it is known only at run time.
enum Type { kFloat32, kBfloat16, kFloat16 };
template <class T> constexpr Type kTypeOf = kFloat32;
template <> constexpr Type kTypeOf<Bf16> = kBfloat16;
template <> constexpr Type kTypeOf<F16> = kFloat16;

#if defined(__CUDACC__)
__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(Bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ __forceinline__ float number(F16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ void put(float *to, float x) { *to = x; }
__device__ __forceinline__ void put(Bf16 *to, float x) {
    to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ void put(F16 *to, float x) {
    to->bits = __half_as_ushort(__float2half_rn(x));
}
// The dynamic shared memory of the block, aligned to 128 bytes.
__device__ __forceinline__ char *shared_memory() {
    extern __shared__ __align__(128) char dynamic_shared_memory[];
    return dynamic_shared_memory;
}
#else
inline float number(float x) { return x; }
inline float number(Bf16 x) { return emulator::from_bf16(x.bits); }
inline float number(F16 x) { return emulator::from_f16(x.bits); }
inline void put(float *to, float x) { *to = x; }
inline void put(Bf16 *to, float x) { to->bits = emulator::to_bf16(x); }
inline void put(F16 *to, float x) { to->bits = emulator::to_f16(x); }
inline char *shared_memory() { return emulator::shared_memory(); }
#endif

// x rounded to T.
template <class T> __device__ __forceinline__ float rounded(float x) {
    T element;
    put(&element, x);
    return number(element);
}

// ---- small things

template <class A> __host__ __device__ constexpr A ceil_div(A a, A b) { return (a + b - 1) / b; }
template <class A> __host__ __device__ constexpr A smaller(A a, A b) { return a < b ? a : b; }

constexpr int kWarp = 32;
constexpr int kChunkBytes = 16; // the most bytes that a thread moves at once
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over groups of `lanes` neighbouring lanes, as a tree, so that it is the same in every
// run.
template <int lanes, class X> __device__ __forceinline__ X sum_lanes(X x) {
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
}

// ---- launching

struct Blocks {
    int64_t x = 1;
    int64_t y = 1;
};

// Queues a kernel, unless there are no blocks. Errors stay with the runtime until
// cudaGetLastError().
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Blocks blocks, int threads, int shared_bytes,
            cudaStream_t stream, const Arguments &...arguments) {
    if (blocks.x == 0 || blocks.y == 0) return;
#if defined(__CUDACC__)
    constexpr int kWithoutAsking = 48 << 10;
    if (shared_bytes > kWithoutAsking)
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    const dim3 grid((unsigned)blocks.x, (unsigned)blocks.y);
    kernel<<<grid, threads, shared_bytes, stream>>>(Parameters(arguments)...);
#else
    (void)stream;
    emulator::run_grid(blocks.x, blocks.y, threads, shared_bytes,
                       [&] { kernel(Parameters(arguments)...); });
#endif
}

} // namespace ffncore::cuda
