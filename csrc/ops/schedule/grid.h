// How a product is cut into tasks.
#pragma once
#include <algorithm>

#include "../arrays/ranges.h"
#include "../arrays/sizes.h"

namespace ffncore {

// [rows] x [panels]; rows are cut between tiles of `quantum` rows, a task has at most `together`
// panels.
struct GridSize {
    int64_t rows, quantum = 1, panels = 1, together = 1;
};

struct Grid {
    int64_t rows, quantum, row_tasks, panels, panel_tasks;
    // At least kTasksPerThread tasks a thread where there is that much work, and a multiple of the
    // threads, so that equal cores end together. A job that is a share of its phase has its share
    // of these tasks.
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
