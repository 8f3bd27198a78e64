// See streams.h. Tests: tests/backends/test_few_tokens.py, tests/runtime/test_streams.py.
#include "streams.h"

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
    Streams streams;
};

// The first row that fits counts. GB/s and shares are those of two cores.
constexpr Row kRows[] = {
    // Zen 4, 200 MB of float32, tokens 1, 2, 3, 4, 6: one panel with 8 KB ahead reaches .81 .60 .65
    // .64 .65 of the read bandwidth, 4 panels without prefetching .90 .88 .94 .89 .85, 8 panels .87
    // .80 .94 .93 .84. Prefetching 1 to 2 KB ahead of several panels takes 0 to 25 % longer, and
    // weights in L3 take up to half as long again.
    {kAmd, 0x19, 0x10, 0x1f, {4, 0, true}},
    {kAmd, 0x19, 0x60, 0x7f, {4, 0, true}},
    {kAmd, 0x19, 0xa0, 0xaf, {4, 0, true}},
    {kAmd, 0x1a, 0x00, 0xff, {4, 0, true}}, // Zen 5 has not been measured
    // Zen 1 to 3. Zen 3 reads 200 MB at 31 to 36 GB/s by 3 or 4 panels without prefetching, and at
    // 24 to 25 with 8 KB ahead; with 4 plain streams, prefetching takes 40 % longer, too.
    {kAmd, 0x17, 0x00, 0xff, {4, 0, false}},
    {kAmd, 0x19, 0x00, 0xff, {4, 0, false}},
    // Intel's servers have been measured with one panel alone, where it takes half as long again
    // without prefetching (Emerald Rapids).
    {kIntel, 0x06, 0x00, 0xff, {4, 8192, true}},
};

// Without prefetching no machine waits for lines that it does not need.
constexpr Streams kUnknown = {4, 0, false};

Streams of_machine() {
    const Cpu found = cpu();
    Streams s = kUnknown;
    for (const Row &row : kRows)
        if (row.vendor == found.vendor && row.family == found.family &&
            row.first_model <= found.model && found.model <= row.last_model) {
            s = row.streams;
            break;
        }
    if (const char *const text = std::getenv("FFNCORE_PREFETCH")) {
        char *end = nullptr;
        const long long bytes = std::strtoll(text, &end, 10);
        if (end != text && *end == '\0' && bytes >= 0 && bytes < (1 << 20)) {
            s.ahead = bytes;
            s.raw = bytes > 0;
        } // what is no number asks for nothing, as in FFNCORE_NUM_THREADS
    }
    return s;
}

std::atomic<int> panels{-1};
std::atomic<int64_t> ahead{-1};

} // namespace

Streams streams() {
    static const Streams own = of_machine();
    Streams s = own;
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
