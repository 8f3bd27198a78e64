// The thread pool. A call of the library is ONE parallel region: a list of phases, each a number of
// independent tasks; a phase starts when every task of the one before has finished. Barriers count
// finished tasks, not arrived threads: a worker that still sleeps holds no task and is never waited
// for. Task t of n starts on thread t * threads / n (so that a core meets the same weights again in
// its own cache from call to call); a thread whose share is done takes from the others'.
#pragma once
#include <cstdint>

namespace ffncore {

// What a region runs. tasks(phase) and run(phase, task, thread) are called from any thread; tasks
// must depend on nothing but the phase. thread < threads(), the caller is thread 0.
class Region {
  public:
    virtual ~Region() = default;
    virtual int64_t phases() const = 0;
    virtual int64_t tasks(int64_t phase) const = 0;
    virtual void run(int64_t phase, int64_t task, int thread) = 0;
    virtual bool flushes() const { return false; } // subnormals are zero, see fpstate.h
};

// Runs all phases on at most `threads` threads (the caller is one of them; 0: num_threads()).
// Floating-point state is set on every thread and restored. A nested or concurrent
// call runs on its caller alone. Never throws.
void run_region(Region &region, int threads);

int num_threads();
void set_num_threads(int n); // 0: default = physical cores in the affinity mask and cgroup quota
int default_num_threads();

} // namespace ffncore
