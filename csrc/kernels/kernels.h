// What an instruction set supplies: a table of kernels for each arithmetic.
//
//   arithmetic   operands, sums   order of a sum    arrays may hold
//   f32          float            0, 1, 2, 3, ...   float32, bfloat16, float16
//   bf16         float            1, 0, 3, 2, ...   bfloat16; float32 for gradients and biases
//   f64          double           0, 1, 2, 3, ...   float64
//
// T is the type of operands and sums: float or double. Kernels that read or write arrays of the
// caller exist for each element type, and convert (Access).
//
// This header is all that ops/ knows of an instruction set. The translation units of the
// instruction sets include it, too, so it holds plain declarations only: nothing inline, no STL
// (see csrc/README.md). Sizes count elements unless said otherwise.
#pragma once
#include <stdint.h>

namespace ffncore {

// Element types of arrays, in the order of ffncore_dtype.
enum Element { kFloat32, kFloat64, kBfloat16, kFloat16, kElements };
struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

// A panel of packed weights is as wide as 128 bytes of T: 32 floats or 16 doubles. That is two
// AVX-512 vectors or four AVX2 vectors, so one layout serves every instruction set. In a gated
// block groups of 32 bytes (one AVX2 vector) alternate: gate, up, gate, up. So half a panel is a
// full AVX2 tile, which has both gate and up.
constexpr int kPanelBytes = 128;
constexpr int kGroupBytes = 32;

// The contract's block of a summed dimension: one fma chain from +0 (csrc/README.md).
constexpr int64_t kBlock = 512;

constexpr int kMaxVectors = 4; // the widest tile, in vectors
constexpr int kTileStride = 8; // elements from one k to the next of a copied tile: 6 or 8 rows
constexpr int kTileGap =
    32; // elements between copied tiles, so that their stores spread over the sets of L1
constexpr int kMaxRows = 14; // rows of a tile: 14 x 2 vectors = 28 of 32 AVX-512 registers

// One tile: c[r][v] (+)= sum_k A(r, k) * b[k][v], k < depth. Each block of the sum is one chain of
// fma for each element, and the blocks are added to c one after the other. In the order 1, 0, 3, 2
// a sum of odd length ends with +0 * +0 and its last term. Rows of A are addressed by
// A(r, k) = (r < half ? a0 + r * row : a1 + (r - half) * row)[(k % segment) * step
//           + (k / segment) * jump], half = (rows + 1) / 2.
// segment is even; where depth is more than a block, it divides the steps of a block.
template <class T> struct TileArgs {
    const T *a0, *a1;
    int64_t row, step, segment, jump;
    const void *b; // elements of T; for Access::tile 16-bit elements
    int64_t ldb;
    T *c; // for rounded tiles: elements of the gradient
    int64_t ldc;
    int64_t depth;
    const T *start; // the sums of the block's earlier steps, laid out as c; nullptr: zero
    bool add;       // c += sum, else c = sum
    bool stream;    // c = sum, written in whole lines past the caches; see Kernels::stream
    // Of a group of packed panels: the elements from one to the next, and from the sums of one tile
    // to those of the next; the bytes that are prefetched ahead in each panel, 0 for none.
    int64_t panel, c_panel, ahead;
    T *keep; // Access::tile[2]: receives b widened, [depth][two vectors]
    // Each step of k prefetches a part of what is needed next into L2: the line at
    // prefetch + (k % 16) * prefetch_step + (k / 16) * prefetch_run + (segment of k) *
    // prefetch_jump, and in tiles of two vectors the line after it. nullptr: no prefetch.
    const char *prefetch;
    int64_t prefetch_step, prefetch_run, prefetch_jump;
};

// Few tokens times packed weights take several tiles of two vectors side by side, so that several
// panels are read at a time. group[n][rows]: n tiles; nullptr if there is no such kernel.
constexpr int kMaxGroup = 8;  // more streams from memory gained nothing
constexpr int kGroupRows = 7; // tokens: two tiles of 7 rows take 28 of 32 registers
template <class T> using GroupTiles = void (*[kMaxGroup + 1][kGroupRows + 1])(const TileArgs<T> &);

// A few tokens times raw weights, for W outputs (a vector):
// c[r][i] (+)= sum_k a[r * row + k] * b[i * ldb + k]. The rows of b are contiguous in k and are
// transposed ("turned") in registers. The chains of fma are those of a tile.
constexpr int kMaxTurned = 10; // tokens: 16 vectors of b and 10 sums in 32 registers
template <class T> struct TurnedArgs {
    const T *a;
    int64_t row;
    const void *b; // elements of the Access's type
    int64_t ldb;
    int64_t outputs; // rows of b that exist; the columns of c beyond them are undefined
    int64_t ahead;   // elements from b to the rows that are needed next, which are prefetched
    T *c;
    int64_t ldc;
    int64_t depth;
    bool add;
};

// A few tokens times a packed panel, summed over its outputs ("units"), for some rows ("steps") of
// the panel:
// sums[r * ld + i] = the chain from there, or from +0, through a[0][r * row + u] * panel[i][u],
// u < units. A panel of gate and up has the sums of up at `side`, and multiplies a[1] by up. For
// bfloat16 the sums of 2 W steps lie as those of the even steps and then of the odd ones.
constexpr int kMaxAcross = 8; // tokens; a kernel is missing where registers do not suffice
template <class T> struct AcrossArgs {
    const T *a[2];
    int64_t row;
    const void *panel; // its first step that is read
    int64_t steps;     // a multiple of 2 W
    int64_t units;
    int64_t ahead; // bytes that are prefetched ahead; 0: none
    T *sums;
    int64_t ld, side;
    bool resumes;
};

// Quantised weights: some steps of 16 outputs of a matrix ("a unit", packing/coded.h) as numbers:
//   dst[i * ld + v W + lane] = scale * (value of the code - zero) + offset, i < steps, v < vectors
// in float32, each operation rounded. codes: [step][kUnit codes of `bits` bits]; code c of a step
// of fewer than 8 bits begins at bit c / words * bits of the word c % words of 32 bits, of which
// there are `words` = 2 for 4 bits, else 1. high: the same for the upper bits of codes of 5 or 6
// bits. Scales, zeros and offsets: [group][kUnit]; a number is the product of its factor and data.
constexpr int kUnit = 16; // outputs: a vector of AVX-512
enum NumberKind { kNoNumber, kNumberF32, kNumberF16, kNumberBf16, kNumberProduct };
struct ExpandNumbers {
    int kind;            // NumberKind
    const void *data;    // [groups][kUnit]; of kNumberProduct: int8
    const void *factors; // of kNumberProduct: float16 [groups / factor_groups][kUnit]
    int64_t factor_groups;
};
struct ExpandArgs {
    const void *codes, *high; // of the first step
    int bits;
    bool e4m3;          // codes of 8 bits are E4M3, else int8
    const float *table; // [16]: the values of codes of up to 4 bits, repeated
    float center;       // of 5 or 6 bits: the value is the code - center
    ExpandNumbers scale, zero, offset;
    int64_t group, first; // steps with one number; number of the first step
    int64_t steps;
    int lane, vectors; // the first output of the unit, a multiple of W; and how many vectors
    float *dst;
    int64_t ld;
};

// A few tokens (rows) times quantised weights: for each of kFewVectors vectors of outputs,
// c[r * ldc + lane] (+)= the chain from +0 of a[r * row + k] * (number of step k), k < steps.
constexpr int kMaxFew = 4;     // tokens
constexpr int kFewVectors = 4; // the most; a level with 16 registers takes 2
struct FewVector {
    const void *codes, *high;
    const void *numbers[3], *factors[3]; // of scale, zero and offset
    int lane;                            // the first output of the unit
    float *c;
};
struct FewArgs {
    ExpandArgs shared; // without what FewVector has
    FewVector of[kFewVectors];
    const float *a;
    int64_t row, ldc;
    bool add;
};

// The options of an activation as the kernels take them; see ffncore_activation for their meaning.
struct ActivationParams {
    int kind;  // ffncore_activation_kind
    int clamp; // ffncore_clamp
    double limit, alpha, up_offset, gate_softcap, up_softcap, gate_multiplier, negative_slope;
    double xielu_p, xielu_n, beta, eps; // xielu_p = softplus(alpha_p), xielu_n = beta + softplus(n)
};

// h[r][c] = act(gate + b_gate) * (up + b_up); with gate == nullptr, act(up + b_up). The biases may
// be nullptr; element (r, c) uses b[r * bias_row + c * bias_col], where bias_col is 0 or 1.
// save_gate and save_up receive the preactivations, with bias. They may be nullptr, and so may h.
template <class T> struct ActForwardArgs {
    int64_t rows, cols;
    const T *gate, *up;
    int64_t ld;
    const T *b_gate, *b_up;
    int64_t bias_row, bias_col;
    T *h;
    int64_t ldh;
    T *save_gate, *save_up;
    int64_t ld_save;
};

// Computes dgate, dup and h from dh and the preactivations gate and up, which include the bias. In
// a plain block (gate == nullptr) dup = dh * act'(up). dgate, dup and h may each be nullptr.
// xielu_p and xielu_n, unless nullptr, receive sums over each group of 8 columns of a row:
//   xielu_p  of dh' * x^2 over the x > 0
//   xielu_n  of dh' * (expm1(min(x, eps)) - x) over the x <= 0
// where dh' is the gradient of act's value. The sums of the group of column c are at
// [r * ld_xielu + c / 8]. The 8 lanes are added as a tree: i and i + 4, i and i + 2, i and i + 1.
constexpr int kSumGroup = 8; // divides the width of every tile
template <class T> struct ActBackwardArgs {
    int64_t rows, cols;
    const T *dh;
    int64_t ld_dh;
    const T *gate, *up;
    int64_t ld_pre;
    T *dgate, *dup, *h;
    int64_t ld_out;
    T *xielu_p, *xielu_n;
    int64_t ld_xielu;
};

// Routing: scores of a token's experts, the choice of k of them, their weights. See ffncore_router
// in ffncore.h for the meaning and route.inl for the formulas. The scratch memory holds rows of
// experts and rows of slots, padded to whole groups of kRouteLanes.
constexpr int64_t kRouteLanes = 16;
constexpr int kRouteExpertRows = 7, kRouteSlotRows = 4;
struct RouteParams {
    int score_fn;          // ffncore_score_fn
    bool select_on_logits; // softmax_topk always selects on logits
    bool normalize;        // softmax_topk always normalizes
    bool group_max;        // a group's score is its largest entry, not the sum of its largest two
    int64_t experts, k, groups, top_groups; // top_groups == groups: all groups take part
    double eps, min, factor, group_mask;
};

// The arrays of one token, which are contiguous. An expert id of -1 means no expert: its weight is
// 0, and it has no gradient.
template <class T> struct RouteArgs {
    const T *logits; // [experts]
    const T *bias;   // [experts], or nullptr
    bool given;      // ids are read, not written
    int32_t *ids;    // [k]
    T *weights;      // [k]
    T *log_sum_exp;  // one number, or nullptr; with softmax only
    T *scratch;      // aligned to 64 bytes
};
template <class T> struct RouteBackwardArgs {
    const T *logits;       // [experts]
    const int32_t *ids;    // [k]
    const T *grad_weights; // [k]
    T *grad_logits;        // [experts]
    T *scratch;
};

// Norms of one row of n elements, contiguous (norm.inl). gain includes its offset.
struct NormParams {
    bool centred; // LayerNorm
    double eps;
};
template <class T> struct NormArgs {
    int64_t n;
    const T *x, *gain, *bias; // bias may be nullptr
    T *y;
};
// dx, sum_gain and sum_bias may each be nullptr; dy u and dy are added to the two sums.
template <class T> struct NormBackwardArgs {
    int64_t n;
    const T *x, *gain, *dy;
    T *dx, *sum_gain, *sum_bias;
};

// The kernels that read and write arrays of one element type, and compute in T.
template <class T> struct Access {
    // dst[k * ld + r] = src[r * row + k * step], r < rows, k < depth; zero for rows <= r < width.
    void (*pack)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth, T *dst,
                 int64_t ld, int64_t width);
    // The same into tiles of `tile` rows, each [depth][kTileStride], kTileGap elements apart.
    void (*pack_tiles)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth,
                       T *dst, int64_t tile);
    // out[r * row + j * col] (+)= c[r * ldc + j] + bias[r * bias_row + j * bias_col], r < rows,
    // j < cols; without bias if it is nullptr.
    void (*store)(const T *c, int64_t ldc, int64_t rows, int64_t cols, const T *bias,
                  int64_t bias_row, int64_t bias_col, void *out, int64_t row, int64_t col,
                  bool add);
    // sums[r] = sums[r] + m[r * row + 0] + m[r * row + col] + ..., in this order, r < rows.
    void (*sum_along)(const void *m, int64_t row, int64_t col, int64_t rows, int64_t cols, T *sums);
    void (*turned[kMaxTurned + 1])(const TurnedArgs<T> &);
    void (*across[2][kMaxAcross + 1])(const AcrossArgs<T> &); // [0]: one matrix; [1]: gate and up

    // The rest is for 16-bit elements. tile: tiles of two vectors that widen B while they compute.
    // B is [0]: rows; [1]: a packed panel (packing.h); [2]: the same, and the widened numbers are
    // stored in TileArgs::keep. rounded: tiles of a gradient, of two vectors and of the widest
    // kind, which round the sum of their one block.
    void (*tile[3][kMaxRows + 1])(const TileArgs<T> &);
    GroupTiles<T> group; // of packed panels
    void (*rounded[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &);
    // Convert a packed panel to its numbers [depth][32], and back; part: from pairs of steps.
    void (*widen)(const void *panel, int64_t depth, T *dst);
    void (*narrow)(const T *src, int64_t depth, void *panel);
    void (*part)(const T *pairs, int64_t depth, void *panel); // nullptr: the pairs are the panel
};

