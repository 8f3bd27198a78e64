// The thread pool. A call of the library is one parallel region: a list of phases, each of which is
// a number of independent tasks. A phase starts when all tasks of the phase before have finished.
// Barriers count finished tasks, not arrived threads, so no one waits for a worker that still
// sleeps and holds no task. Task t of n belongs to the share of thread t * threads / n, so that in
// every call a core finds the same weights in its cache. A thread that is done with its share takes
// tasks from the shares of others.
#pragma once
#include <cstdint>

namespace ffncore {

// What a region runs. tasks(phase) and run(phase, task, thread) are called from any thread. tasks
// must depend on the phase alone. thread is below the number of threads; the caller is thread 0.
class Region {
  public:
    virtual ~Region() = default;
    virtual int64_t phases() const = 0;
    virtual int64_t tasks(int64_t phase) const = 0;
    virtual void run(int64_t phase, int64_t task, int thread) = 0;
    virtual bool flushes() const { return false; } // subnormals count as zero, see fpstate.h
};

// Runs all phases on at most `threads` threads, the caller included; 0 means num_threads(). The
// floating-point state is set on every thread, and the caller's is restored. A nested or concurrent
// call runs on its caller alone. Never throws.
void run_region(Region &region, int threads);

int num_threads();
void set_num_threads(int n); // 0: default = physical cores in the affinity mask and cgroup quota
int default_num_threads();

} // namespace ffncore
