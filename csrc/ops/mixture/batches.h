// How the rows of a mixture are cut into batches for the backward pass. dgate, dup and h of a batch
// are held at once.
//
// A batch is a list of segments. A segment is some rows of one expert, and segments are in the
// order of the experts; so the weights and gradients of an expert are used in one batch, or in few.
// The rows of an expert are cut only between blocks of 512, where its sums over tokens can be
// continued. With gradients of 16 bits, which are rounded once, they stay together if they fit in a
// batch. Two kinds of experts have batches of their own (Segment::apart): those with 16-bit
// gradients and too many rows for a batch; and those with several partial sums (kPartialSum), whose
// rows are also cut where a partial sum ends.
#pragma once
#include "../arrays/preactivations.h"
#include "dispatch.h"

namespace ffncore {

// Bytes of a batch, unless one block of rows takes more. With the scratch memory of two threads,
// this is what a call may hold.
constexpr int64_t kBatchBytes = 48 << 20;

struct Segment {
    int64_t group, expert;
    int64_t row0; // the first row, as Dispatch numbers them
    int64_t rows;
    int64_t before; // rows of the expert in earlier segments
    int64_t at;     // the first row in the buffers of the batch
    bool apart;     // it has a batch of its own, and its sums may be kept in GradientSums
    bool last;      // it is the last segment of the expert
    int64_t end() const { return before + rows; }
};
using Batch = std::vector<Segment>;

// Cuts the rows into batches of at most `rows` rows, but at least a block. narrow: some gradients
// have 16 bits.
inline std::vector<Batch> cut_batches(const std::vector<Group> &groups, int64_t rows, bool narrow) {
    const int64_t most = std::max(kBlock, round_up(rows, kBlock));
    std::vector<Batch> batches;
    int64_t held = most; // rows of the newest batch; at first there is none, which counts as full
    for (size_t g = 0; g < groups.size(); ++g) {
        const Group &group = groups[g];
        const bool apart = (narrow && group.rows > most) || group.rows > kPartialSum;
        for (int64_t done = 0; done < group.rows;) {
            const int64_t rest = group.rows - done;
            int64_t n = std::min({rest, most - held, kPartialSum - done % kPartialSum});
            if (n < rest) n = narrow && !apart ? 0 : n / kBlock * kBlock;
            if (n == 0 || (apart && held > 0)) {
                batches.emplace_back();
                held = 0;
                continue;
            }
            batches.back().push_back(
                {(int64_t)g, group.expert, group.first + done, n, done, held, apart, n == rest});
            held = apart ? most : held + n;
            done += n;
        }
    }
    return batches;
}

// The largest sizes of all batches.
struct BatchSizes {
    int64_t rows = 0;
    int64_t saved = 0, dh = 0; // elements of the preactivations, and of dh in the same layout
    int64_t sums = 0;          // groups of 8 rows (kSumGroup)
    bool apart = false;        // some segment is apart
    bool long_sums = false;    // some expert has several partial sums
    BatchSizes(const std::vector<Batch> &batches, int64_t f, bool gated) {
        for (const Batch &batch : batches) {
            int64_t kept = 0, plain = 0, groups = 0;
            for (const Segment &s : batch) {
                kept += saved_elements(s.rows, f, gated);
                plain += saved_elements(s.rows, f, false);
                groups += ceil_div(s.rows, kSumGroup);
                apart = apart || s.apart;
                long_sums = long_sums || s.end() > kPartialSum;
            }
            rows = std::max(rows, batch.back().at + batch.back().rows);
            saved = std::max(saved, kept);
            dh = std::max(dh, plain);
            sums = std::max(sums, groups);
        }
    }
};

} // namespace ffncore
