// See streams.h. Tests: tests/backends/test_few_tokens.py, tests/runtime/test_streams.py.
#include "streams.h"

#include "cpu.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ffncore {
namespace {

enum Vendor { kOther, kAmd, kIntel };
struct Cpu {
    Vendor vendor;
    int family, model;
};

Cpu cpu() {
    Cpu found{kOther, 0, 0};
#if defined(__x86_64__)
    uint32_t a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(0, &a, &b, &c, &d)) return found;
    found.vendor = b == signature_AMD_ebx ? kAmd : b == signature_INTEL_ebx ? kIntel : kOther;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const int family = int(a >> 8 & 15);
    found.family = family == 15 ? family + int(a >> 20 & 255) : family;
    found.model = int(a >> 4 & 15) | int(a >> 16 & 15) << 4;
#endif
    return found;
}

struct Row {
    Vendor vendor;
    int family, first_model, last_model;
    Streams beyond, within; // of weights beyond L3, and within
};

// The first row that fits counts. GB/s and shares are those of two cores.
constexpr Row kRows[] = {
    // Zen 4, 200 MB of float32, tokens 1, 2, 3, 4, 6: one panel with 8 KB ahead reaches .81 .60 .65
    // .64 .65 of the read bandwidth, 4 panels without prefetching .90 .88 .94 .89 .85, 8 panels .87
    // .80 .94 .93 .84. With 512 bytes ahead, 4 panels take 1 to 8 % less time, and 13 % less for a
    // token in bfloat16; 256 to 1024 bytes are equally good. Weights in L3 take 15 to 20 % longer
    // with any prefetching, and 5 to 16 % longer by 4 panels than by 2.
    {kAmd, 0x19, 0x10, 0x1f, {4, 512, true}, {2, 0, true}},
    {kAmd, 0x19, 0x60, 0x7f, {4, 512, true}, {2, 0, true}},
    {kAmd, 0x19, 0xa0, 0xaf, {4, 512, true}, {2, 0, true}},
    {kAmd, 0x1a, 0x00, 0xff, {4, 512, true}, {2, 0, true}}, // Zen 5 has not been measured
    // Zen 1 to 3. Zen 3 reads 200 MB at 31 to 36 GB/s by 3 or 4 panels without prefetching, and at
    // 24 to 25 with 8 KB ahead; with 4 plain streams, prefetching takes 40 % longer, too.
    {kAmd, 0x17, 0x00, 0xff, {4, 0, false}, {4, 0, false}},
    {kAmd, 0x19, 0x00, 0xff, {4, 0, false}, {4, 0, false}},
    // Intel's servers have been measured with one panel alone, where it takes half as long again
    // without prefetching (Emerald Rapids).
    {kIntel, 0x06, 0x00, 0xff, {4, 8192, true}, {4, 8192, true}},
};

// Without prefetching no machine waits for lines that it does not need.
constexpr Row kUnknown = {kOther, 0, 0, 0, {4, 0, false}, {4, 0, false}};

Row of_machine() {
    const Cpu found = cpu();
    Row own = kUnknown;
    for (const Row &row : kRows)
        if (row.vendor == found.vendor && row.family == found.family &&
            row.first_model <= found.model && found.model <= row.last_model) {
            own = row;
            break;
        }
    if (const char *const text = std::getenv("FFNCORE_PREFETCH")) {
        char *end = nullptr;
        const long long bytes = std::strtoll(text, &end, 10);
        if (end != text && *end == '\0' && bytes >= 0 && bytes < (1 << 20)) {
            for (Streams *s : {&own.beyond, &own.within}) s->ahead = bytes, s->raw = bytes > 0;
        } // what is no number asks for nothing, as in FFNCORE_NUM_THREADS
    }
    return own;
}

std::atomic<int> panels{-1};
std::atomic<int64_t> ahead{-1};

} // namespace

Streams streams(double weight_bytes) {
    static const Row own = of_machine();
    Streams s = weight_bytes <= double(l3_bytes()) ? own.within : own.beyond;
    if (const int p = panels.load(std::memory_order_relaxed); p >= 0) s.panels = p;
    if (const int64_t a = ahead.load(std::memory_order_relaxed); a >= 0) {
        s.ahead = a;
        s.raw = a > 0;
    }
    return s;
}

void override_streams(int p, int64_t a) {
    panels.store(p, std::memory_order_relaxed);
    ahead.store(a, std::memory_order_relaxed);
}

} // namespace ffncore
