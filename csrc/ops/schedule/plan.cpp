// Searches for the plan that plan.h describes. The search cuts the hidden units into more and more
// parts, from one part to parts of one block, and takes for each cut as many tokens as fit. Where
// everything fits at once, the first try is the answer.
#include "plan.h"

#include <algorithm>

#include "../arrays/preactivations.h"

namespace ffncore {

PlanOverride plan_override;

namespace {

// Bytes of the shared workspace of a call. The promise is 64 MiB plus 4 MiB a thread; the other 8
// MiB are for the list of jobs, copies of strided biases, alignment, and rounding to huge pages.
constexpr int64_t kBudget = 56 << 20;

// Hidden units are cut into 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, ... parts. Steps of a quarter are
// fine enough, as neighbouring plans hardly differ, and there are few of them whatever d_ff is.
constexpr int64_t kStep = 4;

// In the backward pass, the packed x and grad_y of a chunk get all the room that they need, or a
// half of the budget, or less. Below a sixteenth, the chunk hardly gains what they lose.
constexpr int64_t kLeastShare = 16;

// Arrays of running sums of y or dx between chunks of hidden units, as in take_carry().
int64_t carries(const PlanRequest &r) { return r.f > kPartialSum ? 2 : 1; }

bool partial_sums(const PlanRequest &r) { return r.weight_grads && r.tokens > kPartialSum; }

// Whether a chunk of hidden units goes through all tokens before the next one (Plan::units_outer).
// With several partial sums it does, so that they are held for few hidden units, unless dx would
// have to be carried for all tokens. With 16-bit gradients it does where dx of all tokens is
// smaller than the sums of the whole layer.
bool units_outer(const PlanRequest &r) {
    if (partial_sums(r)) return !r.grad_x;
    return r.narrow && !r.rows && r.tokens * carries(r) <= (r.gated ? 3 : 2) * r.f;
}

// Bytes of the sums that are kept in addition to the weight gradients of `units` hidden units
// (GradientSums).
int64_t kept_bytes(const PlanRequest &r, int64_t units) {
    const int64_t copies = (r.narrow ? 1 : 0) + (partial_sums(r) ? 1 : 0);
    return copies * (r.gated ? 3 : 2) * units * (r.d + 1) * r.element;
}

// Whether the partial sums of the layer leave too little room for chunks. Then dx is computed apart
// (Plan::grad_x_apart).
bool crowded(const PlanRequest &r) {
    return partial_sums(r) && r.grad_x && kept_bytes(r, r.f) > kBudget / 4;
}

// Chunks of hidden units are multiples of this: of the block, because dx sums over hidden units; or
// of 16 where there is no dx, and partial sums of long rows have to fit.
int64_t unit_grain(const PlanRequest &r) { return partial_sums(r) && !r.grad_x ? 16 : kBlock; }

struct Cut {
    int64_t chunk, units, slice;
    bool keeps_sums = false;
};

// The bytes that a cut holds: a fixed part, a part for each token of the chunk, and one for each
// token of the slice.
class Held {
  public:
    // keeps_sums: with sums in addition to the gradients; of the chunk, or of the layer (see Plan).
    Held(const PlanRequest &r, int64_t units, bool keeps_sums) {
        const int64_t sides = r.gated ? 2 : 1;
        const int64_t carried = units < r.f ? carries(r) : 0;
        fixed_ = 1024; // rounding of a dozen buffers to cache lines
        auto row = [&](int64_t columns) { return columns * r.element + 192; }; // row_stride
        const int64_t out = carried * round_up(r.d * r.element, kPanelBytes);  // in whole panels
        // dgate, dup, h; gate, up, dh in panels; copied x, grad_y; running sums of dx
        if (r.backward && r.rows) {
            const int64_t panels = (r.recompute ? sides : 0) + (r.xielu ? 1 : 0); // gate, up, dh
            token_ = (sides + (r.weight_grads ? 1 : 0)) * row(units) + panels * units * r.element +
                     (r.converts || copies_rows(r.d, r.element) ? 2 * row(r.d) : 0) +
                     (r.grad_x ? out : 0);
            fixed_ += panels * units * r.element * kSavedGrain;
            if (r.recompute) fixed_ += recompute_slice(r.d, r.element, r.panel) * r.d * r.element;
        } else if (r.backward) {
            const int64_t again = r.recompute ? units * sides : 0;
            slice_ = r.d * r.element * (r.recompute ? 2 : 1);         // grad_y, x
            token_ = units * (sides + (r.weight_grads ? 1 : 0))       // dgate, dup, h
                     + again;                                         // gate, up
            if (r.grad_x && !units_outer(r)) token_ += carried * r.d; // running sums of dx
            token_ *= r.element;
            if (keeps_sums) fixed_ += kept_bytes(r, units_outer(r) ? units : r.f);
            fixed_ += again * r.element * (std::max(kSavedGrain, r.panel) - r.panel);
        } else if (r.rows) {
            token_ = row(r.d) + row(units) + out;
        } else { // packed x, h, running sums of y
            token_ = (r.d * (1 + carried) + units) * r.element;
        }
        if (r.xielu) {
            token_ += 2 * units * r.element / kSumGroup;
            fixed_ += 2 * (r.f * (int64_t)sizeof(double) + units * r.element);
        }
    }
    int64_t slice() const { return slice_; } // bytes of one token of a slice
    int64_t bytes(int64_t chunk, int64_t slice) const {
        return fixed_ + chunk * token_ + slice * slice_;
    }
    // The most tokens of a chunk that leaves room for this slice, and of a chunk in one slice.
    int64_t tokens(int64_t slice) const { return (kBudget - bytes(0, slice)) / token_; }
    int64_t tokens() const { return (kBudget - fixed_) / (token_ + slice_); }

