// CUDA's keywords and functions on a CPU, for tests. The threads of a block are fibers of one
// thread of the system.
//
// A fiber runs until it has to wait: for the block (__syncthreads), or for the 32 lanes of its warp
// (shuffles, votes, ldmatrix, mma). Then the next fiber runs. In a collective operation every lane
// stores its operand, and reads what it needs when all lanes have. A lane that never comes, or
// threads that end while others wait at a barrier, are a deadlock, which ends the program with a
// message. Copies by cp.async are made when they are waited for, not before, so that a missing wait
// gives wrong numbers. Shared memory begins as NaN.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = void *;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t error) {
    return error ? "invalid device ordinal" : "no error";
}
// There is one device, whose memory is that of the machine; with EMULATED_CUDA_DEVICES=0 there is
// none.
constexpr int cudaMemcpyDeviceToHost = 2, cudaDevAttrComputeCapabilityMajor = 75;
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int *count) {
    const char *const devices = std::getenv("EMULATED_CUDA_DEVICES");
    return *count = devices ? std::atoi(devices) : 1, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : 101; }
inline cudaError_t cudaDeviceGetAttribute(int *value, int, int) { return *value = 8, cudaSuccess; }

namespace ffncore::cuda::emulator {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

struct PendingCopy {
    void *to;
    const void *from;
    int bytes, zeros;
};

struct Fiber {
    ucontext_t first{};
    jmp_buf at;
    bool started = false, ended = false;
    int64_t barriers = 0, collectives = 0;           // that it has passed, or waits for
    std::vector<std::vector<PendingCopy>> copies{1}; // groups; the last one is still open
};

constexpr int kLanes = 32, kStack = 64 << 10;

// The operands that the lanes of a warp exchange. There are two generations, because a lane may be
// one operation ahead.
struct Warp {
    int64_t arrived[2] = {0, 0};
    unsigned char left[2][kLanes][64];
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared, stacks;
    std::function<void()> body;
    jmp_buf scheduler;
    int64_t at_barrier = 0, barriers = 0, alive = 0;
    int current = 0;
    bool progress = false;
};

inline Block *&block() {
    static thread_local Block *running = nullptr;
    return running;
}
inline Index &thread_index() {
    static thread_local Index index;
    return index;
}
inline Index &block_index() {
    static thread_local Index index;
    return index;
}
inline Index &block_size() {
    static thread_local Index index;
    return index;
}
inline Index &grid_size() {
    static thread_local Index index;
    return index;
}

inline char *shared_memory() {
    const uintptr_t begin = (uintptr_t)block()->shared.data();
    return (char *)((begin + 127) / 128 * 128);
}

inline Fiber &self() { return block()->fibers[block()->current]; }

// Switches to the scheduler, and returns when it is this fiber's turn again.
inline void yield() {
    Fiber &fiber = self();
    if (!_setjmp(fiber.at)) _longjmp(block()->scheduler, 1);
}

inline void synchronize() {
    Block &b = *block();
    const int64_t mine = b.barriers;
    b.progress = true;
    if (++b.at_barrier == b.alive) {
        b.at_barrier = 0;
        ++b.barriers;
        return;
    }
    while (b.barriers == mine) yield();
}

// Stores `operand` and waits for the warp; then take(lane) returns the operand of a lane.
template <class Operand> struct Collective {
    explicit Collective(const Operand &operand) {
        static_assert(sizeof(Operand) <= sizeof(Warp::left[0][0]));
        Block &b = *block();
        Warp &warp = b.warps[b.current / kLanes];
        Fiber &fiber = self();
        const int64_t generation = fiber.collectives++;
        lanes = warp.left[generation % 2];
        std::memcpy(lanes[b.current % kLanes], &operand, sizeof operand);
        b.progress = true;
        ++warp.arrived[generation % 2];
        const int64_t wanted = (generation / 2 + 1) * kLanes;
        while (warp.arrived[generation % 2] < wanted) yield();
    }
    Operand take(int lane) const {
        Operand operand;
        std::memcpy(&operand, lanes[lane], sizeof operand);
        return operand;
    }
    unsigned char (*lanes)[64];
};
inline int lane() { return block()->current % kLanes; }

inline void enter() {
    Block &b = *block();
    b.body();
    self().ended = true;
    --b.alive;
    b.progress = true;
    if (b.at_barrier > 0 && b.at_barrier == b.alive) {
        std::fprintf(stderr, "emulated CUDA: threads ended while others wait at a barrier\n");
        std::abort();
    }
    _longjmp(b.scheduler, 1);
}

// Lets a fiber run until it waits or ends.
inline void resume(Block &b, int i) {
    Fiber &fiber = b.fibers[i];
    b.current = i;
    thread_index() = {(unsigned)i, 0, 0};
    if (_setjmp(b.scheduler)) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = b.stacks.data() + (size_t)i * kStack;
    fiber.first.uc_stack.ss_size = kStack;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, enter, 0);
    setcontext(&fiber.first);
}

