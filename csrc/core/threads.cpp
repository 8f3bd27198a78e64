// The thread pool behind run_region(); threads.h says what it promises.
//
// One word, `sequence`, numbers all phases of all regions. While phase p of a region runs it is
// base + p, afterwards base + phases, and it never goes back. It is all that a waiting thread
// watches. The thread that reports the last task of a phase advances it.
//
// A task is claimed by a compare-and-swap on the word of its share (sequence number, tasks taken).
// A word with an older number means that nothing has been taken yet, one with a newer number that
// the phase is over. So nothing has to be cleared between phases, and a thread that loses its core
// for a while does no harm.
//
// Workers enter a region through `gate`. They leave it when the last phase has no task to claim, or
// when they have waited for the next phase as long as they spin; then they sleep, and come back
// when woken. The region lies on the stack of its caller. So at the end the caller waits for the
// workers inside, which are awake and hold no task; it never waits for one that sleeps. Worker i is
// woken by worker i/2 alone, so the caller pays for one wake-up however many threads there are.
//
// All this memory belongs to a Pool that is never freed, because a late worker may always look at
// it. The test is tests/cpp/test_pool.cpp, which also runs under the thread sanitizer.
#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <csignal>
#include <new>
#include <pthread.h>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu.h"
#include "fpstate.h"

namespace ffncore {
namespace {

using Clock = std::chrono::steady_clock;
using Word = std::atomic<uint32_t>;

constexpr int kMaxThreads = 1024; // more cores than a machine with one memory has
// Long enough for the caller's work between two layers, short enough to cost no one a time slice.
constexpr std::chrono::microseconds kSpin(50);
// With more threads than cores, a spinning thread keeps a thread with work from running.
constexpr std::chrono::microseconds kCrowdedSpin(2);
constexpr int kPausesPerLook = 16; // about 0.7 us of pauses between two looks at the clock
// The upper bits of `gate`; the lower ones count the threads inside.
constexpr uint32_t kOpen = 1u << 31, kCallerWaits = 1u << 30;
// Sequence numbers are compared by the sign of their difference, so their ages stay below 2^31.
constexpr uint32_t kRefresh = 1u << 30;
constexpr int64_t kMaxPhases = int64_t(1) << 29;

void sleep_while(Word &word, uint32_t value) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    if (word.load() == value) std::this_thread::sleep_for(kSpin);
#endif
}

void wake_all(Word &word) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)word;
#endif
}

