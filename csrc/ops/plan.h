// How a layer is cut: by bytes moved, within a fixed workspace.
//
// A chunk is token_chunk tokens and ff_chunk hidden units: their h (in training also dgate, dup, and
// what is recomputed) is held at once. More tokens a chunk: the weights are read less often. Fewer
// hidden units a chunk: room for more tokens, but y (or dx) is carried in between. The plan takes
// the cut that moves the fewest bytes. The bits do not depend on it: every chunk is a multiple of
// the contract's block along a summed dimension.
#pragma once
#include <cstdint>

namespace ffncore {

struct PlanRequest {
    int64_t tokens, d, f;
    bool gated;
    int64_t element;       // bytes
    int64_t panel;         // tokens of a token panel
    bool rows;             // tokens are rows (A), weights are panels (B)
    bool backward = false;
    bool recompute = false;      // backward from the input alone
    bool weight_grads = false;   // sums over tokens: chunks are multiples of the block
};

struct Plan {
    int64_t token_chunk;
    int64_t ff_chunk;
    int64_t token_slice; // backward: tokens of x and grad_y held packed at once
    bool carry;          // several ff chunks: running sums of y or dx are kept between them
};

Plan make_plan(const PlanRequest &request);

// Replaces the plan's own sizes (0: keep), for tests; rows: -1 keep, 0 panels, 1 rows.
struct PlanOverride {
    int64_t token_chunk = 0, ff_chunk = 0, token_slice = 0;
    int rows = -1;
};
extern PlanOverride plan_override;

// Few tokens, or packed weights: tokens are rows. Raw weights have to be turned in registers, which
// costs about as much as multiplying 8 tokens; from there on they are better read in place.
constexpr int64_t kRawRowTokens = 8;
bool tokens_in_rows(int64_t tokens, bool packed, bool save);

} // namespace ffncore
