// The loops that measure the machine's limits, for measure.cpp alone. They are written in assembly,
// so that no compiler can delete, merge or reorder them:
// - fma: independent accumulators, each of which waits only for itself. A latency of 4 on two units
//   needs 8 of them; 24 (512 bits) and 12 (narrower, with only 16 registers) leave slack. The
//   values are ordinary numbers, because zeros would draw less power and so raise the clock.
// - clock: a chain of 32-bit imul, 3 cycles each on every x86-64 core with AVX2. A chain of
//   additions of a constant would not do, as newer cores eliminate these when they rename
//   registers. The chain runs in the first 0.3 us after FMA work of the same width, because the
//   clock rises within 4 us after the last wide FMA (measured).
// - read: loads of whole lines, whose values are not used, from one or several streams a thread,
//   with or without software prefetching. Which of these is fastest differs by machine and size.
// - issue: nops, which need nothing but issue slots. Work on the other hardware thread of a core,
//   which may belong to another machine, takes half of these slots, and a share of the caches,
//   which none of the other loops shows.
#pragma once
#include <chrono>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace ffncore {
namespace {

constexpr int64_t kReadStep = 512; // bytes that a step of the read loop reads of one stream

// How a thread reads its part of a buffer: as so many streams side by side, each prefetched so many
// bytes ahead (0: not at all). The bytes of all are a multiple of streams x kReadStep, and not 0.
struct ReadOrder {
    int streams;
    int64_t ahead;
};
constexpr ReadOrder kReadOrders[] = {{1, 0}, {2, 0}, {4, 0}, {8, 0}, {16, 0}, {1, 8192}, {4, 2048}};
constexpr int kMostStreams = 16;
constexpr double kImulCycles = 3;
constexpr int64_t kImulsPerStep = 40;

double now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

struct FmaLoop {
    const char *isa, *dtype;
    double flops_per_step;
    void (*run)(int64_t steps);
};

#if defined(__x86_64__)
// clang-format off
#define LOW_REGISTERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",      \
        "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define ACC12 "0,1,2,3,4,5,6,7,8,9,10,11"
#define ACC24 ACC12 ",12,13,14,15,16,17,18,19,20,21,22,23"
// list: the accumulators, which the instruction `zero` clears first, on their `part`; x, y: the
// factors, broadcast from memory. This file is compiled without AVX-512, so the compiler does not
// use zmm16 to zmm31, and they need not be named as clobbered.
#define FMA_LOOP(fma, reg, broadcast, zero, part, list, x, y)                                   \
    asm volatile(broadcast " (%1), %%" reg x "\n\t" broadcast " (%2), %%" reg y "\n\t"             \
                 ".irp r," list "\n\t"                                                             \
                 zero " %%" part "\\r, %%" part "\\r, %%" part "\\r\n\t"                           \
                 ".endr\n\t"                                                                       \
                 "1:\n\t"                                                                          \
                 ".irp r," list "\n\t"                                                             \
                 fma " %%" reg x ", %%" reg y ", %%" reg "\\r\n\t"                  \
                 ".endr\n\t"                                                                       \
                 "dec %0\n\t"                                                                      \
                 "jnz 1b\n\t"                                                                      \
                 "vzeroupper"                                                                      \
                 : "+r"(steps) : "r"(x_value), "r"(y_value) : "memory", "cc", LOW_REGISTERS)
// clang-format on

const float kF32[2] = {0.8147237f, -0.9057919f};
const uint32_t kPairs[2] = {0x3f513f51, 0xbf68bf68}; // nearly the same numbers, as two bfloat16
const double kF64[2] = {0.81472368639, -0.90579193707};

#define FMA_RUN(values, ...)                                                                       \
    [](int64_t steps) {                                                                            \
        const auto *x_value = values, *y_value = values + 1;                                       \
        FMA_LOOP(__VA_ARGS__);                                                                     \
    }

// clang-format off
const FmaLoop kFmaLoops[] = {
    {"avx512bf16", "bfloat16", 24 * 32 * 2,
     FMA_RUN(kPairs, "vdpbf16ps", "zmm", "vbroadcastss", "vpxord", "zmm", ACC24, "30", "31")},
    {"avx512", "float32", 24 * 16 * 2,
     FMA_RUN(kF32, "vfmadd231ps", "zmm", "vbroadcastss", "vpxord", "zmm", ACC24, "30", "31")},
    {"avx512", "float64", 24 * 8 * 2,
     FMA_RUN(kF64, "vfmadd231pd", "zmm", "vbroadcastsd", "vpxord", "zmm", ACC24, "30", "31")},
    {"avx2", "float32", 12 * 8 * 2,
     FMA_RUN(kF32, "vfmadd231ps", "ymm", "vbroadcastss", "vxorps", "xmm", ACC12, "14", "15")},
    {"avx2", "float64", 12 * 4 * 2,
     FMA_RUN(kF64, "vfmadd231pd", "ymm", "vbroadcastsd", "vxorps", "xmm", ACC12, "14", "15")},
    {"scalar", "float32", 12 * 2,
     FMA_RUN(kF32, "vfmadd231ss", "xmm", "vmovss", "vxorps", "xmm", ACC12, "14", "15")},
    {"scalar", "float64", 12 * 2,
     FMA_RUN(kF64, "vfmadd231sd", "xmm", "vmovsd", "vxorps", "xmm", ACC12, "14", "15")},
};
// clang-format on

bool has_fma() { return __builtin_cpu_supports("avx") && __builtin_cpu_supports("fma"); }
bool wide_loads() { return __builtin_cpu_supports("avx512f"); }

// The time stamps that a chain of `steps` x kImulsPerStep multiplications takes. lfence sees to it
// that no part of the chain starts early, and that all of it is done when the second stamp is
// taken.
int64_t imul_chain(int64_t steps) {
    _mm_lfence();
    const int64_t start = int64_t(__rdtsc());
    _mm_lfence();
    asm volatile("mov $3, %%eax\n\t"
                 "1:\n\t"
                 ".rept 40\n\t"
                 "imul %%eax, %%eax\n\t"
                 ".endr\n\t"
                 "dec %0\n\t"
                 "jnz 1b"
                 : "+r"(steps)
                 :
                 : "rax", "cc");
    _mm_lfence();
    return int64_t(__rdtsc()) - start;
}

void nops(int64_t steps) {
    asm volatile("1:\n\t"
                 ".rept 100\n\t"
                 "nop\n\t"
                 ".endr\n\t"
                 "dec %0\n\t"
                 "jnz 1b"
                 : "+r"(steps)
                 :
                 : "cc");
}

double stamps_per_second() {
    const double start = now();
    const int64_t stamp = int64_t(__rdtsc());
    double passed = 0;
    while (passed < 0.02) // reading two clocks is off by at most 50 ns, a share of 5e-6
        passed = now() - start;
    return double(int64_t(__rdtsc()) - stamp) / passed;
}

// Loads of 64, 32 or 16 bytes, the widest that the CPU has.
template <int kWidth> void read_step(const char *p) {
    if constexpr (kWidth == 64)
        asm volatile(".irp o,0,64,128,192,256,320,384,448\n\t"
                     "vmovups \\o(%0), %%zmm0\n\t"
                     ".endr"
                     :
                     : "r"(p)
                     : "memory", "xmm0");
    else if constexpr (kWidth == 32)
        asm volatile(".irp o,0,64,128,192,256,320,384,448\n\t"
                     "vmovups \\o(%0), %%ymm0\n\t"
                     "vmovups 32+\\o(%0), %%ymm1\n\t"
                     ".endr"
                     :
                     : "r"(p)
                     : "memory", "xmm0", "xmm1");
    else
        asm volatile(".irp o,0,32,64,96,128,160,192,224,256,288,320,352,384,416,448,480\n\t"
                     "movups \\o(%0), %%xmm0\n\t"
                     "movups 16+\\o(%0), %%xmm1\n\t"
                     ".endr"
                     :
                     : "r"(p)
                     : "memory", "xmm0", "xmm1");
}

template <int kWidth> void read_all(const char *p, int64_t part, const ReadOrder &order) {
    for (int64_t at = 0; at < part; at += kReadStep)
        for (int s = 0; s < order.streams; ++s) {
            const char *const from = p + s * part + at;
            for (int64_t line = 0; order.ahead && line < kReadStep; line += 64)
                __builtin_prefetch(from + order.ahead + line, 0, 2);
            read_step<kWidth>(from);
        }
    if (kWidth > 16) asm volatile("vzeroupper" : : : "memory");
}

void read_bytes(const char *p, int64_t bytes, const ReadOrder &order) {
    const int64_t part = bytes / order.streams;
    if (wide_loads())
        read_all<64>(p, part, order);
    else if (has_fma())
        read_all<32>(p, part, order);
    else
        read_all<16>(p, part, order);
}
#else
const FmaLoop kFmaLoops[] = {{"", "", 0, nullptr}};
bool has_fma() { return false; }
int64_t imul_chain(int64_t) { return 0; }
void nops(int64_t) {}
double stamps_per_second() { return 0; }
void read_bytes(const char *p, int64_t bytes, const ReadOrder &) {
    uint64_t word, sum = 0;
    for (int64_t i = 0; i < bytes; i += 8) {
        std::memcpy(&word, p + i, 8);
        sum += word;
    }
    asm volatile("" : : "r"(sum) : "memory");
}
#endif

} // namespace
} // namespace ffncore
