// How a layer is cut into chunks that fit a fixed workspace and move the fewest bytes.
//
// A chunk is token_chunk tokens and ff_chunk hidden units. Their h is held at once; in the backward
// pass also dgate, dup, and recomputed preactivations. With more tokens in a chunk, the weights are
// read less often. With fewer hidden units there is room for more tokens, but y (or dx) has to be
// carried from one chunk to the next. Of the cuts that fit, the plan takes the one that moves the
// fewest bytes. The bits do not depend on it, as every chunk is a multiple of the contract's block
// along a summed dimension.
//
// A cut that fits the budget of 56 MiB exists for any T and d_ff, up to d = 114,174, or d = 75,774
// where the backward pass recomputes. (The smallest cut of AVX-512 is one token panel, 256 bytes a
// row, of two or three rows of d. AVX2 and scalar have 64 bytes a row: d up to 228,092.) For a
// larger d the smallest cut is taken, and holds what it needs. The gradients of xielu need 16 bytes
// more for each hidden unit, which fits up to d_ff = 2.9 million.
#pragma once
#include <cstdint>

namespace ffncore {

struct PlanRequest {
    int64_t tokens, d, f;
    bool gated;
    int64_t element; // bytes of T
    int64_t panel;   // tokens of a token panel
    bool rows;       // tokens are rows of A and weights panels of B; else the other way round
    bool backward = false;
    bool recompute = false;    // backward: gate and up are computed again from x
    bool weight_grads = false; // backward: sums over tokens, so chunks are multiples of the block
    bool grad_x = true;        // backward: dx is needed
    bool xielu = false;        // backward: the sums for xielu's parameters are needed
    bool converts = false;     // x and grad_y have another type than T
    bool narrow = false;       // gradients of weights have 16 bits
};

struct Plan {
    int64_t token_chunk;
    int64_t ff_chunk;
    int64_t token_slice; // backward: tokens of x and grad_y held packed at once
    bool carry;          // several ff chunks: running sums of y or dx are kept between them
    // A chunk of hidden units goes through all tokens before the next chunk. Then dx is carried for
    // all tokens, and the sums below are those of the chunk; else they are those of the whole
    // layer. For 16-bit gradients the smaller one is held, dx of all tokens or the sums of the
    // layer, and does not count in the budget.
    bool units_outer;
    // Sums of weight gradients are kept in arrays of their own (gradient_sums.h) in two cases:
    // keeps_sums, because gradients of 16 bits, which are rounded once, get several chunks of
    // tokens; and partial_sums, because the sum over tokens has several partial sums.
    bool keeps_sums;
    bool partial_sums;
    // Backward: dx is computed first, alone, in chunks of few tokens. This costs one more dh (and
    // recomputation). It is done where 512 tokens of dx are too many to carry, or the partial sums
    // of the layer are too large. The sizes above are those of the rest of the work.
    bool grad_x_apart;
};

Plan make_plan(const PlanRequest &request);

// For tests: replaces the sizes of every plan (0: keep) and the choice of rows (-1: keep, 0: tokens
// are panels, 1: tokens are rows).
struct PlanOverride {
    int64_t token_chunk = 0, ff_chunk = 0, token_slice = 0;
    int rows = -1;
};
extern PlanOverride plan_override;

// Whether the forward pass has tokens as rows: with packed weights, or for few tokens. Raw weights
// then have to be transposed in registers, which costs about as much as multiplying 10 tokens; for
// more tokens it is better to read them in place, with tokens as panels. turned_once: 16-bit
// weights that are better transposed once, to memory, see forward_in_rows().
constexpr int64_t kRawRowTokens = 10;
bool tokens_in_rows(int64_t tokens, bool packed, bool turned_once);

// The same for the backward pass. With tokens as rows, raw weights are read as they lie; with
// tokens as panels they are copied into tiles. Panels take 2.5 times the time of rows at 1 token,
// 1.05 to 1.4 times at 65, and less time from 75 to 105 tokens on. Panels can use an instruction
// for pairs of bfloat16, which rows cannot; where there is one, rows are better only for fewer
// tokens.
constexpr int64_t kBackwardRowTokens = 72, kBackwardRowTokensBesidePairs = 64;
bool backward_in_rows(int64_t tokens, bool packed, bool pairs);

// With tokens as rows: whether x and grad_y of a chunk are copied to rows that spread over the sets
// of the caches (row_stride). Very long rows are not, as their copies would fill the workspace.
bool copies_rows(int64_t d, int64_t element);

// With tokens as rows: the number of tokens whose gate and up are recomputed at a time, from panels
// of x.
int64_t recompute_slice(int64_t d, int64_t element, int64_t panel);

} // namespace ffncore
