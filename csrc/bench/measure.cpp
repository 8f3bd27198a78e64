// Measures the machine's limits: the FMA peak, the clock, the read bandwidth, and the rate of each
// activation on data in L1.
//
// The loops are in loops.h. For an activation it is the kernel of the current table itself
// (kernels.h), over one tile in L1.
//
// Time is measured in slices. A slice begins when all threads are ready, and ends when the last one
// is done. The best slice counts, because a limit is what the machine can do undisturbed. Test:
// tests/bench/test_bench.py.
#include "measure.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../core/cpu.h"
#include "../kernels/kernels.h"
#include "loops.h"

namespace ffncore {
namespace {

constexpr double kSlice = 2e-3; // much longer than starting a thread, shorter than a disturbance
constexpr int64_t kHugePage = int64_t{2} << 20; // smaller pages cost read bandwidth
constexpr int64_t kActRows = 1, kActCols = 512; // 6 arrays of double are 24 KiB, which fits any L1
constexpr int64_t kActPad = 80;                 // a multiple of 16: whole cache lines

// Threads that start together. They are released and joined even if one of them cannot be created.
struct Team {
    std::atomic<int> arrived{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    ~Team() {
        go.store(true, std::memory_order_release);
        for (std::thread &thread : threads) thread.join();
    }
};

// Calls body(thread, repeats) on all threads at once. Returns the seconds from the common start to
// the last end.
template <class Body> double timed(int threads, int64_t repeats, const Body &body) {
    std::vector<double> ends(threads);
    double start = 0;
    {
        Team team;
        for (int t = 1; t < threads; ++t)
            team.threads.emplace_back([&, t] {
                team.arrived.fetch_add(1);
                while (!team.go.load(std::memory_order_acquire)); // spins, as waking takes time
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

// The best rate of the slices that fit in `seconds`, for all threads together; work is that of one
// repeat on one thread.
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

// Where a level has no instructions of its own: all of avx512bf16 but the pairs is avx512, and
// 16-bit types are computed in float32.
const char *or_wider(const char *isa) { return std::strcmp(isa, "avx512bf16") ? isa : "avx512"; }
const char *computed_in(const char *dtype) {
    return std::strstr(dtype, "float16") ? "float32" : dtype; // matches bfloat16, too
}

const FmaLoop *find_fma(const char *isa, const char *dtype) {
    for (const FmaLoop &loop : kFmaLoops)
        if (!std::strcmp(loop.isa, isa) && !std::strcmp(loop.dtype, dtype))
            return has_fma() ? &loop : nullptr;
    const char *const other = or_wider(isa), *const wider = computed_in(dtype);
    return other != isa || wider != dtype ? find_fma(other, wider) : nullptr;
}

const KernelTable *find_table(const char *isa) {
    for (int i = 0; i < isa_count(); ++i)
        if (isa_table(i) && !std::strcmp(isa_table(i)->name, isa)) return isa_table(i);
    return nullptr;
}

double measure_fma(const FmaLoop &loop, double seconds, int threads) {
    constexpr int64_t steps = 1000; // about 5 us, so that the start of the loop does not show
    return best_rate(loop.flops_per_step * steps, seconds, threads,
                     [&](int, int64_t repeats) { loop.run(steps * repeats); });
}

double measure_clock(const FmaLoop &loop, double seconds, int threads) {
    constexpr int64_t heavy = 50000; // about 0.2 ms of FMA work, in which the clock settles
    constexpr int64_t steps = 8;     // 0.3 us, in which it does not change
    const double rate = stamps_per_second();
    std::vector<double> hertz(threads);
    timed(threads, 1, [&](int t, int64_t) {
        int64_t stamps = imul_chain(1); // the time of the stamps themselves and of one step
        for (int i = 0; i < 100; ++i) stamps = std::min(stamps, imul_chain(1));
        std::vector<double> samples;
        const double end = now() + seconds;
        do {
            loop.run(heavy);
            const double chain = double(std::max<int64_t>(imul_chain(steps + 1) - stamps, 1));
            samples.push_back(kImulCycles * kImulsPerStep * steps * rate / chain);
        } while (now() < end);
        std::sort(samples.begin(), samples.end());   // 0.9: high, as the FMA peak is of the best
        hertz[t] = samples[samples.size() * 9 / 10]; // slice, but below the jitter of the stamps
    });
    double mean = 0;
    for (double h : hertz) mean += h / threads;
    return mean;
}

// The read buffer is kept, because the bench measures in every round, and filling 700 MB takes
// longer than reading them.
std::mutex buffer_mutex;
char *buffer = nullptr;
int64_t buffer_bytes = 0;
// The fastest order of reading for a thread's bytes and a number of threads, found out once.
std::map<std::pair<int64_t, int>, ReadOrder> read_orders;

void release_buffer() {
    std::free(buffer);
    buffer = nullptr;
    buffer_bytes = 0;
}

double measure_read(int64_t bytes, double seconds, int threads) {
    int64_t unit = kReadStep * kMostStreams; // so that every stream has whole steps
    if (bytes / threads < unit) unit = kReadStep;
    const int64_t share = bytes / threads / unit * unit;
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
        std::memset(buffer, 1, size); // untouched pages would all share one page of zeros
        buffer_bytes = size;
    }
    const auto rate = [&](const ReadOrder &order, double seconds) {
        return best_rate(double(share), seconds, threads, [&](int t, int64_t repeats) {
            for (int64_t i = 0; i < repeats; ++i) read_bytes(buffer + share * t, share, order);
        });
    };
    const auto [found, unknown] = read_orders.try_emplace({share, threads}, ReadOrder{1, 0});
    double best = 0;
    for (const ReadOrder &order : kReadOrders) {
        if (!unknown || share % (order.streams * kReadStep)) continue;
        const double other = rate(order, seconds);
        if (other > best) best = other, found->second = order;
    }
    return std::max(best, rate(found->second, seconds));
}

// Measured once and for a short time: this shows the state of the machine, and is no limit.
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
    p.xielu_p = p.xielu_n = 0.8; // the initial values of an Apertus layer
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
        // The arrays are kActPad apart. Without it, a store and a later load would share the low 12
        // bits of their addresses.
        alignas(64) T arrays[6][n + kActPad];
        T *gate = arrays[0], *up = arrays[1], *dh = arrays[2], *dgate = arrays[3];
        T *dup = arrays[4], *h = arrays[5];
        uint32_t state = 1; // preactivations in [-6, 6), the range where activations are curved
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

// spec is "<kind>:<forward|backward>:<plain|gated>".
double measure_activation(const std::string &spec, const KernelTable &table, const char *dtype,
                          double seconds, int threads) {
    const bool wide = !std::strcmp(dtype, "float64");
    if (!wide && std::strcmp(computed_in(dtype), "float32")) return kMeasureUnknown;
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