template <class Done> bool spin_until(Done done, std::chrono::microseconds limit) {
    if (done()) return true;
    const Clock::time_point end = Clock::now() + limit;
    do {
        for (int i = 0; i < kPausesPerLook; ++i) {
            if (done()) return true;
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
    } while (Clock::now() < end);
    return done();
}

struct Pool;

// The members lie in two pairs of cache lines, because the hardware prefetcher fetches lines in
// pairs.
struct alignas(128) Slot {
    Word asleep{0};
    Pool *pool = nullptr;
    int index = 0;
    uint32_t seen = 0;                           // the sequence when the worker was started
    alignas(128) std::atomic<uint64_t> claim{0}; // sequence << 32 | tasks taken from this share
};

struct Pool {
    alignas(128) Word sequence{0};
    alignas(128) Word gate{0};
    alignas(128) std::atomic<int64_t> finished{0}; // tasks of the current phase
    alignas(128) std::atomic<bool> busy{false};    // a caller owns the pool

    // The region; written while the gate is closed and no thread is inside.
    Region *region = nullptr;
    int threads = 0;
    int64_t phases = 0;
    uint32_t base = 0;
    std::chrono::microseconds spin{0};

    // Used by the caller alone.
    int workers = 0;
    uint32_t refreshed = 0;

    Slot slots[kMaxThreads]; // the caller is slot 0

    uint32_t now() const { return sequence.load(std::memory_order_seq_cst); }
};

thread_local bool inside = false; // this thread runs tasks, so a nested region runs on it alone

bool later(uint32_t a, uint32_t b) { return int32_t(a - b) > 0; }

// ---- sleeping and waking: a thread announces that it sleeps, then looks at the sequence once
// more. A thread that advances the sequence looks for sleepers afterwards. So one of them sees the
// other.

void sleep_until_later(Pool &pool, Slot &slot, uint32_t seen) {
    slot.asleep.store(1, std::memory_order_seq_cst);
    while (!later(pool.now(), seen) && slot.asleep.load(std::memory_order_acquire) == 1)
        sleep_while(slot.asleep, 1);
    slot.asleep.store(0, std::memory_order_relaxed);
}

void wake(Slot &slot) {
    if (slot.asleep.load(std::memory_order_seq_cst) == 1 && slot.asleep.exchange(0) == 1)
        wake_all(slot.asleep);
}

void wake_children(Pool &pool, int self) {
    const int first = self == 0 ? 1 : 2 * self, last = self == 0 ? 1 : 2 * self + 1;
    for (int child = first; child <= last && child < pool.threads; ++child) wake(pool.slots[child]);
}

// ---- tasks

// The first task of a share, which has the tasks t with t * threads / tasks == share (rounded
// down).
int64_t first_task(int64_t share, int64_t tasks, int64_t threads) {
    return (share * tasks + threads - 1) / threads;
}

// The next task of a share of `size` tasks, or -1.
int64_t take(std::atomic<uint64_t> &claim, uint32_t sequence, int64_t size) {
    uint64_t word = claim.load(std::memory_order_relaxed);
    for (;;) {
        const uint32_t number = uint32_t(word >> 32);
        if (later(number, sequence)) return -1;
        const int64_t taken = number == sequence ? int64_t(word & UINT32_MAX) : 0;
        if (taken >= size) return -1;
        const uint64_t next = uint64_t(sequence) << 32 | uint64_t(taken + 1);
        if (claim.compare_exchange_weak(word, next, std::memory_order_relaxed)) return taken;
    }
}

// Runs the tasks of a phase that can be claimed, first those of its own share; returns how many.
int64_t run_tasks(Pool &pool, int self, uint32_t sequence, int64_t phase, int64_t tasks) {
    int64_t done = 0;
    for (int i = 0; i < pool.threads; ++i) {
        const int share = self + i < pool.threads ? self + i : self + i - pool.threads;
        const int64_t begin = first_task(share, tasks, pool.threads);
        const int64_t size = first_task(share + 1, tasks, pool.threads) - begin;
        if (size == 0) continue;
        for (;;) {
            const int64_t task = take(pool.slots[share].claim, sequence, size);
            if (task < 0) break;
            pool.region->run(phase, begin + task, self);
            ++done;
        }
    }
    return done;
}

int64_t next_phase(const Region &region, int64_t phase, int64_t phases) {
    while (phase < phases && region.tasks(phase) <= 0) ++phase;
    return phase;
}

void finish_phase(Pool &pool, int64_t phase) {
    const int64_t next = next_phase(*pool.region, phase + 1, pool.phases);
    pool.finished.store(0, std::memory_order_relaxed);
    pool.sequence.store(pool.base + uint32_t(next), std::memory_order_seq_cst);
    wake(pool.slots[0]);
    if (next < pool.phases && pool.region->tasks(next) > 1) wake(pool.slots[1]);
}

// Works on the region from its current phase on. The caller works to the end of the region, a
// worker until there is nothing left for it. Returns the sequence number after which there may be
// work again.
uint32_t take_part(Pool &pool, int self) {
    for (;;) {
        const uint32_t sequence = pool.now();
        const int64_t phase = uint32_t(sequence - pool.base);
        if (phase >= pool.phases) return sequence;
        const int64_t tasks = pool.region->tasks(phase);
        if (tasks > 1) wake_children(pool, self);
        const int64_t done = run_tasks(pool, self, sequence, phase, tasks);
        if (done > 0 && pool.finished.fetch_add(done, std::memory_order_acq_rel) + done == tasks) {
            finish_phase(pool, phase);
            continue;
        }
        if (self > 0 && phase + 1 == pool.phases) return pool.base + uint32_t(pool.phases);
        if (spin_until([&] { return later(pool.now(), sequence); }, pool.spin)) continue;
        if (self > 0) return sequence;
        sleep_until_later(pool, pool.slots[0], sequence);
    }
}

// ---- workers

bool enter(Pool &pool) {
    uint32_t gate = pool.gate.load(std::memory_order_relaxed);
    while (gate & kOpen) {
        if (pool.gate.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) return true;
    }
    return false;
}

void leave(Pool &pool) {
    if (pool.gate.fetch_sub(1, std::memory_order_acq_rel) == (kCallerWaits | 1))
        wake_all(pool.gate);
}

void *work(void *argument) {
    Slot &slot = *static_cast<Slot *>(argument);
    Pool &pool = *slot.pool;
    inside = true;
    uint32_t seen = slot.seen;
    std::chrono::microseconds spin = kSpin;
    for (;;) {
        if (!spin_until([&] { return later(pool.now(), seen); }, spin))
            sleep_until_later(pool, slot, seen);
        seen = pool.now();
        if (!enter(pool)) continue;
        if (slot.index < pool.threads) {
            spin = pool.spin;
            set_float_state(pool.region->flushes());
            seen = take_part(pool, slot.index);
        } else {
            spin = std::chrono::microseconds(0); // this region has fewer threads
        }
        leave(pool);
    }
    return nullptr;
}

// Starts workers until there are `threads` threads with the caller. Returns how many there are.
int start_workers(Pool &pool, int threads) {
    if (pool.workers + 1 >= threads) return threads;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return pool.workers + 1;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t all, before; // workers block all signals, so the program's threads get them
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers + 1 < threads) {
        Slot &slot = pool.slots[pool.workers + 1];
        slot.pool = &pool;
        slot.index = pool.workers + 1;
        slot.seen = pool.now();
        slot.claim.store(uint64_t(slot.seen) << 32, std::memory_order_relaxed);
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, &slot) != 0) break;
        ++pool.workers;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    return pool.workers + 1;
}

