// How the rows of a mixture are cut for the backward pass: into batches, whose dgate, dup and h are
// held at once.
//
// A batch is segments of experts' rows, in rising order; so each expert's weights and gradients are
// passed by in one batch, or in few. An expert's rows are cut between blocks of 512 only, where its
// sums over tokens may be continued. Gradients of 16 bits are rounded once: then an expert's rows
// stay together, or, where they are too many for a batch, have batches of their own. So do the rows
// of an expert that has several partial sums (kPartialSum), and are cut where one ends.
#pragma once
#include "../arrays/preactivations.h"
#include "dispatch.h"

namespace ffncore {

// Bytes of a batch, if its rows let it: with the scratch of two threads, what a call may hold.
constexpr int64_t kBatchBytes = 48 << 20;

struct Segment {
    int64_t group, expert;
    int64_t row0; // of the dispatch
    int64_t rows;
    int64_t before; // rows of the expert in earlier segments
    int64_t at;     // row of the batch's buffers
    bool apart;     // a batch of its own: its gradients may be added up beside (GradientSums)
    bool last;      // of the expert
    int64_t end() const { return before + rows; }
};
using Batch = std::vector<Segment>;

// Of at most `rows` rows, or a block. narrow: some gradients have 16 bits.
inline std::vector<Batch> cut_batches(const std::vector<Group> &groups, int64_t rows, bool narrow) {
    const int64_t most = std::max(kBlock, round_up(rows, kBlock));
    std::vector<Batch> batches;
    int64_t held = most; // of the newest batch; there is none
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

// What the largest batch holds.
struct BatchSizes {
    int64_t rows = 0;
    int64_t saved = 0, dh = 0; // elements of its preactivations, and of their like without a gate
    int64_t sums = 0;          // groups of 8 rows (kSumGroup)
    bool apart = false;        // some segment is
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
