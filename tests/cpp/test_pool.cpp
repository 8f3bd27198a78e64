// Tests csrc/core without Python, so that it can run under the thread sanitizer. Every task runs
// once, phases are barriers, late workers do no harm, nested and concurrent calls finish, a forked
// child can compute, and the floating-point state and the workspace are as promised. The kernel
// tables are stubs. Prints the first failure and returns 1. `test_pool time` prints the cost of a
// region instead.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../csrc/core/cpu.h"
#include "../../csrc/core/threads.h"
#include "../../csrc/core/workspace.h"

namespace {
ffncore::KernelTable stub(const char *name) {
    ffncore::KernelTable table = {};
    table.name = name;
    return table;
}
} // namespace

#define FFNCORE_STUB(isa)                                                                          \
    extern "C" const ffncore::KernelTable *ffncore_kernels_##isa(void) noexcept {                  \
        static const ffncore::KernelTable table = stub(#isa);                                      \
        return &table;                                                                             \
    }
FFNCORE_STUB(scalar)
FFNCORE_STUB(avx2)
FFNCORE_STUB(avx512)
FFNCORE_STUB(avx512bf16)

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                    \
            return false;                                                                          \
        }                                                                                          \
    } while (0)

namespace {

using namespace ffncore;

void pause_for(int microseconds) {
    std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

// Every task adds up what all tasks of the phase before have written. The memory is not atomic, so
// a missing barrier gives a wrong result, and a data race for the sanitizer.
class Sums : public Region {
  public:
    explicit Sums(std::vector<int64_t> tasks) : tasks_(std::move(tasks)) {
        for (const int64_t n : tasks_) {
            values_.emplace_back(size_t(n), 0);
            runs_.emplace_back(size_t(n), 0);
        }
    }
    int64_t phases() const override { return int64_t(tasks_.size()); }
    int64_t tasks(int64_t phase) const override { return tasks_[size_t(phase)]; }
    void run(int64_t phase, int64_t task, int thread) override {
        const size_t p = size_t(phase), t = size_t(task);
        int64_t sum = task + 1;
        if (p > 0) {
            for (const int64_t value : values_[p - 1]) sum += value % 1000;
        }
        values_[p][t] = sum;
        ++runs_[p][t];
        if (thread > highest.load(std::memory_order_relaxed)) highest.store(thread);
        if (thread > 0) helped.store(true, std::memory_order_relaxed);
        if (slow > 0 && (task + phase) % 7 == 0) pause_for(slow);
    }
    bool right() const {
        Sums alone(tasks_);
        run_region(alone, 1);
        for (size_t p = 0; p < tasks_.size(); ++p) {
            CHECK(values_[p] == alone.values_[p]);
            for (const int n : runs_[p]) CHECK(n == 1);
        }
        return true;
    }
    std::atomic<int> highest{0};
    std::atomic<bool> helped{false};
    int slow = 0; // microseconds by which every seventh task is slower

  private:
    std::vector<int64_t> tasks_;
    std::vector<std::vector<int64_t>> values_;
    std::vector<std::vector<int>> runs_;
};

bool test_shapes() {
    const std::vector<std::vector<int64_t>> shapes = {
        {},     {0},    {0, 0, 0},  {1},       {1, 1, 1},          {2, 0, 3},
        {0, 5}, {7, 0}, {64, 1, 9}, {1000, 3}, {3, 1, 17, 0, 0, 2}};
    for (int threads = 1; threads <= 9; ++threads) {
        for (const auto &shape : shapes) {
            for (int repeat = 0; repeat < 20; ++repeat) {
                Sums region(shape);
                run_region(region, threads);
                CHECK(region.right());
                CHECK(region.highest.load() < threads);
            }
        }
    }
    return true;
}

bool test_many_phases() {
    std::vector<int64_t> shape;
    for (int i = 0; i < 400; ++i) shape.push_back(i * 37 % 11);
    for (const int threads : {2, 3, 5}) {
        Sums region(shape);
        run_region(region, threads);
        CHECK(region.right());
    }
    return true;
}

// Slow tasks make threads stop spinning inside a region. Pauses between regions make the whole pool
// sleep. Without pauses, late workers meet the end of one region and the start of the next.
bool test_sleepers() {
    for (const int threads : {2, 4}) {
        for (int i = 0; i < 60; ++i) {
            Sums region({8, 3, 1, 9, 2});
            region.slow = i % 3 == 0 ? 200 : 0;
            run_region(region, threads);
            CHECK(region.right());
            if (i % 2 == 0) pause_for(i % 4 == 0 ? 40 : 120);
        }
        for (int i = 0; i < 3000; ++i) {
            Sums region({2, 2});
            run_region(region, 2 + i % threads);
            CHECK(region.highest.load() < 2 + i % threads);
        }
    }
    return true;
}

// A pool whose workers never run would pass all tests above.
bool test_workers_help() {
    for (int i = 0; i < 200; ++i) {
        Sums region({16});
        region.slow = 500;
        run_region(region, 2);
        if (region.helped.load()) return true;
    }
    std::printf("no worker ever ran a task\n");
    return false;
}

class Nested : public Region {
  public:
    int64_t phases() const override { return 2; }
    int64_t tasks(int64_t) const override { return 6; }
    void run(int64_t, int64_t, int) override {
        Sums inner({5, 4});
        run_region(inner, 3);
        if (inner.highest.load() > 0 || !inner.right()) wrong.store(true);
    }
    std::atomic<bool> wrong{false};
};

bool test_nested() {
    for (int i = 0; i < 20; ++i) {
        Nested region;
        run_region(region, 3);
        CHECK(!region.wrong.load());
    }
    return true;
}

bool test_concurrent() {
    std::atomic<bool> wrong{false};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c) {
        callers.emplace_back([&wrong, c] {
            for (int i = 0; i < 200; ++i) {
                Sums region({13, 2, 8});
                run_region(region, 2 + c % 3);
                if (!region.right()) wrong.store(true);
            }
        });
    }
    for (std::thread &caller : callers) caller.join();
    CHECK(!wrong.load());
    return true;
}

bool test_fork() {
#if !defined(__SANITIZE_THREAD__) // the sanitizer allows no threads in a child
    for (int i = 0; i < 3; ++i) {
        Sums before({8, 8});
        run_region(before, 3);
        const pid_t child = fork();
        if (child == 0) {
            Sums region({8, 8});
            run_region(region, 3);
            const Lease lease(1 << 20);
            _exit(region.right() && lease.data() != nullptr ? 0 : 1);
        }
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        Sums after({8, 8});
        run_region(after, 3);
        CHECK(after.right());
    }
#endif
    return true;
}

#if defined(__x86_64__)
class State : public Region {
  public:
    int64_t phases() const override { return 2; }
    int64_t tasks(int64_t) const override { return 8; }
    void run(int64_t, int64_t, int) override {
        if ((_mm_getcsr() & ~0x3Fu) != 0x1F80) wrong.store(true); // 0x3F: flags of past exceptions
    }
    std::atomic<bool> wrong{false};
};

bool test_float_state() {
    const unsigned before = _mm_getcsr();
    for (const int threads : {1, 3}) {
        const unsigned odd = 0x1F80 | 0x8040 | 0x6000; // flush, denormals as zero, towards zero
        _mm_setcsr(odd);
        State region;
        run_region(region, threads);
        const unsigned after = _mm_getcsr();
        _mm_setcsr(before);
        CHECK(after == odd);
        CHECK(!region.wrong.load());
    }
    return true;
}
#else
bool test_float_state() { return true; }
#endif

bool test_thread_count() {
    CHECK(physical_cores() >= 1);
    CHECK(num_threads() == default_num_threads());
    set_num_threads(3);
    CHECK(num_threads() == 3);
    set_num_threads(1 << 30);
    CHECK(num_threads() > 3);
    set_num_threads(0);
    CHECK(num_threads() == default_num_threads());
    return true;
}

bool test_workspace() {
    constexpr size_t kHuge = size_t(2) << 20;
    void *first = nullptr;
    {
        const Lease small(1), none(0), large(3 * kHuge + 1);
        CHECK(small.data() != nullptr && none.data() != nullptr && small.data() != none.data());
        CHECK(reinterpret_cast<size_t>(small.data()) % 64 == 0);
        CHECK(reinterpret_cast<size_t>(large.data()) % kHuge == 0);
        std::memset(large.data(), 1, 3 * kHuge + 1);
        first = large.data();
    }
    {
        const Lease again(3 * kHuge);
        CHECK(again.data() == first);
        const Lease other(3 * kHuge);
        CHECK(other.data() != nullptr && other.data() != first);
    }
    const Lease impossible(SIZE_MAX - 5), huge(SIZE_MAX / 2);
    CHECK(impossible.data() == nullptr && huge.data() == nullptr);
    clear_workspace();
    const Lease fresh(100);
    CHECK(fresh.data() != nullptr);
    CHECK(l2_bytes() >= 1 << 16);
    return true;
}

bool test_isa() {
    CHECK(isa_count() >= 1 && std::strcmp(isa_table(0)->name, "scalar") == 0);
    CHECK(isa_table(-1) == nullptr && isa_table(isa_count()) == nullptr);
    for (int i = 0; i < isa_count(); ++i) {
        CHECK(use_isa(isa_table(i)->name));
        CHECK(current_isa() == isa_table(i));
    }
    CHECK(!use_isa("avx9"));
    CHECK(std::strstr(isa_problem(), "\"avx9\"") != nullptr);
    CHECK(std::strstr(isa_problem(), "\"scalar\"") != nullptr);
    CHECK(current_isa() == isa_table(isa_count() - 1));
    return true;
}

class Nothing : public Region {
  public:
    Nothing(int64_t phases, int64_t tasks) : phases_(phases), tasks_(tasks) {}
    int64_t phases() const override { return phases_; }
    int64_t tasks(int64_t) const override { return tasks_; }
    void run(int64_t, int64_t, int) override {}

