// What an instruction set supplies: a table of kernels for each arithmetic.
//
//   arithmetic   operands, sums   order of a sum    arrays may hold
//   f32          float            0, 1, 2, 3, ...   float32, bfloat16, float16
//   bf16         float            1, 0, 3, 2, ...   bfloat16; float32 for gradients and biases
//   f64          double           0, 1, 2, 3, ...   float64
//
// Products see T, float or double, alone. What reads or writes arrays of the caller exists for each
// element type and converts on the way (Access).
//
// This header is all that ops/ knows of an ISA. It is included by the ISA translation units too, so
// it holds plain declarations only: nothing inline, no STL (see csrc/README.md). Sizes count
// elements unless said otherwise.
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

// A packed weight panel has 128 bytes of columns in T (32 float, 16 double): two AVX-512 vectors,
// four AVX2 vectors, so that one layout serves every ISA. In a gated block, groups of 32 bytes (one
// AVX2 vector) alternate: gate, up, gate, up; then half a panel is a full AVX2 tile.
constexpr int kPanelBytes = 128;
constexpr int kGroupBytes = 32;

// The contract's block of a summed dimension: one fma chain from +0 (csrc/README.md).
constexpr int64_t kBlock = 512;

constexpr int kMaxVectors = 4; // vectors across a tile
constexpr int kTileStride = 8; // of a copied tile: its 6 or 8 rows, aligned
constexpr int kTileGap =
    32; // elements between copied tiles, so that their stores spread over L1's sets
constexpr int kMaxRows = 14; // rows of a tile: 14 x 2 vectors = 28 of 32 AVX-512 registers

// One tile: c[r][v] (+)= sum_k A(r, k) * b[k][v], k < depth: one fma chain per element and block,
// added to c one after the other. In the order 1, 0, 3, 2 an odd sum ends with +0 * +0 and its last
// term. Beyond a block, segment divides the block's steps; it is even.
// A(r, k) = (r < half ? a0 + r * row : a1 + (r - half) * row)[(k % segment) * step
//           + (k / segment) * jump], half = (rows + 1) / 2.
template <class T> struct TileArgs {
    const T *a0, *a1;
    int64_t row, step, segment, jump;
    const void *b; // T; for Access::tile 16-bit elements
    int64_t ldb;
    T *c; // or a gradient's elements, for rounded tiles
    int64_t ldc;
    int64_t depth;
    const T *start; // the sums of a block's earlier steps, as c; nullptr: zero
    bool add;       // c += sum, else c = sum
    bool stream;    // c = sum, in whole lines, past the caches; see Kernels::stream
    T *keep;        // Access::tile[2]: b widened, [depth][two vectors]
    // What is needed next is fetched into L2, evenly: at step k the line at
    // prefetch + (k % 16) * prefetch_step + (k / 16) * prefetch_run + (segment of k) *
    // prefetch_jump, and in tiles of 128 bytes the line after it. nullptr: nothing.
    const char *prefetch;
    int64_t prefetch_step, prefetch_run, prefetch_jump;
};

// Few tokens times raw weights, W outputs: c[r][i] (+)= sum_k a[r * row + k] * b[i * ldb + k]. Rows
// of b are contiguous in k and are turned in registers; the same fma chains as a tile's.
constexpr int kMaxTurned = 10; // 16 vectors of b and 10 sums in 32 registers
template <class T> struct TurnedArgs {
    const T *a;
    int64_t row;
    const void *b; // of the Access's elements
    int64_t ldb;
    int64_t outputs; // rows of b that exist; the columns of c beyond them are undefined
    int64_t ahead; // from b to the rows that are turned next, in elements; they are fetched into L2
    T *c;
    int64_t ldc;
    int64_t depth;
    bool add;
};

