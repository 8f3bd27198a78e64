// Copies from global to shared memory, 16 bytes at a time, without going through registers
// (cp.async).
//
// Copies are committed in groups. wait_for_copies<n> returns when all groups of this thread but the
// newest n have arrived; after a __syncthreads() all threads of the block see them.
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

// Copies the first `bytes` of 16 bytes (0 to 16); the rest becomes zero. Both addresses are
// multiples of 16.
__device__ __forceinline__ void copy_16(void *shared, const void *global, int bytes) {
#if defined(__CUDACC__)
    const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global),
                 "r"(bytes)
                 : "memory");
#else
    emulator::copy_async(shared, global, bytes, 16 - bytes);
#endif
}

__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
    emulator::commit_copies();
#endif
}

template <int groups> __device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;\n" ::"n"(groups) : "memory");
#else
    emulator::wait_for_copies(groups);
#endif
}

} // namespace ffncore::cuda
