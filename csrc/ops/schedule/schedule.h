// A schedule: a call as a list of phases. A phase is a list of jobs, and a job is a number of
// independent tasks.
//
// The jobs of one phase may run in any order and at the same time. A phase sees all that the phases
// before it have written. The thread pool (core/threads.h) knows only phases and task numbers.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "../../core/threads.h"

namespace ffncore {

struct Job {
    int64_t tasks;
    std::function<void(int64_t task, int thread)> run;
};

class Schedule final : public Region {
  public:
    // threads > 0: whenever kJobs jobs have been added, they run on so many threads, and the list
    // begins anew. 0: nothing runs before run_region(). kCount: jobs are not kept, because this
    // schedule only counts memory.
    explicit Schedule(int threads = 0, bool flushes = false)
        : threads_(threads), flushes_(flushes) {}
    static constexpr int kCount = -1;

    void phase() {
        if (threads_ > 0 && jobs_.size() >= kJobs) {
            run_region(*this, threads_);
            jobs_.clear();
            firsts_.clear();
        }
        firsts_.push_back(jobs_.size());
    }
    // Adds a job to the newest phase.
    template <class Run> void job(int64_t tasks, Run run) {
        if (threads_ != kCount) jobs_.push_back({tasks, std::move(run)});
    }

    int64_t phases() const override { return (int64_t)firsts_.size(); }
    int64_t tasks(int64_t phase) const override {
        int64_t n = 0;
        for (size_t j = firsts_[phase]; j < end(phase); ++j) n += jobs_[j].tasks;
        return n;
    }
    bool flushes() const override { return flushes_; }
    void run(int64_t phase, int64_t task, int thread) override {
        size_t j = firsts_[phase];
        for (; task >= jobs_[j].tasks; ++j) task -= jobs_[j].tasks;
        jobs_[j].run(task, thread);
    }

  private:
    size_t end(int64_t phase) const {
        return phase + 1 < (int64_t)firsts_.size() ? firsts_[phase + 1] : jobs_.size();
    }
    // A job takes about 500 bytes, so the list takes at most 1 MB, however many chunks there are.
    // In calls with so many jobs each takes milliseconds; compared with 2000 of them, the time to
    // wake the threads does not matter.
    static constexpr size_t kJobs = 2000;

    const int threads_;
    const bool flushes_;
    std::vector<Job> jobs_;
    std::vector<size_t> firsts_; // first job of each phase
};

} // namespace ffncore
