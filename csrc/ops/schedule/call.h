// A call: with what and on how many threads it computes, and how its schedule is built, once to
// count memory and once to run.
#pragma once
#include <utility>

#include "../../core/workspace.h"
#include "buffers.h"
#include "schedule.h"

namespace ffncore {

template <class T> struct Call {
    const Kernels<T> &kernels;
    ActivationParams activation;
    int threads;
    int64_t l2;
};

// bfloat16's arithmetic has no subnormals.
template <class T> bool flushes(const Kernels<T> &kernels) { return kernels.round != nullptr; }

// Where a group's phases are added. With an arena that only counts, nothing may run.
template <class T> struct Build {
    Schedule &schedule;
    Arena &arena;
    ScratchSet<T> &scratch;
    const Call<T> &call;
    double share = 1; // of a phase's work that one job is: a group of a mixture has less
};

// Bytes of the groups' buffers, and of these and the threads' scratch.
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

// A schedule is built twice: to count memory (the groups' buffers, then the threads' scratch), and
// for good. add(build) adds its phases. false: out of memory.
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
