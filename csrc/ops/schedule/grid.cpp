// See grid.h.
#include "grid.h"

#include <cmath>
#include <numeric>

namespace ffncore {

// With four tasks a thread, a core that is late by a tenth of a phase has its last task taken over
// by another one.
constexpr int64_t kTasksPerThread = 4;

Grid::Grid(const GridSize &size, int threads, double share)
    : rows(size.rows), quantum(size.quantum), row_tasks(1), panels(size.panels),
      panel_tasks(std::max<int64_t>(1, ceil_div(panels, std::max<int64_t>(size.together, 1)))) {
    const int64_t tiles = std::max<int64_t>(1, ceil_div(rows, quantum));
    if (threads == 1) return;
    const int64_t wanted = (int64_t)std::ceil(double(threads * kTasksPerThread) * share);
    row_tasks = ceil_div(wanted, panel_tasks);
    if (share == 1)
        row_tasks = round_up(row_tasks, threads / std::gcd<int64_t>(panel_tasks, threads));
    row_tasks = std::min(row_tasks, tiles);
}

} // namespace ffncore