// Products of bfloat16 by an instruction that takes pairs of terms. A pair lies in the place of one
// T; the odd term is added first (pairs.inl). On a level without such an instruction all pointers
// are nullptr.
template <class T> struct Pairs {
    void (*tile[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &); // as Kernels::tile
    GroupTiles<T> group;
    void (*rounded[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &); // as Access::rounded
    // As in Access, for bfloat16; depth counts numbers, not pairs.
    void (*pack)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth, T *dst,
                 int64_t ld, int64_t width);
    void (*pack_tiles)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth,
                       T *dst, int64_t tile);
    // Rounds rows [r0, r0 + n) of numbers and stores them as pairs of rows, dst[(r / 2) * dst_ld +
    // c]. last: an even last row is paired with +0.
    void (*join_rows)(const T *numbers, int64_t ld, int64_t r0, int64_t n, int64_t cols, bool last,
                      T *dst, int64_t dst_ld);
};

template <class T> struct Kernels {
    int width;                     // lanes of a vector
    int vectors;                   // of the widest tile; a token panel has vectors * width tokens
    int max_rows[kMaxVectors + 1]; // rows of the highest tile, for each width in vectors
    void (*tile[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &); // [vectors][rows]
    GroupTiles<T> group;                                              // of panels of T
    Access<T> of[kElements]; // empty for types that an arithmetic does not have
    Pairs<T> pairs;

    // Quantised weights; nullptr for other types than float32.
    void (*expand)(const ExpandArgs &);
    void (*few[kMaxFew + 1])(const FewArgs &);
    int few_vectors;

    // Reorders, in place, each row of a tile of two vectors whose 32-byte groups alternate between
    // gate and up: all of gate first, then all of up. nullptr: a group is a whole vector already.
    void (*split_groups)(T *c, int64_t ldc, int64_t rows);
    // Copies from L1 to memory that will not be read soon, in whole lines past the caches. A thread
    // calls drain() before other threads read that memory.
    void (*stream)(const void *from, int64_t bytes, void *to);
    void (*drain)();
    // Rounds, in place, to the type of the hidden state; nullptr: that type is T.
    void (*round)(T *c, int64_t ldc, int64_t rows, int64_t cols);

    void (*act_forward)(const ActivationParams &, const ActForwardArgs<T> &);
    void (*act_backward)(const ActivationParams &, const ActBackwardArgs<T> &);

    // Rows with a factor each (factors.inl). to[r][c] = factors[r] * from[r][c].
    void (*scale)(const T *from, int64_t ld, const T *factors, int64_t rows, int64_t cols, T *to,
                  int64_t ld_to);
    // sum[c] = the sum over i < n, in order, of factors[i] * rows[index[i] * ld + c]. A negative
    // index is left out. factors == nullptr: all factors are 1.
    void (*combine)(const T *rows, int64_t ld, const int32_t *index, const T *factors, int64_t n,
                    int64_t cols, T *sum);
    // sums[r * ld + c / 8] = the sum of a[r][c] * b[r][c] over each group of 8 columns.
    void (*dot_groups)(const T *a, int64_t lda, const T *b, int64_t ldb, int64_t rows, int64_t cols,
                       T *sums, int64_t ld);

    void (*route)(const RouteParams &, const RouteArgs<T> &);
    void (*route_backward)(const RouteParams &, const RouteBackwardArgs<T> &);

    void (*norm_forward)(const NormParams &, const NormArgs<T> &);
    void (*norm_backward)(const NormParams &, const NormBackwardArgs<T> &);
};

struct KernelTable {
    const char *name;
    bool (*works)(); // checks whether the CPU computes as this level expects; nullptr: no check
    Kernels<float> f32, bf16;
    Kernels<double> f64;
};

} // namespace ffncore

// Each of these is the only symbol that its translation unit exports.
extern "C" const ffncore::KernelTable *ffncore_kernels_scalar(void) noexcept;
extern "C" const ffncore::KernelTable *ffncore_kernels_avx2(void) noexcept;
extern "C" const ffncore::KernelTable *ffncore_kernels_avx512(void) noexcept;
extern "C" const ffncore::KernelTable *ffncore_kernels_avx512bf16(void) noexcept;