// A warp runs as long as it can, so that without a needed barrier things happen in the wrong order.
// Every other time the warps run in reverse order.
inline void run_block(Block &b, int threads, int shared_bytes) {
    b.fibers.assign(threads, Fiber{});
    b.warps.assign((threads + kLanes - 1) / kLanes, Warp{});
    b.shared.assign(shared_bytes + 256, 0xff);
    b.stacks.resize((size_t)threads * kStack);
    b.alive = threads;
    b.at_barrier = b.barriers = 0;
    const int warps = (int)b.warps.size();
    for (int turn = 0; b.alive > 0; ++turn) {
        bool any = false;
        for (int w = 0; w < warps; ++w) {
            const int first = (turn % 2 ? warps - 1 - w : w) * kLanes;
            do {
                b.progress = false;
                for (int i = first; i < first + kLanes && i < threads; ++i)
                    if (!b.fibers[i].ended) resume(b, i);
                any = any || b.progress;
            } while (b.progress);
        }
        if (!any) {
            std::fprintf(stderr, "emulated CUDA: a block's threads wait for each other\n");
            std::abort();
        }
    }
}

inline void run_grid(int64_t x, int64_t y, int threads, int shared_bytes,
                     const std::function<void()> &body) {
    Block b;
    b.body = body;
    block() = &b;
    block_size() = {(unsigned)threads, 1, 1};
    grid_size() = {(unsigned)x, (unsigned)y, 1};
    for (int64_t j = 0; j < y; ++j)
        for (int64_t i = 0; i < x; ++i) {
            block_index() = {(unsigned)i, (unsigned)j, 0};
            run_block(b, threads, shared_bytes);
        }
    block() = nullptr;
}

// ---- cp.async

inline void copy_async(void *to, const void *from, int bytes, int zeros) {
    self().copies.back().push_back({to, from, bytes, zeros});
}
inline void commit_copies() { self().copies.emplace_back(); }
// Waits until at most `groups` committed groups are pending.
inline void wait_for_copies(int groups) {
    auto &all = self().copies;
    while ((int)all.size() - 1 > groups) {
        for (const PendingCopy &c : all.front()) {
            if (c.bytes) std::memcpy(c.to, c.from, c.bytes);
            std::memset((char *)c.to + c.bytes, 0, c.zeros);
        }
        all.erase(all.begin());
    }
}

// ---- 16-bit elements, rounded to nearest even

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float from_bf16(uint16_t x) { return from_bits((uint32_t)x << 16); }
inline uint16_t to_bf16(float x) {
    const uint32_t bits = to_bits(x);
    if (x != x) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_f16(uint16_t x) {
    _Float16 half;
    std::memcpy(&half, &x, sizeof half);
    return (float)half;
}
inline uint16_t to_f16(float x) {
    const _Float16 half = (_Float16)x;
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

} // namespace ffncore::cuda::emulator

#define threadIdx (ffncore::cuda::emulator::thread_index())
#define blockIdx (ffncore::cuda::emulator::block_index())
#define blockDim (ffncore::cuda::emulator::block_size())
#define gridDim (ffncore::cuda::emulator::grid_size())

inline void __syncthreads() { ffncore::cuda::emulator::synchronize(); }
inline void __syncwarp() { ffncore::cuda::emulator::Collective<int> all(0); }
template <class T> inline T __shfl_xor_sync(unsigned, T x, int mask) {
    return ffncore::cuda::emulator::Collective<T>(x).take(ffncore::cuda::emulator::lane() ^ mask);
}
template <class T> inline T __shfl_sync(unsigned, T x, int lane) {
    return ffncore::cuda::emulator::Collective<T>(x).take(lane);
}
inline unsigned __ballot_sync(unsigned, bool x) {
    const ffncore::cuda::emulator::Collective<bool> all(x);
    unsigned bits = 0;
    for (int i = 0; i < ffncore::cuda::emulator::kLanes; ++i) bits |= (unsigned)all.take(i) << i;
    return bits;
}
inline unsigned __match_any_sync(unsigned, int x) {
    const ffncore::cuda::emulator::Collective<int> all(x);
    unsigned bits = 0;
    for (int i = 0; i < ffncore::cuda::emulator::kLanes; ++i)
        bits |= (unsigned)(all.take(i) == x) << i;
    return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs((int)x); }
