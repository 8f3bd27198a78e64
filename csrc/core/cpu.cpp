// Features of this CPU, the kernel tables that run on it, and the environment; see cpu.h.
//
// A level is usable if the CPU has its instructions and the system saves its registers (XCR0):
//   avx2        avx2, fma, f16c            XCR0: xmm, ymm
//   avx512      those, f, bw, vl, dq       XCR0: also opmask and zmm
//   avx512bf16  those, bf16, vnni          not on Intel; and KernelTable::works
// Intel's cores take two cycles for a VDPBF16PS of 512 bits: it reaches 96 GFLOP/s where the fma of
// avx512 reaches 188 (measured on Emerald Rapids). AMD's cores execute it at the rate of an fma,
// which is twice the FLOPs. So the level is offered only where it is faster. Tests:
// tests/runtime/test_dispatch.py and tests/cpp/test_pool.cpp.
#include "cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ffncore {
namespace {

enum Level { kScalar, kAvx2, kAvx512, kAvx512Bf16, kLevels };
constexpr const char *kNames[kLevels] = {"scalar", "avx2", "avx512", "avx512bf16"};

#if defined(__x86_64__)
[[maybe_unused]] bool is_intel() {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
}
#endif

struct Machine {
    bool usable[kLevels] = {true, false, false, false};
    std::string features;
};

#if defined(__x86_64__)
uint64_t saved_registers() { // XCR0
    uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

Machine look() {
    Machine m;
    uint32_t a = 0, b = 0, c = 0, d = 0;
    uint32_t leaf1 = 0, leaf7b = 0, leaf7c = 0, leaf7a1 = 0;
    if (__get_cpuid(1, &a, &b, &c, &d)) leaf1 = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        leaf7b = b;
        leaf7c = c;
        const uint32_t highest = a;
        if (highest >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) leaf7a1 = a;
    }
    const uint64_t saved = leaf1 >> 27 & 1 ? saved_registers() : 0; // OSXSAVE: xgetbv may be used
    const bool ymm = (saved & 0x06) == 0x06;                        // xmm, ymm
    const bool zmm = (saved & 0xE6) == 0xE6; // and opmask, zmm0-15 upper halves, zmm16-31

    bool all[kLevels];
    for (bool &level : all) level = true;
    const auto feature = [&](const char *name, uint32_t word, int bit, bool state, int level) {
        const bool has = state && (word >> bit & 1);
        if (has) (m.features += m.features.empty() ? "" : " ") += name;
        for (int above = level; above < kLevels; ++above) all[above] = all[above] && has;
    };
    feature("avx2", leaf7b, 5, ymm, kAvx2);
    feature("fma", leaf1, 12, ymm, kAvx2);
    feature("f16c", leaf1, 29, ymm, kAvx2);
    feature("avx512f", leaf7b, 16, zmm, kAvx512);
    feature("avx512bw", leaf7b, 30, zmm, kAvx512);
    feature("avx512vl", leaf7b, 31, zmm, kAvx512);
    feature("avx512dq", leaf7b, 17, zmm, kAvx512);
    feature("avx512vnni", leaf7c, 11, zmm, kAvx512Bf16);
#if defined(FFNCORE_EMULATE_BF16)
    feature("avx512bf16", leaf7a1, 5, zmm, kLevels); // reported, but no level requires it
#else
    feature("avx512bf16", leaf7a1, 5, zmm, kAvx512Bf16);
    all[kAvx512Bf16] = all[kAvx512Bf16] && !is_intel();
#endif
    for (int level = 0; level < kLevels; ++level) m.usable[level] = all[level];
    return m;
}
#else
Machine look() { return Machine(); }
#endif

const Machine &machine() {
    static const Machine m = look();
    return m;
}

using Getter = const KernelTable *(*)();

// Levels of this build, in the order of kNames; nullptr: not compiled in.
#if defined(__x86_64__) && !defined(FFNCORE_SCALAR_ONLY)
constexpr Getter kGetters[kLevels] = {ffncore_kernels_scalar, ffncore_kernels_avx2,
                                      ffncore_kernels_avx512, ffncore_kernels_avx512bf16};
#else
constexpr Getter kGetters[kLevels] = {ffncore_kernels_scalar, nullptr, nullptr, nullptr};
#endif

struct Tables {
    const KernelTable *list[kLevels];
    int count = 0;
    Tables() {
        for (int level = 0; level < kLevels; ++level) {
            if (kGetters[level] == nullptr || !machine().usable[level]) continue;
            const KernelTable *const table = kGetters[level]();
            if (table->works == nullptr || table->works()) list[count++] = table;
        }
    }
};

const Tables &tables() {
    static const Tables t;
    return t;
}

const KernelTable *find(const char *name) {
    for (int i = 0; i < tables().count; ++i) {
        if (std::strcmp(tables().list[i]->name, name) == 0) return tables().list[i];
    }
    return nullptr;
}

// The sentence that says why the level `name`, given by `what`, cannot run here.
std::string problem_with(const char *what, const char *name) {
    const char *reason = "an unknown instruction set";
    for (int level = 0; level < kLevels; ++level) {
        if (std::strcmp(name, kNames[level]) == 0) {
            reason = kGetters[level] == nullptr ? "which this build does not include"
                                                : "which this machine does not support";
        }
    }
    std::string text = std::string(what) + " is \"" + name + "\", " + reason + "; expected one of";
    for (int i = 0; i < tables().count; ++i)
        text += std::string(i > 0 ? ", " : " ") + "\"" + tables().list[i]->name + "\"";
    return text;
}

// The level that FFNCORE_ISA names, or the best one.
struct Default {
    const KernelTable *table;
    std::string problem;
    Default() {
        const char *const name = std::getenv("FFNCORE_ISA");
        if (name == nullptr || *name == '\0') {
            table = tables().list[tables().count - 1];
        } else {
            table = find(name);
            if (table == nullptr) problem = problem_with("FFNCORE_ISA", name);
        }
    }
};

const Default &default_isa() {
    static const Default d;
    return d;
}

std::atomic<const KernelTable *> chosen{nullptr}; // by use_isa(); nullptr: the default
thread_local std::string problem;

} // namespace