// Activation options as the kernels want them; see ffncore_activation for the meaning.
struct ActivationParams {
    int kind;  // ffncore_activation_kind
    int clamp; // ffncore_clamp
    double limit, alpha, up_offset, gate_softcap, up_softcap, gate_multiplier, negative_slope;
    double xielu_p, xielu_n, beta, eps; // xielu_p = softplus(alpha_p), xielu_n = beta + softplus(n)
};

// h[r][c] = act(gate + b_gate) * (up + b_up); gate == nullptr: act(up + b_up). The biases may be
// nullptr; element (r, c) uses b[r * bias_row + c * bias_col], bias_col 0 or 1. save_*: with their
// bias, the preactivations; may be nullptr, and so may h.
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

// From dh and the preactivations gate, up (bias included): dgate, dup and, if asked for, h again.
// gate == nullptr: plain, dup = dh * act'(up). dgate, dup, h may each be nullptr. xielu_p/n, unless
// nullptr, receive, for each row and each group of 8 columns, the group's sum of dh' * x^2 (x > 0)
// and dh' * (expm1(min(x, eps)) - x) (x <= 0), where dh' is the gradient of act's value: element
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

// Routing: scores of a token's experts, the choice of k of them, their weights; see ffncore_router
// in ffncore.h for the meaning and route.inl for the formulas.
// Scratch memory is rows of experts and rows of slots, each of whole groups of kRouteLanes.
constexpr int64_t kRouteLanes = 16;
constexpr int kRouteExpertRows = 7, kRouteSlotRows = 4;
struct RouteParams {
    int score_fn;          // ffncore_score_fn
    bool select_on_logits; // softmax_topk always does
    bool normalize;        // softmax_topk: always
    bool group_max;        // a group's score is its largest entry, not the sum of its largest two
    int64_t experts, k, groups, top_groups; // top_groups == groups: no groups
    double eps, min, factor, group_mask;
};

// One token. Rows are contiguous. An expert of -1 is none: its weight is 0, and it gets no
// gradient.
template <class T> struct RouteArgs {
    const T *logits; // [experts]
    const T *bias;   // [experts], or nullptr
    bool given;      // ids are there already
    int32_t *ids;    // [k]
    T *weights;      // [k]
    T *log_sum_exp;  // one number, or nullptr; softmax alone
    T *scratch;      // aligned to 64 bytes
};
template <class T> struct RouteBackwardArgs {
    const T *logits;       // [experts]
    const int32_t *ids;    // [k]
    const T *grad_weights; // [k]
    T *grad_logits;        // [experts]
    T *scratch;
};
// What reads and writes arrays whose elements are of one type, while T is computed with.
template <class T> struct Access {
    // dst[k * ld + r] = src[r * row + k * step], r < rows, k < depth; zero for rows <= r < width.
    void (*pack)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth, T *dst,
                 int64_t ld, int64_t width);
    // The same into tiles of `tile` rows, each [depth][kTileStride], kTileGap elements apart.
    void (*pack_tiles)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth,
                       T *dst, int64_t tile);
    // out[r * row + c * col] (+)= c[r * ldc + c] + bias[...]; bias per row, per column, or nullptr.
    void (*store)(const T *c, int64_t ldc, int64_t rows, int64_t cols, const T *bias,
                  int64_t bias_row, int64_t bias_col, void *out, int64_t row, int64_t col,
                  bool add);
    // sums[r] = sums[r] + m[r * row + 0] + m[r * row + col] + ..., in this order, r < rows.
    void (*sum_along)(const void *m, int64_t row, int64_t col, int64_t rows, int64_t cols, T *sums);
    void (*turned[kMaxTurned + 1])(const TurnedArgs<T> &);

    // 16-bit elements: tiles of two vectors widen B on the way. [0]: rows; [1]: packed panels
    // (packing.h), [2]: which are left in TileArgs::keep. For gradients: tiles of two vectors,
    // and the widest, that round a block's sum.
    void (*tile[3][kMaxRows + 1])(const TileArgs<T> &);
    void (*rounded[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &);
    // A panel's numbers, [depth][32], and a panel from its numbers, or from pairs of steps.
    void (*widen)(const void *panel, int64_t depth, T *dst);
    void (*narrow)(const T *src, int64_t depth, void *panel);
    void (*part)(const T *pairs, int64_t depth, void *panel); // nullptr: pairs are a panel
};

