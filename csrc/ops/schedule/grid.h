// How a product is cut into tasks: a grid of row ranges and panel ranges. Task i has the row range
// i % row_tasks and the panel range i / row_tasks, so neighbouring tasks share their panels.
#pragma once
#include <algorithm>

#include "../arrays/ranges.h"
#include "../arrays/sizes.h"

namespace ffncore {

// A product of [rows] x [panels]. Rows are cut only between tiles of `quantum` rows, and a task has
// at most `together` panels.
struct GridSize {
    int64_t rows, quantum = 1, panels = 1, together = 1;
};

struct Grid {
    int64_t rows, quantum, row_tasks, panels, panel_tasks;
    // Makes at least kTasksPerThread tasks a thread where there is enough work, and a multiple of
    // the number of threads, so that equally fast cores end together. A job with a share of its
    // phase makes that share of the tasks.
    Grid(const GridSize &size, int threads, double share = 1);
    int64_t tasks() const { return row_tasks * panel_tasks; }
    int64_t row(int64_t i) const { // first row of row task i
        const int64_t tiles = ceil_div(rows, quantum);
        return std::min(rows, tiles * i / row_tasks * quantum);
    }
    int64_t panel(int64_t i) const { return panels * i / panel_tasks; }
    template <class Run> void run(int64_t task, const Run &body) const {
        const int64_t r = task % row_tasks, p = task / row_tasks;
        body(RowRange{row(r), row(r + 1) - row(r)}, PanelRange{panel(p), panel(p + 1) - panel(p)});
    }
};

} // namespace ffncore
