// Sums over tokens that are kept outside a weight gradient:
//
//   total    for a gradient of 16 bits, which is rounded once: the sum of several chunks, in T
//   partial  the current partial sum (kPartialSum tokens), from the second one on
//
// The first 32768 tokens are added to the gradient or its total. Each later partial sum is summed
// in `partial` and then added. Both arrays are [rows][cols], whatever the strides of the gradient
// are.
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

    // Where a chunk that follows `before` tokens is added; and (adds) whether to add to the numbers
    // there, or to replace them.
    Output target(const Output &gradient, int64_t before) const {
        if (before >= kPartialSum) return in(partial);
        return total ? in(total) : gradient;
    }
    bool adds(int64_t before, bool accumulate) const {
        return before % kPartialSum > 0 || (before == 0 && accumulate && !total);
    }

    // Whether one of these sums has to be added to its target once `end` tokens are done. last:
    // these are all tokens.
    bool ready(int64_t end, bool last) const {
        const bool partial_ends = partial && (last || end % kPartialSum == 0);
        return (partial_ends && end > kPartialSum) || (last && total);
    }
    // Adds a job that does so, if needed.
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
