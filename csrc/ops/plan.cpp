// See plan.h.
#include "plan.h"

#include <algorithm>

#include "gemm.h"

namespace ffncore {

PlanOverride plan_override;

namespace {

// Shared workspace of a call. The promise is 64 MiB plus 4 MiB a thread; the rest is for biases,
// alignment and the huge page rounding.
constexpr int64_t kBudget = 56 << 20;

// Bytes of workspace for `tokens` x `units`.
int64_t held(const PlanRequest &r, int64_t tokens, int64_t units, bool carry) {
    const int64_t sides = r.gated ? 2 : 1;
    if (!r.backward) // packed x, h, running sums of y
        return tokens * (r.d + units + (carry ? r.d : 0)) * r.element;
    // dgate, dup, h, and what is recomputed; the running sums of dx
    const int64_t hidden = sides + 1 + (r.recompute ? sides : 0);
    return tokens * (units * hidden + (carry ? r.d : 0)) * r.element;
}

// Bytes that go through memory: weights per token chunk, running sums per ff chunk.
double moved(const PlanRequest &r, int64_t tokens, int64_t parts) {
    const double weights = (double)r.d * r.f * (r.gated ? 3 : 2);
    const double passes = (double)ceil_div(r.tokens, tokens);
    double elements = weights * passes * (r.recompute ? 2 : 1);
    if (r.weight_grads)
        elements += weights * 2 * passes;
    if (parts > 1)
        elements += 2.0 * parts * r.tokens * r.d;
    return elements * (double)r.element;
}

} // namespace

Plan make_plan(const PlanRequest &r) {
    const int64_t grain = r.weight_grads ? std::max(kBlock, r.panel) : r.panel;
    // A slice is as many packed tokens as a third of the budget holds.
    int64_t slice = 0, budget = kBudget;
    if (r.backward) {
        const int64_t per_token = r.d * r.element * (r.recompute ? 2 : 1);
        slice = std::max(r.panel, kBudget / 3 / std::max<int64_t>(per_token, 1) / r.panel * r.panel);
        slice = std::min(slice, round_up(std::max<int64_t>(r.tokens, 1), r.panel));
        budget -= slice * per_token;
    }
    Plan best{};
    double least = 0;
    for (int64_t parts = 1;; ++parts) {
        const int64_t units =
            parts == 1 ? r.f : std::max(kBlock, round_up(ceil_div(r.f, parts), kBlock));
        const bool carry = units < r.f;
        const int64_t per_grain = std::max<int64_t>(held(r, grain, units, carry), 1);
        int64_t chunk = std::max<int64_t>(budget / per_grain, 1) * grain;
        // As equal as can be.
        chunk = round_up(ceil_div(std::max<int64_t>(r.tokens, 1),
                                  std::max<int64_t>(ceil_div(r.tokens, chunk), 1)),
                         grain);
        const double bytes = moved(r, chunk, ceil_div(r.f, units)) +
                             (per_grain > budget ? 1e18 : 0); // only if nothing else fits
        if (parts == 1 || bytes < least) {
            best = {chunk, units, slice, carry};
            least = bytes;
        }
        if (units <= kBlock || parts >= 64)
            break;
    }
    const PlanOverride &o = plan_override;
    if (o.token_chunk > 0)
        best.token_chunk = round_up(o.token_chunk, grain);
    if (o.ff_chunk > 0)
        best.ff_chunk = std::min(round_up(o.ff_chunk, kBlock), std::max<int64_t>(r.f, 1));
    if (o.token_slice > 0)
        best.token_slice = round_up(o.token_slice, r.panel);
    best.token_slice = std::min(best.token_slice, best.token_chunk);
    best.carry = best.ff_chunk < r.f;
    return best;
}

bool tokens_in_rows(int64_t tokens, bool packed, bool save) {
    if (save) // saved gate and up have the panels' layout
        return false;
    if (plan_override.rows >= 0)
        return plan_override.rows == 1;
    return packed || tokens <= kRawRowTokens;
}

} // namespace ffncore