// ---- callers

std::atomic<Pool *> current_pool{nullptr};

// A child of fork() has none of the workers, and finds locks and counters in any state. So it
// starts with a new pool.
void forget_pool() { current_pool.store(nullptr); }

Pool *get_pool() {
    Pool *pool = current_pool.load(std::memory_order_acquire);
    if (pool != nullptr) return pool;
    static const int at_fork = pthread_atfork(nullptr, nullptr, forget_pool);
    if (at_fork != 0) return nullptr; // without the handler, a child would hang
    Pool *const fresh = new (std::nothrow) Pool;
    if (fresh == nullptr) return nullptr;
    if (current_pool.compare_exchange_strong(pool, fresh)) return fresh;
    delete fresh;
    return pool;
}

void run_alone(Region &region, int64_t phases) {
    for (int64_t phase = 0; phase < phases; ++phase) {
        const int64_t tasks = region.tasks(phase);
        for (int64_t task = 0; task < tasks; ++task) region.run(phase, task, 0);
    }
}

// Called while the gate is closed and no thread is inside.
void run_together(Pool &pool, Region &region, int64_t phases, int threads) {
    const int64_t first = next_phase(region, 0, phases);
    if (first == phases) return;
    const uint32_t before = pool.now();
    if (before - pool.refreshed > kRefresh) {
        for (int i = 0; i <= pool.workers; ++i)
            pool.slots[i].claim.store(uint64_t(before) << 32, std::memory_order_relaxed);
        pool.refreshed = before;
    }
    pool.region = &region;
    pool.threads = threads;
    pool.phases = phases;
    pool.base = before + 1;
    pool.spin = threads > physical_cores() ? kCrowdedSpin : kSpin;
    pool.finished.store(0, std::memory_order_relaxed);
    pool.gate.store(kOpen, std::memory_order_release);
    pool.sequence.store(pool.base + uint32_t(first), std::memory_order_seq_cst);

    take_part(pool, 0);

    pool.gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    const auto empty = [&] { return pool.gate.load(std::memory_order_acquire) == 0; };
    if (spin_until(empty, pool.spin)) return;
    uint32_t gate = pool.gate.fetch_or(kCallerWaits, std::memory_order_acq_rel) | kCallerWaits;
    while (gate != kCallerWaits) {
        sleep_while(pool.gate, gate);
        gate = pool.gate.load(std::memory_order_acquire);
    }
    pool.gate.store(0, std::memory_order_relaxed);
}

std::atomic<int> wanted_threads{0}; // 0: the default

} // namespace

void run_region(Region &region, int threads) {
    if (threads <= 0) threads = num_threads();
    threads = std::min(threads, kMaxThreads);
    const int64_t phases = region.phases();
    const unsigned saved = set_float_state(region.flushes());
    const bool outer = inside;
    inside = true;
    Pool *const pool = threads > 1 && !outer && phases < kMaxPhases ? get_pool() : nullptr;
    if (pool != nullptr && !pool->busy.exchange(true, std::memory_order_acquire)) {
        threads = start_workers(*pool, threads);
        if (threads > 1) {
            run_together(*pool, region, phases, threads);
        } else {
            run_alone(region, phases);
        }
        pool->busy.store(false, std::memory_order_release);
    } else {
        run_alone(region, phases);
    }
    inside = outer;
    restore_float_state(saved);
}

int num_threads() {
    const int n = wanted_threads.load(std::memory_order_relaxed);
    return n > 0 ? n : default_num_threads();
}

void set_num_threads(int n) {
    wanted_threads.store(std::max(0, std::min(n, kMaxThreads)), std::memory_order_relaxed);
}

int default_num_threads() {
    const int asked = requested_threads();
    return std::min(asked > 0 ? asked : physical_cores(), kMaxThreads);
}

} // namespace ffncore
