// How a product is cut into tasks.
#pragma once
#include <algorithm>

#include "../arrays/sizes.h"

namespace ffncore {

// Cuts [rows] x [panels] into tasks; rows are cut between tiles of `quantum` rows.
struct Grid {
    int64_t rows, quantum, row_tasks, panels, panel_tasks;
    // At least kTasksPerThread tasks a thread where there is that much work, and a multiple of the
    // threads, so that equal cores end together; at most `together` panels a task. A job that is a
    // share of its phase has its share of these tasks.
    Grid(int64_t rows, int64_t quantum, int64_t panels, int64_t together, int threads,
         double share = 1);
    int64_t tasks() const { return row_tasks * panel_tasks; }
    int64_t row(int64_t i) const { // first row of row task i
        const int64_t tiles = ceil_div(rows, quantum);
        return std::min(rows, tiles * i / row_tasks * quantum);
    }
    int64_t panel(int64_t i) const { return panels * i / panel_tasks; }
    template <class Run> void run(int64_t task, const Run &body) const {
        const int64_t r = task % row_tasks, p = task / row_tasks;
        body(row(r), row(r + 1), panel(p), panel(p + 1));
    }
};

} // namespace ffncore
