// Norms of rows and their backward pass, see norm.h. A task is a range of rows; rows that are not
// contiguous, or not of T, go through buffers of the thread.
//
// For the gradients of gain and bias the rows are cut into groups, at most kMaxGroups of them, so
// that their sums take at most 2 kMaxGroups d elements however many rows there are. A group is a
// task, and sums its rows in order; a second phase adds the groups in order. A long group is summed
// in blocks of kBlock rows, because one chain over all of its rows would round too often.
#include "norm.h"

#include <algorithm>

#include "../../core/workspace.h"
#include "../arrays/one_row.h"
#include "../schedule/schedule.h"

namespace ffncore {

namespace {

constexpr int64_t kTaskElements = 1 << 13; // about 5 us of work
constexpr int64_t kLeastGroup = 16;        // rows: their sums are then an eighth of x and grad_y
constexpr int64_t kMaxGroups = 128;        // tasks enough for 64 cores
constexpr int64_t kTaskColumns = 256;      // of the second phase: a KiB of each group's sums
constexpr int kRows = 3;                   // buffers of a thread: x, grad_y, and y or grad_x

template <class T> int64_t row_elements(int64_t d) { return round_up(d, 64 / sizeof(T)); }

template <class T> void run(const Norm<T> &norm, int64_t tasks, const Job &job) {
    Schedule s(0, norm.flushes);
    s.phase();
    s.job(tasks, job.run);
    run_region(s, norm.threads);
}

} // namespace

template <class T> bool norm_forward(const Norm<T> &norm) {
    const int64_t d = norm.d, row = row_elements<T>(d);
    const Lease lease(size_t(row * kRows * norm.threads) * sizeof(T));
    T *const base = static_cast<T *>(lease.data());
    if (!base) return false;
    const int64_t together = std::max<int64_t>(1, kTaskElements / d);
    const int64_t tasks = ceil_div(norm.rows, together);
    run(norm, tasks, {tasks, [&](int64_t task, int thread) {
                          T *const mine = base + thread * kRows * row;
                          const int64_t end = std::min(norm.rows, (task + 1) * together);
                          for (int64_t t = task * together; t < end; ++t) {
                              NormArgs<T> a{};
                              a.n = d;
                              a.x = read_row(norm.kernels, norm.x, t, d, mine);
                              a.gain = norm.gain;
                              a.bias = norm.bias;
                              a.y = row_to_write(norm.y, t, mine + row);
                              norm.kernels.norm_forward(norm.params, a);
                              write_row(norm.kernels, norm.y, t, d, mine + row);
                          }
                      }});
    return true;
}

template <class T> bool norm_backward(const Norm<T> &norm) {
    const int64_t d = norm.d, row = row_elements<T>(d);
    const bool sums = norm.grad_gain.data || norm.grad_bias.data;
    const int64_t group = std::max(kLeastGroup, ceil_div(norm.rows, kMaxGroups));
    const int64_t groups = ceil_div(norm.rows, group);
    // The sums of a group, and those of its newest block: of gain, then of bias.
    const int64_t shared = sums ? 2 * row * groups : 0, own = (kRows + (sums ? 2 : 0)) * row;
    const Lease lease(size_t(shared + own * norm.threads + row) * sizeof(T));
    T *const base = static_cast<T *>(lease.data());
    if (!base) return false;
    const Output *const to[2] = {&norm.grad_gain, &norm.grad_bias};
    run(norm, groups,
        {groups, [&](int64_t task, int thread) {
             T *const mine = base + shared + thread * own, *const block = mine + kRows * row;
             T *const total = base + task * 2 * row;
             const int64_t begin = task * group, end = std::min(norm.rows, begin + group);
             if (sums) std::fill(total, total + 2 * row, T(0));
             for (int64_t first = begin; first < end; first += kBlock) {
                 if (sums) std::fill(block, block + 2 * row, T(0));
                 for (int64_t t = first; t < std::min(end, first + kBlock); ++t) {
                     NormBackwardArgs<T> a{};
                     a.n = d;
                     a.x = read_row(norm.kernels, norm.x, t, d, mine);
                     a.dy = read_row(norm.kernels, norm.grad_y, t, d, mine + row);
                     a.gain = norm.gain;
                     if (norm.grad_x.data) a.dx = row_to_write(norm.grad_x, t, mine + 2 * row);
                     if (norm.grad_gain.data) a.sum_gain = block;
                     if (norm.grad_bias.data) a.sum_bias = block + row;
                     norm.kernels.norm_backward(norm.params, a);
                     if (a.dx) write_row(norm.kernels, norm.grad_x, t, d, mine + 2 * row);
                 }
                 for (int64_t c = 0; sums && c < 2 * row; ++c) total[c] += block[c];
             }
         }});
    if (!sums) return true;
    const int64_t tasks = ceil_div(d, kTaskColumns);
    run(norm, tasks, {tasks, [&](int64_t task, int) {
                          const int64_t first = task * kTaskColumns,
                                        n = std::min(d - first, kTaskColumns);
                          for (int i = 0; i < 2; ++i) {
                              if (!to[i]->data) continue;
                              T sum[kTaskColumns] = {};
                              for (int64_t g = 0; g < groups; ++g)
                                  for (int64_t c = 0; c < n; ++c)
                                      sum[c] += base[(2 * g + i) * row + first + c];
                              const Output &out = *to[i];
                              norm.kernels.of[out.type].store(sum, n, 1, n, nullptr, 0, 0,
                                                              out.at(first), 0, out.row, false);
                          }
                      }});
    return true;
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template bool norm_forward<T>(const Norm<T> &);                                                \
    template bool norm_backward<T>(const Norm<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
