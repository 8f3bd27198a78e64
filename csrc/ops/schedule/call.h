// A call: which kernels and how many threads it uses (Call), and how its schedule is built: once to
// count its memory and once to run (run_schedule).
#pragma once
#include <utility>

#include "../../core/streams.h"
#include "../../core/workspace.h"
#include "buffers.h"
#include "schedule.h"

namespace ffncore {

template <class T> struct Call {
    const Kernels<T> &kernels;
    ActivationParams activation;
    int threads;
    int64_t l2;
    Streams streams;
};

// Whether subnormals count as zero: in bfloat16's arithmetic, the only one whose kernels round the
// hidden state.
template <class T> bool flushes(const Kernels<T> &kernels) { return kernels.round != nullptr; }

// What a group needs to add its phases. While the arena only counts, nothing may run.
template <class T> struct Build {
    Schedule &schedule;
    Arena &arena;
    ScratchSet<T> &scratch;
    const Call<T> &call;
    double share = 1; // the share of a phase's work that a job has: below 1 for a mixture's groups
};

// Returns the bytes of the groups' buffers, and the bytes of these and the scratch of all threads.
template <class T, class Add>
std::pair<int64_t, int64_t> count_schedule(const Call<T> &call, const Add &add,
                                           ScratchSet<T> &scratch) {
    Schedule schedule(Schedule::kCount);
    Arena arena;
    add(Build<T>{schedule, arena, scratch, call});
    const int64_t shared = arena.used();
    scratch.take(arena, call.threads);
    return {shared, arena.used()};
}

// Builds a schedule and runs it; add(build) adds its phases. It is built twice: first to count the
// memory (the buffers of the groups, then the scratch of the threads), then with that memory.
// Returns false if memory ran out.
template <class T, class Add> bool run_schedule(const Call<T> &call, const Add &add) {
    ScratchSet<T> scratch;
    const auto [shared, bytes] = count_schedule(call, add, scratch);
    Lease lease(bytes);
    if (!lease.data()) return false;
    Schedule schedule(call.threads, flushes(call.kernels));
    Arena arena((char *)lease.data());
    scratch.base = (T *)((char *)lease.data() + shared);
    add(Build<T>{schedule, arena, scratch, call});
    run_region(schedule, call.threads);
    return true;
}
template <class T, class Add> int64_t count_workspace(const Call<T> &call, const Add &add) {
    ScratchSet<T> scratch;
    return count_schedule(call, add, scratch).second;
}

} // namespace ffncore
