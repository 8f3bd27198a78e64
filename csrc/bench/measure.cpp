// The machine's limits: FMA peak, clock, read bandwidth, and each activation's rate in L1.
//
// The loops are assembly, so that no compiler can delete, merge or reorder them:
// - fma: independent accumulators, each waiting only for itself. Latency 4 and two units need 8;
//   24 (512 bits) and 12 (below, where only 16 registers exist) leave slack. Values are ordinary
//   numbers: zeros would draw less power and so overstate the clock.
// - clock: a chain of 32-bit imul, 3 cycles each on every x86-64 core with AVX2. An add of an
//   immediate would not do: newer cores eliminate it at rename. It runs in the first 0.3 us after
//   FMA work of the same width: measured, the clock rises within 4 us after the last wide FMA.
// - read: 8 loads per step, nothing done with them. Software prefetch and several streams a thread
//   were tried: not faster at any size.
// - issue: nops, which need nothing but issue slots. Work on a core's other hardware thread, which
//   may be another machine's, takes half of them, and a share of the caches that no limit here
//   shows.
// - activation: the kernel table's own epilogue over one tile (see kernels.h), all of it in L1.
//
// A slice is timed from the moment all threads stand at the start to the last one's end; the best
// slice counts, since a limit is what the machine can do undisturbed. Test: tests/test_bench.py.
#include "measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include "../core/cpu.h"
#include "../kernels/kernels.h"