int isa_count() { return tables().count; }

const KernelTable *isa_table(int index) {
    return index >= 0 && index < tables().count ? tables().list[index] : nullptr;
}

const KernelTable *current_isa() {
    const KernelTable *table = chosen.load(std::memory_order_acquire);
    if (table == nullptr) table = default_isa().table;
    if (table == nullptr) problem = default_isa().problem;
    return table;
}

bool use_isa(const char *name) {
    if (name == nullptr || *name == '\0') {
        chosen.store(nullptr, std::memory_order_release);
        return current_isa() != nullptr;
    }
    const KernelTable *const table = find(name);
    if (table == nullptr) {
        problem = problem_with("name", name);
        return false;
    }
    chosen.store(table, std::memory_order_release);
    return true;
}

const char *isa_problem() { return problem.c_str(); }

const char *cpu_features() { return machine().features.c_str(); }

bool verbose() {
    static const bool on = [] {
        const char *const text = std::getenv("FFNCORE_VERBOSE");
        return text != nullptr && std::strcmp(text, "1") == 0;
    }();
    return on;
}

int requested_threads() {
    static const int n = [] {
        const char *const text = std::getenv("FFNCORE_NUM_THREADS");
        char *end = nullptr;
        const long value = text == nullptr ? 0 : std::strtol(text, &end, 10);
        const bool fits = value > 0 && value < (1 << 20) && *end == '\0';
        return fits ? int(value) : 0; // anything that is not a positive number is ignored
    }();
    return n;
}

} // namespace ffncore
