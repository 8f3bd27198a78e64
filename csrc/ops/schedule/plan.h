// How a layer is cut: by bytes moved, within a fixed workspace.
//
// A chunk is token_chunk tokens and ff_chunk hidden units: their h (in training also dgate, dup,
// and what is recomputed) is held at once. More tokens a chunk: the weights are read less often.
// Fewer hidden units a chunk: room for more tokens, but y (or dx) is carried in between. The plan
// takes the cut that moves the fewest bytes among those that fit. The bits do not depend on it:
// every chunk is a multiple of the contract's block along a summed dimension.
//
// What fits in 56 MiB, for any T and d_ff, whatever is asked for: d up to 114,174, and up to 75,774
// where the backward pass recomputes (AVX-512: one token panel, 256 bytes a row, of two or three
// rows of d; AVX2 and scalar: 64 bytes a row, d up to 228,092). Beyond, the smallest cut is taken,
// and holds what it needs. xielu's gradients need 16 bytes a hidden unit more: d_ff up to 2.9
// million.
#pragma once
#include <cstdint>

namespace ffncore {

struct PlanRequest {
    int64_t tokens, d, f;
    bool gated;
    int64_t element; // bytes
    int64_t panel;   // tokens of a token panel
    bool rows;       // tokens are rows (A), weights are panels (B)
    bool backward = false;
    bool recompute = false;    // backward from the input alone
    bool weight_grads = false; // sums over tokens: chunks are multiples of the block
    bool grad_x = true;        // backward: dx is needed
    bool xielu = false;        // backward: the sums of xielu's parameters are needed
    bool converts = false;     // x and grad_y are of another type than what is computed in
    bool narrow = false;       // gradients of weights have 16 bits
};

struct Plan {
    int64_t token_chunk;
    int64_t ff_chunk;
    int64_t token_slice; // backward: tokens of x and grad_y held packed at once
    bool carry;          // several ff chunks: running sums of y or dx are kept between them
    // Sums of weight gradients are kept beside them (gradient_sums.h) where gradients of 16 bits,
    // which are rounded once, get several chunks of tokens (keeps_sums), and where there are
    // several partial sums of tokens. With units_outer a chunk of hidden units is done with all
    // tokens before the next: dx is carried for all of them, and the sums are those of the chunk;
    // else they are those of the whole layer. Of 16-bit gradients the larger of the two, dx of all
    // tokens or the layer's sums, is never held; the smaller one is beyond the budget.
    bool units_outer;
    bool keeps_sums;
    bool partial_sums;
    // Backward: 512 tokens of dx are too many to carry, or the layer's partial sums are too large.
    // dx is computed first, alone, in chunks of few tokens, for one more dh (and recomputation);
    // the sizes above are those of the rest.
    bool grad_x_apart;
};

Plan make_plan(const PlanRequest &request);

// Replaces the plan's own sizes (0: keep), for tests; rows: -1 keep, 0 panels, 1 rows.
struct PlanOverride {
    int64_t token_chunk = 0, ff_chunk = 0, token_slice = 0;
    int rows = -1;
};
extern PlanOverride plan_override;

// Few tokens, or packed weights: tokens are rows. Raw weights have to be turned in registers, which
// costs about as much as multiplying 10 tokens; from there on they are better read in place.
// turned_once: 16-bit weights that are better turned once to memory, see forward_in_rows().
constexpr int64_t kRawRowTokens = 10;
bool tokens_in_rows(int64_t tokens, bool packed, bool turned_once);

// The same for the backward pass. Rows take raw weights as they lie, panels copy them into tiles:
// that is 2.5 times the time at 1 token, 1.05 to 1.4 times at 65, and less from 75 to 105 on. Where
// panels take pairs of bfloat16, rows do not, and are better for fewer.
constexpr int64_t kBackwardRowTokens = 72, kBackwardRowTokensBesidePairs = 64;
bool backward_in_rows(int64_t tokens, bool packed, bool pairs);

// With tokens as rows: whether a chunk's x and grad_y are copied to rows at a good distance. Rows
// of d this long are read where they lie: they would fill the workspace.
bool copies_rows(int64_t d, int64_t element);

// With tokens as rows: tokens whose gate and up are computed again at a time, by panels of x.
int64_t recompute_slice(int64_t d, int64_t element, int64_t panel);

} // namespace ffncore