namespace ffncore {
namespace {

constexpr double kSlice = 2e-3;    // long against starting a thread, short against a disturbance
constexpr int64_t kReadStep = 512; // bytes a step of the read loop takes
constexpr int64_t kHugePage = int64_t{2} << 20; // smaller pages cost read bandwidth
constexpr int64_t kActRows = 1, kActCols = 512; // 6 double arrays of it, 24 KiB: fits any L1
constexpr int64_t kActPad = 80;                 // multiples of 16: whole cache lines
constexpr double kImulCycles = 3;
constexpr int64_t kImulsPerStep = 40;

double now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

#if defined(__x86_64__)
// clang-format off
#define LOW_REGISTERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",      \
        "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define ACC12 "0,1,2,3,4,5,6,7,8,9,10,11"
#define ACC24 ACC12 ",12,13,14,15,16,17,18,19,20,21,22,23"
// list: accumulators, set to zero by `zero` on their `part` first; x, y: the factors, broadcast from
// memory. This file is compiled without AVX-512, so zmm16 to zmm31 are not the compiler's and need
// not be named as clobbered.
#define FMA_LOOP(suffix, reg, broadcast, zero, part, list, x, y)                                   \
    asm volatile(broadcast " (%1), %%" reg x "\n\t" broadcast " (%2), %%" reg y "\n\t"             \
                 ".irp r," list "\n\t"                                                             \
                 zero " %%" part "\\r, %%" part "\\r, %%" part "\\r\n\t"                           \
                 ".endr\n\t"                                                                       \
                 "1:\n\t"                                                                          \
                 ".irp r," list "\n\t"                                                             \
                 "vfmadd231" suffix " %%" reg x ", %%" reg y ", %%" reg "\\r\n\t"                  \
                 ".endr\n\t"                                                                       \
                 "dec %0\n\t"                                                                      \
                 "jnz 1b\n\t"                                                                      \
                 "vzeroupper"                                                                      \
                 : "+r"(steps) : "r"(x_value), "r"(y_value) : "memory", "cc", LOW_REGISTERS)
// clang-format on

const float kF32[2] = {0.8147237f, -0.9057919f};
const double kF64[2] = {0.81472368639, -0.90579193707};

struct FmaLoop {
    const char *isa, *dtype;
    double flops_per_step;
    void (*run)(int64_t steps);
};

template <int bits> void fma_f32(int64_t steps) {
    const float *x_value = kF32, *y_value = kF32 + 1;
    if constexpr (bits == 512)
        FMA_LOOP("ps", "zmm", "vbroadcastss", "vpxord", "zmm", ACC24, "30", "31");
    else if constexpr (bits == 256)
        FMA_LOOP("ps", "ymm", "vbroadcastss", "vxorps", "xmm", ACC12, "14", "15");
    else
        FMA_LOOP("ss", "xmm", "vmovss", "vxorps", "xmm", ACC12, "14", "15");
}

template <int bits> void fma_f64(int64_t steps) {
    const double *x_value = kF64, *y_value = kF64 + 1;
    if constexpr (bits == 512)
        FMA_LOOP("pd", "zmm", "vbroadcastsd", "vpxord", "zmm", ACC24, "30", "31");
    else if constexpr (bits == 256)
        FMA_LOOP("pd", "ymm", "vbroadcastsd", "vxorps", "xmm", ACC12, "14", "15");
    else
        FMA_LOOP("sd", "xmm", "vmovsd", "vxorps", "xmm", ACC12, "14", "15");
}

const FmaLoop kFmaLoops[] = {
    {"avx512", "float32", 24 * 16 * 2, fma_f32<512>},
    {"avx512", "float64", 24 * 8 * 2, fma_f64<512>},
    {"avx2", "float32", 12 * 8 * 2, fma_f32<256>},
    {"avx2", "float64", 12 * 4 * 2, fma_f64<256>},
    {"scalar", "float32", 12 * 2, fma_f32<0>},
    {"scalar", "float64", 12 * 2, fma_f64<0>},
};

bool has_fma() { return __builtin_cpu_supports("avx") && __builtin_cpu_supports("fma"); }
bool wide_loads() { return __builtin_cpu_supports("avx512f"); }

// Time stamps around a chain of `steps` x kImulsPerStep multiplications; lfence: nothing of the
// chain starts early, nothing of it is left when the second stamp is taken.
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
    while (passed < 0.02) // reading two clocks is off by 50 ns at most: 5e-6
        passed = now() - start;
    return double(int64_t(__rdtsc()) - stamp) / passed;
}

// bytes: a multiple of kReadStep, at least one
void read_bytes(const char *p, int64_t bytes) {
    int64_t steps = bytes / kReadStep;
    if (wide_loads())
        asm volatile("1:\n\t"
                     ".irp o,0,64,128,192,256,320,384,448\n\t"
                     "vmovups \\o(%0), %%zmm0\n\t"
                     ".endr\n\t"
                     "add $512, %0\n\t"
                     "dec %1\n\t"
                     "jnz 1b\n\t"
                     "vzeroupper"
                     : "+r"(p), "+r"(steps)
                     :
                     : "memory", "cc", "xmm0");
    else
        asm volatile("1:\n\t"
                     ".irp o,0,32,64,96,128,160,192,224,256,288,320,352,384,416,448,480\n\t"
                     "movups \\o(%0), %%xmm0\n\t"
                     "movups 16+\\o(%0), %%xmm1\n\t"
                     ".endr\n\t"
                     "add $512, %0\n\t"
                     "dec %1\n\t"
                     "jnz 1b"
                     : "+r"(p), "+r"(steps)
                     :
                     : "memory", "cc", "xmm0", "xmm1");
}
#else
struct FmaLoop {
    const char *isa, *dtype;
    double flops_per_step;
    void (*run)(int64_t steps);
};
const FmaLoop kFmaLoops[] = {{"", "", 0, nullptr}};
bool has_fma() { return false; }
int64_t imul_chain(int64_t) { return 0; }
void nops(int64_t) {}
double stamps_per_second() { return 0; }
void read_bytes(const char *p, int64_t bytes) {
    uint64_t word, sum = 0;
    for (int64_t i = 0; i < bytes; i += 8) {
        std::memcpy(&word, p + i, 8);
        sum += word;
    }
    asm volatile("" : : "r"(sum) : "memory");
}
#endif

// Threads that are let go and joined also where one of them could not be started.
struct Team {
    std::atomic<int> arrived{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    ~Team() {
        go.store(true, std::memory_order_release);
        for (std::thread &thread : threads) thread.join();
    }
};

// body(thread, repeats) on all threads at once; returns the seconds from common start to last end.
template <class Body> double timed(int threads, int64_t repeats, const Body &body) {
    std::vector<double> ends(threads);
    double start = 0;
    {
        Team team;
        for (int t = 1; t < threads; ++t)
            team.threads.emplace_back([&, t] {
                team.arrived.fetch_add(1);
                while (!team.go.load(std::memory_order_acquire)); // waking a sleeper takes time
                body(t, repeats);
                ends[t] = now();
            });
        while (team.arrived.load() < threads - 1) std::this_thread::yield();
        start = now();
        team.go.store(true, std::memory_order_release);
        body(0, repeats);
        ends[0] = now();
    }
    double last = start;
    for (double end : ends) last = std::max(last, end);
    return last - start;
}

// Best of the slices that fit in `seconds`: work per repeat and thread, summed over the threads.
template <class Body> double best_rate(double work, double seconds, int threads, const Body &body) {
    int64_t repeats = 1;
    double took = 0;
    for (;; repeats *= took < kSlice / 16 ? 8 : 2) {
        took = timed(threads, repeats, body); // the first one is also the warm-up
        for (int i = 0; i < 2; ++i) // the least of three: a disturbed one would end this too early
            took = std::min(took, timed(threads, repeats, body));
        if (took >= kSlice / 2 || repeats >= (int64_t{1} << 40)) break;
    }
    double best = took;
    for (const double end = now() + seconds; now() < end;) {
        took = timed(threads, repeats, body);
        best = std::min(best, took);
    }
    return work * double(repeats) * threads / best;
}

const FmaLoop *find_fma(const char *isa, const char *dtype) {
    for (const FmaLoop &loop : kFmaLoops)
        if (!std::strcmp(loop.isa, isa) && !std::strcmp(loop.dtype, dtype))
            return has_fma() ? &loop : nullptr;
    return nullptr;
}

const KernelTable *find_table(const char *isa) {
    for (int i = 0; i < isa_count(); ++i)
        if (isa_table(i) && !std::strcmp(isa_table(i)->name, isa)) return isa_table(i);
    return nullptr;
}

double measure_fma(const FmaLoop &loop, double seconds, int threads) {
    constexpr int64_t steps = 1000; // some 5 us: the loop's start does not show
    return best_rate(loop.flops_per_step * steps, seconds, threads,
                     [&](int, int64_t repeats) { loop.run(steps * repeats); });
}

double measure_clock(const FmaLoop &loop, double seconds, int threads) {
    constexpr int64_t heavy = 50000; // some 0.2 ms of FMA work: long enough for the clock to settle
    constexpr int64_t steps = 8;     // 0.3 us: too short for it to change
    const double rate = stamps_per_second();
    std::vector<double> hertz(threads);
    timed(threads, 1, [&](int t, int64_t) {
        int64_t stamps = imul_chain(1); // what the stamps themselves take, and one step
        for (int i = 0; i < 100; ++i) stamps = std::min(stamps, imul_chain(1));
        std::vector<double> samples;
        const double end = now() + seconds;
        do {
            loop.run(heavy);
            const double chain = double(std::max<int64_t>(imul_chain(steps + 1) - stamps, 1));
            samples.push_back(kImulCycles * kImulsPerStep * steps * rate / chain);
        } while (now() < end);
        std::sort(samples.begin(), samples.end());   // 0.9: the peak is the best slice's as well,
        hertz[t] = samples[samples.size() * 9 / 10]; // and the stamps' jitter is left out
    });
    double mean = 0;
    for (double h : hertz) mean += h / threads;
    return mean;
}

// The read buffer is kept: the bench asks again in every round, and filling 700 MB takes longer
// than reading it.
std::mutex buffer_mutex;
char *buffer = nullptr;
int64_t buffer_bytes = 0;

void release_buffer() {
    std::free(buffer);
    buffer = nullptr;
    buffer_bytes = 0;
}

double measure_read(int64_t bytes, double seconds, int threads) {
    const int64_t share = bytes / threads / kReadStep * kReadStep;
    if (share < kReadStep) return kMeasureUnknown;
    std::lock_guard<std::mutex> lock(buffer_mutex);
    if (buffer_bytes < share * threads) {
        release_buffer();
        const int64_t size = (share * threads + kHugePage - 1) / kHugePage * kHugePage;
        buffer = static_cast<char *>(std::aligned_alloc(kHugePage, size));
        if (!buffer) return kMeasureNoMemory;
#if defined(__linux__)
        madvise(buffer, size, MADV_HUGEPAGE);
#endif
        std::memset(buffer, 1, size); // untouched pages would all be one page of zeros
        buffer_bytes = size;
    }
    return best_rate(double(share), seconds, threads, [&](int t, int64_t repeats) {
        for (int64_t i = 0; i < repeats; ++i) read_bytes(buffer + share * t, share);
    });
}

// Once and short: a look at the machine, not a limit.
double measure_issue(int threads) {
    constexpr int64_t steps = 50000; // 0.3 ms
    return double(steps) * threads / timed(threads, 1, [&](int, int64_t) { nops(steps); });
}

const char *const kKinds[] = {"identity",   "relu",       "relu2",   "gelu", "gelu_tanh",
                              "quick_gelu", "silu",       "sigmoid", "tanh", "mish",
                              "hardswish",  "leaky_relu", "xielu"}; // in ffncore.h's order

ActivationParams default_params(int kind) {
    ActivationParams p{};
    p.kind = kind;
    p.alpha = p.gate_multiplier = 1;
    p.negative_slope = 0.01;
    p.xielu_p = p.xielu_n = 0.8; // as a fresh Apertus layer has them
    p.beta = 0.5;
    p.eps = -1e-6;
    return p;
}

template <class T>
double activation_rate(const Kernels<T> &kernels, int kind, bool backward, bool gated,
                       double seconds, int threads) {
    constexpr int64_t n = kActRows * kActCols;
    const ActivationParams params = default_params(kind);
    const auto body = [&](int, int64_t repeats) {
        // Apart by kActPad, or a store and a later load would share the low 12 bits of their
        // address.
        alignas(64) T arrays[6][n + kActPad];
        T *gate = arrays[0], *up = arrays[1], *dh = arrays[2], *dgate = arrays[3];
        T *dup = arrays[4], *h = arrays[5];
        uint32_t state = 1; // preactivations in [-6, 6): where an activation does its work
        for (int64_t i = 0; i < n; ++i)
            for (T *array : {gate, up, dh}) {
                state = state * 1664525u + 1013904223u;
                array[i] = T(state >> 8) * T(12.0 / 16777216.0) - T(6);
            }
        const ActForwardArgs<T> forward{kActRows, kActCols, gated ? gate : nullptr,
                                        up,       kActCols, nullptr,
                                        nullptr,  0,        0,
                                        h,        kActCols, nullptr,
                                        nullptr,  0};
        const ActBackwardArgs<T> back{kActRows,
                                      kActCols,
                                      dh,
                                      kActCols,
                                      gated ? gate : nullptr,
                                      up,
                                      kActCols,
                                      gated ? dgate : nullptr,
                                      dup,
                                      nullptr,
                                      kActCols,
                                      nullptr,
                                      nullptr,
                                      0};
        for (int64_t i = 0; i < repeats; ++i) {
            if (backward)
                kernels.act_backward(params, back);
            else
                kernels.act_forward(params, forward);
            asm volatile("" : : : "memory");
        }
    };
    return best_rate(double(n), seconds, threads, body);
}

// spec: "<kind>:<forward|backward>:<plain|gated>"
double measure_activation(const std::string &spec, const KernelTable &table, const char *dtype,
                          double seconds, int threads) {
    const bool wide = !std::strcmp(dtype, "float64");
    if (!wide && std::strcmp(dtype, "float32")) return kMeasureUnknown;
    for (int kind = 0; kind < int(sizeof kKinds / sizeof *kKinds); ++kind)
        for (const bool backward : {false, true})
            for (const bool gated : {false, true})
                if (spec == std::string(kKinds[kind]) + (backward ? ":backward" : ":forward") +
                                (gated ? ":gated" : ":plain"))
                    return wide
                               ? activation_rate(table.f64, kind, backward, gated, seconds, threads)
                               : activation_rate(table.f32, kind, backward, gated, seconds,
                                                 threads);
    return kMeasureUnknown;
}

double measure(const std::string &name, const char *isa, const char *dtype, int64_t bytes,
               double seconds, int threads) {
    const std::string prefix = "activation:";
    if (name == "read") return measure_read(bytes, seconds, threads);
    if (name == "release") {
        std::lock_guard<std::mutex> lock(buffer_mutex);
        release_buffer();
        return 0;
    }
#if defined(__x86_64__)
    if (name == "issue") return measure_issue(threads);
#endif
    const KernelTable *table = find_table(isa);
    if (!table) return kMeasureUnknown;
    if (name.compare(0, prefix.size(), prefix) == 0)
        return measure_activation(name.substr(prefix.size()), *table, dtype, seconds, threads);
    const FmaLoop *loop = find_fma(isa, dtype);
    if (!loop) return kMeasureUnknown;
    if (name == "fma") return measure_fma(*loop, seconds, threads);
    return name == "clock" ? measure_clock(*loop, seconds, threads) : kMeasureUnknown;
}

} // namespace
} // namespace ffncore

double ffncore_measure(const char *what, const char *isa, const char *dtype, int64_t bytes,
                       double seconds, int threads) {
    try {
        return ffncore::measure(what, isa, dtype, bytes, seconds, threads < 1 ? 1 : threads);
    } catch (...) { // bad_alloc, or system_error of a thread
        return kMeasureNoMemory;
    }
}