  private:
    int64_t phases_, tasks_;
};

void print_times() {
    using Clock = std::chrono::steady_clock;
    for (const int threads : {1, 2}) {
        for (const int64_t phases : {1, 2, 5, 300}) {
            for (const int gap :
                 {0, 1000}) { // microseconds between calls: the pool is awake, or asleep
                const int calls = gap > 0 ? 300 : 3000;
                std::vector<double> times;
                for (int i = 0; i < calls; ++i) {
                    const Clock::time_point gap_end = Clock::now() + std::chrono::microseconds(gap);
                    while (Clock::now() < gap_end) {
                    }
                    Nothing region(phases, 2 * threads);
                    const Clock::time_point begin = Clock::now();
                    run_region(region, threads);
                    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
                }
                std::sort(times.begin(), times.end());
                std::printf("%d threads, %3d phases, %4d us between calls: median %7.2f us, "
                            "90%% %7.2f us\n",
                            threads, int(phases), gap, 1e6 * times[times.size() / 2],
                            1e6 * times[times.size() * 9 / 10]);
            }
        }
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc > 1 && std::strcmp(argv[1], "time") == 0) {
        print_times();
        return 0;
    }
    const bool passed = test_shapes() && test_many_phases() && test_sleepers() &&
                        test_workers_help() && test_nested() && test_concurrent() && test_fork() &&
                        test_float_state() && test_thread_count() && test_workspace() && test_isa();
    std::printf("test_pool: %s\n", passed ? "passed" : "FAILED");
    return passed ? 0 : 1;
}