// Products of bfloat16 by an instruction that takes pairs of terms, each in the place of one T, the
// odd one first (pairs.inl). Where a level has none: nullptr.
template <class T> struct Pairs {
    void (*tile[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &);    // as Kernels::tile
    void (*rounded[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &); // as Access's
    // As Access's, of bfloat16; depth counts numbers.
    void (*pack)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth, T *dst,
                 int64_t ld, int64_t width);
    void (*pack_tiles)(const void *src, int64_t row, int64_t step, int64_t rows, int64_t depth,
                       T *dst, int64_t tile);
    // Rows [r0, r0 + n) of numbers, rounded, into pairs of rows: dst[(r / 2) * dst_ld + c]. last:
    // behind an even last row comes +0.
    void (*join_rows)(const T *numbers, int64_t ld, int64_t r0, int64_t n, int64_t cols, bool last,
                      T *dst, int64_t dst_ld);
};

template <class T> struct Kernels {
    int width;                     // lanes of a vector
    int vectors;                   // widest tile; token panels are vectors * width columns
    int max_rows[kMaxVectors + 1]; // highest tile for each width in vectors
    void (*tile[kMaxVectors + 1][kMaxRows + 1])(const TileArgs<T> &);
    Access<T> of[kElements]; // those that an arithmetic does not know are empty
    Pairs<T> pairs;

    // A tile of two vectors whose 32-byte groups alternate, gate and up: first all of gate, then
    // all of up, in place.
    void (*split_groups)(T *c, int64_t ldc, int64_t rows);
    // From L1 to memory that nobody reads soon, past the caches, in whole lines; and what a thread
    // does before others read it.
    void (*stream)(const void *from, int64_t bytes, void *to);
    void (*drain)();
    // To the numbers that the hidden state can hold, in place; nullptr: it holds any T.
    void (*round)(T *c, int64_t ldc, int64_t rows, int64_t cols);

    void (*act_forward)(const ActivationParams &, const ActForwardArgs<T> &);
    void (*act_backward)(const ActivationParams &, const ActBackwardArgs<T> &);

    // Rows that count by a factor each (factors.inl). to[r][c] = factors[r] * from[r][c].
    void (*scale)(const T *from, int64_t ld, const T *factors, int64_t rows, int64_t cols, T *to,
                  int64_t ld_to);
    // sum[c] = the sum over i < n, in order, of factors[i] * rows[index[i] * ld + c]; a negative
    // index is left out. factors == nullptr: 1.
    void (*combine)(const T *rows, int64_t ld, const int32_t *index, const T *factors, int64_t n,
                    int64_t cols, T *sum);
    // sums[r * ld + c / 8]: of a row's products a[r][c] * b[r][c], by groups of 8 columns.
    void (*dot_groups)(const T *a, int64_t lda, const T *b, int64_t ldb, int64_t rows, int64_t cols,
                       T *sums, int64_t ld);

    void (*route)(const RouteParams &, const RouteArgs<T> &);
    void (*route_backward)(const RouteParams &, const RouteBackwardArgs<T> &);
};

struct KernelTable {
    const char *name;
    bool (*works)(); // whether the CPU computes as this level expects; nullptr: it does
    Kernels<float> f32, bf16;
    Kernels<double> f64;
};

} // namespace ffncore

// Each ISA's translation unit exports exactly one of these.
extern "C" const ffncore::KernelTable *ffncore_kernels_scalar(void) noexcept;
extern "C" const ffncore::KernelTable *ffncore_kernels_avx2(void) noexcept;
extern "C" const ffncore::KernelTable *ffncore_kernels_avx512(void) noexcept;
extern "C" const ffncore::KernelTable *ffncore_kernels_avx512bf16(void) noexcept;