  private:
    int64_t token_ = 0, slice_ = 0, fixed_ = 0;
};

// The bytes that a cut moves through memory: weights and their gradients once for each chunk or
// slice of tokens; running sums, x and grad_y once for each part of the hidden units.
double moved(const PlanRequest &r, const Cut &c) {
    const double sides = r.gated ? 2 : 1, parts = (double)ceil_div(r.f, c.units);
    const double matrix = (double)r.d * (double)r.f, x = (double)r.tokens * (double)r.d;
    const double chunks = (double)ceil_div(r.tokens, c.chunk);
    double elements = parts > 1 && (r.grad_x || !r.backward) ? 2 * parts * x : 0;
    if (!r.backward) return (elements + matrix * (sides + 1) * chunks) * (double)r.element;
    const bool one_slice = c.slice == c.chunk;
    const double slices = one_slice ? chunks : chunks * (double)ceil_div(c.chunk, c.slice);
    const double slice_sides = 1 + (r.recompute ? sides : 0); // dh; gate and up again
    elements += matrix * (slices * slice_sides + (r.grad_x ? chunks * sides : 0));
    if (r.weight_grads) elements += 2 * (matrix * chunks * (sides + 1) + parts * x);
    if (!one_slice) // x and grad_y are packed again for each part
        elements += parts * x * (r.recompute ? 4 : 2);
    return elements * (double)r.element;
}

class Search {
  public:
    explicit Search(const PlanRequest &r)
        : r_(r), all_(r.rows ? std::max<int64_t>(r.tokens, 1) : whole_panels(r)),
          grain_(std::min(grain(r), all_)) {}

    static int64_t grain(const PlanRequest &r) {
        if (r.backward)
            return r.weight_grads ? std::max(kBlock, r.panel) : std::max(kSavedGrain, r.panel);
        return r.panel;
    }
    int64_t grain() const { return grain_; }
    bool fits() const { return fits_; }

    Cut operator()() {
        const int64_t grain = unit_grain(r_), most = ceil_div(r_.f, grain);
        for (int64_t parts = 1;;
             parts = std::min(most, parts + std::max<int64_t>(1, parts / kStep))) {
            const int64_t units =
                parts == 1 ? r_.f : std::max(grain, round_up(ceil_div(r_.f, parts), grain));
            part(units);
            if (parts >= most || (parts == 1 && fits_ && best_.chunk == all_ && one_slice()))
                return best_;
        }
    }

  private:
    static int64_t whole_panels(const PlanRequest &r) {
        const int64_t most = partial_sums(r) ? kPartialSum : r.tokens;
        return round_up(std::max<int64_t>(most, 1), r.panel);
    }
    bool one_slice() const { return best_.slice == 0 || best_.slice == best_.chunk; }

