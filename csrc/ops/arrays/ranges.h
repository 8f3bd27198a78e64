// Ranges of indices. The type says what is counted, so that a call cannot mix up rows and columns.
#pragma once
#include <algorithm>
#include <cstdint>

namespace ffncore {

template <class Of> struct Range {
    int64_t first, count;
    int64_t end() const { return first + count; }
};

using RowRange = Range<struct OfRows>;       // of A and C, in units (Walk)
using ColumnRange = Range<struct OfColumns>; // of C
using PanelRange = Range<struct OfPanels>;   // of B
using Steps = Range<struct OfSteps>;         // of the dimension that a product sums over
using TokenRange = Range<struct OfTokens>;
using UnitRange = Range<struct OfUnits>; // hidden units

// Calls body(part) for parts of `most` indices, in order; the last one may be shorter.
template <class Of, class Body>
void each_part(const Range<Of> &all, int64_t most, const Body &body) {
    for (int64_t i = all.first, n; i < all.end(); i += n) {
        n = std::min(most, all.end() - i);
        body(Range<Of>{i, n});
    }
}

} // namespace ffncore
