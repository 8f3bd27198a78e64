// See streams.h. Test: tests/cpp/test_pool.cpp.
#include "streams.h"

#include <atomic>
#include <cstdlib>

namespace ffncore {
namespace {

Streams machine_streams() {
    Streams s{8, 8192};
    if (const char *const text = std::getenv("FFNCORE_PREFETCH")) s.ahead = std::atoll(text);
    return s;
}

std::atomic<int> panels{-1};
std::atomic<int64_t> ahead{-1};

} // namespace

Streams streams() {
    static const Streams own = machine_streams();
    const int p = panels.load(std::memory_order_relaxed);
    const int64_t a = ahead.load(std::memory_order_relaxed);
    return {p < 0 ? own.panels : p, a < 0 ? own.ahead : a};
}

void override_streams(const Streams &s) {
    panels.store(s.panels, std::memory_order_relaxed);
    ahead.store(s.ahead, std::memory_order_relaxed);
}

} // namespace ffncore