    void part(int64_t units) {
        if (!partial_sums(r_)) part(units, false);
        if (partial_sums(r_) || units_outer(r_)) part(units, true);
    }
    void part(int64_t units, bool keeps_sums) {
        const Held held(r_, units, keeps_sums);
        const int64_t chunk = chunk_of(held.tokens());
        take(held, {chunk, units, r_.backward ? chunk : 0, keeps_sums});
        if (!r_.backward || r_.rows || (chunk == all_ && held.bytes(chunk, chunk) <= kBudget))
            return;
        for (int64_t share = 2;; share += share / 2) {
            int64_t slice = kBudget / share / held.slice() / r_.panel * r_.panel;
            if (share > kLeastShare || slice < r_.panel) slice = r_.panel;
            const int64_t tokens = chunk_of(held.tokens(slice));
            const int64_t slices = ceil_div(tokens, slice);
            take(held, {tokens, units, round_up(ceil_div(tokens, slices), r_.panel), keeps_sums});
            if (slice == r_.panel) return;
        }
    }

    // The size of a chunk: at most `tokens`, a multiple of the grain, and such that all chunks are
    // nearly equal.
    int64_t chunk_of(int64_t tokens) const {
        if (tokens >= all_) return all_;
        const int64_t grain = r_.rows && !r_.backward && tokens < grain_ ? 1 : grain_;
        const int64_t chunk = std::max(tokens / grain * grain, grain);
        return round_up(ceil_div(all_, ceil_div(all_, chunk)), grain);
    }

    void take(const Held &held, const Cut &cut) {
        if (units_outer(r_) && !cut.keeps_sums && cut.chunk < r_.tokens) return;
        const int64_t bytes = held.bytes(cut.chunk, cut.slice);
        const bool fits = bytes <= kBudget;
        const double rank = fits ? moved(r_, cut) : (double)bytes;
        if (best_.chunk > 0 && (fits_ > fits || (fits_ == fits && rank_ <= rank))) return;
        best_ = cut;
        fits_ = fits;
        rank_ = rank;
    }

    const PlanRequest &r_;
    const int64_t all_;   // tokens of the largest chunk: all, or those of a partial sum; padded
    const int64_t grain_; // chunks are multiples of it
    Cut best_{};
    bool fits_ = false;
    double rank_ = 0; // bytes that best_ moves; or that it holds, where nothing fits
};

} // namespace

Plan make_plan(const PlanRequest &r) {
    Search search(r);
    const Cut cut = search();
    if ((crowded(r) || !search.fits()) && r.weight_grads && r.grad_x) {
        PlanRequest rest = r;
        rest.grad_x = false;
        Plan plan = make_plan(rest);
        plan.grad_x_apart = true;
        return plan;
    }
    Plan plan{};
    plan.token_chunk = cut.chunk;
    plan.ff_chunk = cut.units;
    plan.token_slice = cut.slice;
    const PlanOverride &o = plan_override;
    if (o.token_chunk > 0) plan.token_chunk = round_up(o.token_chunk, search.grain());
    if (o.ff_chunk > 0)
        plan.ff_chunk = std::min(round_up(o.ff_chunk, kBlock), std::max<int64_t>(r.f, 1));
    if (o.token_slice > 0) plan.token_slice = round_up(o.token_slice, r.panel);
    if (r.narrow && r.rows) plan.token_chunk = std::max(plan.token_chunk, r.tokens);
    plan.token_slice = std::min(plan.token_slice, plan.token_chunk);
    plan.carry = plan.ff_chunk < r.f;
    plan.units_outer = units_outer(r);
    plan.partial_sums = partial_sums(r);
    plan.keeps_sums = r.narrow && (plan.partial_sums || plan.token_chunk < r.tokens);
    return plan;
}

bool tokens_in_rows(int64_t tokens, bool packed, bool turned_once) {
    if (packed) return true;
    if (plan_override.rows >= 0) return plan_override.rows == 1;
    return turned_once || tokens <= kRawRowTokens;
}

bool backward_in_rows(int64_t tokens, bool packed, bool pairs) {
    if (packed) return true;
    if (tokens > kPartialSum) return false; // tokens as rows have no partial sums over tokens
    if (plan_override.rows >= 0) return plan_override.rows == 1;
    return tokens <= (pairs ? kBackwardRowTokensBesidePairs : kBackwardRowTokens);
}

int64_t recompute_slice(int64_t d, int64_t element, int64_t panel) {
    constexpr int64_t kSlice = 4 << 20; // bytes; with more, reading the weights hardly counts
    return std::max<int64_t>(kSlice / std::max<int64_t>(d * element, 1) / panel, 1) * panel;
}

bool copies_rows(int64_t d, int64_t element) {
    constexpr int64_t kLongest = 32 << 10; // bytes: 8192 float
    return d * element <= kLongest;
}

} // namespace ffncore
