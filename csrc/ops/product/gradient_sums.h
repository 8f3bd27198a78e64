// Where a weight gradient's blocks of tokens are added up, when that is not the gradient itself:
//
//   total    a gradient of 16 bits is rounded once, so that the sum of several calls is kept in T
//   partial  the partial sum at hand (kPartialSum tokens), from the second one on
//
// Tokens before the first 32768 are added to the gradient or its total; each later partial sum is
// made apart and then added. Both arrays are [rows][cols], whatever the gradient's strides are.
#pragma once
#include "../arrays/array.h"
#include "../schedule/call.h"

namespace ffncore {

template <class T> struct GradientSums {
    T *total = nullptr, *partial = nullptr; // nullptr: not needed
    int64_t cols = 0;

    void take(Arena &arena, int64_t rows, int64_t columns, bool narrow, bool long_sum) {
        cols = columns;
        if (narrow) total = arena.take<T>(rows * cols);
        if (long_sum) partial = arena.take<T>(rows * cols);
    }
    GradientSums from(int64_t row) const {
        GradientSums rest = *this;
        if (total) rest.total += row * cols;
        if (partial) rest.partial += row * cols;
        return rest;
    }

    // Where the tokens that follow the first `before` are added, and whether something is there.
    Output target(const Output &gradient, int64_t before) const {
        if (before >= kPartialSum) return in(partial);
        return total ? in(total) : gradient;
    }
    bool adds(int64_t before, bool accumulate) const {
        return before % kPartialSum > 0 || (before == 0 && accumulate && !total);
    }

    // Whether there is something to do after the first `end` tokens; last: they are all.
    bool ready(int64_t end, bool last) const {
        const bool partial_ends = partial && (last || end % kPartialSum == 0);
        return (partial_ends && end > kPartialSum) || (last && total);
    }
    // Adds the job that does it.
    void put(const Build<T> &build, const Output &gradient, int64_t rows, int64_t end, bool last,
             bool accumulate) const {
        constexpr int64_t kRows = 64; // per task
        if (!ready(end, last)) return;
        build.schedule.job(ceil_div(rows, kRows),
                           [=, *this, k = &build.call.kernels](int64_t task, int) {
                               const int64_t r = task * kRows, n = std::min(kRows, rows - r);
                               auto add_to = [&](const T *sums, const Output &to, bool add) {
                                   k->of[to.type].store(sums + r * cols, cols, n, cols, nullptr, 0,
                                                        0, to.at(r), to.row, to.col, add);
                               };
                               if (partial && end > kPartialSum)
                                   add_to(partial, total ? in(total) : gradient, true);
                               if (total && last) add_to(total, gradient, accumulate);
                           });
    }

  private:
    Output in(T *sums) const { return {(char *)sums, cols, 1, kOwn<T>}; }
};

} // namespace ffncore
