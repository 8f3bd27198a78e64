/* ffncore computes the feed-forward layers of transformers. This header is its C ABI.
 *
 *     h = act(x W_gate^T + b_gate) * (x W_up^T + b_up)      gated block, T tokens
 *     h = act(x W_up^T + b_up)                              plain block (gate.data == NULL)
 *     y = h W_down^T + b_down
 *
 * Shapes: x, y [T, d]; gate, up [f, d]; down [d, f]; b_gate, b_up [f]; b_down [d].
 * Dtypes: x, y and grad_y have one dtype. The weights have the same dtype, or 16 bits with a
 * float32 x. Biases have the dtype of the weights, or float32 with 16-bit weights. A gradient has
 * the dtype of the array that it belongs to; the gradient of a 16-bit array may also be float32.
 * Sums are computed in float32 (float64 for float64) and rounded once.
 * Arrays: strides count elements and may have any value, also 0 or negative. Data must be aligned
 * to the size of an element. Inputs are never written. No output may share memory with an input,
 * with another output, or (by its strides) with itself; this is not checked.
 * Structs: every struct but ffncore_matrix and ffncore_vector begins with its size. Set it to
 * sizeof, so that later versions can append fields.
 * Errors: a function that can fail returns a status, or -1 where it returns a number of bytes.
 * ffncore_last_error() then returns the sentence; each thread has its own, which stays until the
 * next failure of that thread. No function throws an exception.
 * Without its # lines and the two extern "C" blocks this file consists of plain declarations, which
 * a parser such as cffi's can read.
 */
#ifndef FFNCORE_H
#define FFNCORE_H

#define FFNCORE_VERSION_MAJOR 0
#define FFNCORE_VERSION_MINOR 1
#define FFNCORE_VERSION_PATCH 0

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

typedef enum ffncore_status {
    FFNCORE_OK = 0,
    FFNCORE_INVALID_ARGUMENT = 1, /* a size, pointer or option is not valid */
    FFNCORE_OUT_OF_MEMORY = 2,
    FFNCORE_UNSUPPORTED = 3 /* not available on this machine or in this build */
} ffncore_status;

typedef enum ffncore_dtype {
    FFNCORE_FLOAT32 = 0,
    FFNCORE_FLOAT64 = 1,
    FFNCORE_BFLOAT16 = 2, /* the upper half of a float32; subnormals count as zero */
    FFNCORE_FLOAT16 = 3   /* IEEE binary16 */
} ffncore_dtype;

typedef enum ffncore_activation_kind {
    FFNCORE_IDENTITY = 0,
    FFNCORE_RELU = 1,
    FFNCORE_RELU2 = 2,
    FFNCORE_GELU = 3,
    FFNCORE_GELU_TANH = 4,
    FFNCORE_QUICK_GELU = 5,
    FFNCORE_SILU = 6,
    FFNCORE_SIGMOID = 7,
    FFNCORE_TANH = 8,
    FFNCORE_MISH = 9,
    FFNCORE_HARDSWISH = 10,
    FFNCORE_LEAKY_RELU = 11,
    FFNCORE_XIELU = 12
} ffncore_activation_kind;

typedef enum ffncore_clamp {
    FFNCORE_CLAMP_NONE = 0,
    FFNCORE_CLAMP_PRE = 1, /* gate <= limit before the activation, |up| <= limit */
    FFNCORE_CLAMP_POST = 2 /* act(gate) <= limit, |up| <= limit */
} ffncore_clamp;

/* The options act in this order. On gate: multiplier, clamp (PRE), activation with alpha and
 * softcap, clamp (POST). On up: clamp, softcap, offset. In a plain block those of gate act on up.
 * Fill the struct with ffncore_activation_init first. */
typedef struct ffncore_activation {
    size_t size;
    int32_t kind;           /* ffncore_activation_kind */
    int32_t clamp;          /* ffncore_clamp; clamp, up_offset and up_softcap: gated blocks only */
    double limit;           /* of clamp; > 0 unless clamp is NONE */
    double alpha;           /* silu: x * sigmoid(alpha x) */
    double up_offset;       /* h = act(gate) * (up + up_offset) */
    double gate_softcap;    /* c > 0: silu and quick_gelu become c tanh(x / c) sigmoid(alpha x) */
    double up_softcap;      /* c > 0: up becomes c tanh(up / c) */
    double gate_multiplier; /* act(gate_multiplier * gate) */
    double negative_slope;  /* leaky_relu */
    double alpha_p;         /* xielu; its factor is softplus(alpha_p) */
    double alpha_n;         /* xielu; its factor is beta + softplus(alpha_n) */
    double beta;            /* xielu */
    double eps;             /* xielu */
} ffncore_activation;

typedef struct ffncore_matrix {
    void *data; /* NULL: absent */
    int64_t rows;
    int64_t cols;
    int64_t row_stride;
    int64_t col_stride;
    int32_t dtype; /* ffncore_dtype */
} ffncore_matrix;

typedef struct ffncore_vector {
    void *data; /* NULL: absent */
    int64_t length;
    int64_t stride;
    int32_t dtype; /* ffncore_dtype */
} ffncore_vector;

typedef struct ffncore_weights {
    size_t size;
    ffncore_matrix gate;   /* [f, d], absent in a plain block */
    ffncore_matrix up;     /* [f, d] */
    ffncore_matrix down;   /* [d, f] */
    ffncore_vector b_gate; /* [f] */
    ffncore_vector b_up;   /* [f] */
    ffncore_vector b_down; /* [d] */
    const void *packed; /* NULL, or a buffer that ffncore_pack filled. Then gate, up and down give
                           only shapes (rows and cols set, data NULL; gate.rows 0 means plain).
                           The buffer knows its dtype; up.dtype is read for costs alone. */
} ffncore_weights;

typedef struct ffncore_forward_args {
    size_t size;
    ffncore_matrix x;
    ffncore_matrix y;
    ffncore_weights weights;
    ffncore_activation activation;
    void *saved; /* NULL, or ffncore_saved_bytes() bytes, which receive gate and up before the
                    activation */
} ffncore_forward_args;

typedef struct ffncore_backward_args {
    size_t size;
    ffncore_matrix x;
    ffncore_matrix grad_y;
    ffncore_weights weights;
    ffncore_activation activation;
    const void *saved;     /* what the forward pass filled, or NULL: gate and up are recomputed */
    int32_t accumulate;    /* 0: gradients are stored, 1: they are added to the arrays' values */
    ffncore_matrix grad_x; /* this and every gradient below may be absent; then it costs nothing */
    ffncore_matrix grad_gate;
    ffncore_matrix grad_up;
    ffncore_matrix grad_down;
    ffncore_vector grad_b_gate;
    ffncore_vector grad_b_up;
    ffncore_vector grad_b_down;
    double *grad_alpha_p; /* xielu's two trainable parameters */
    double *grad_alpha_n;
} ffncore_backward_args;

/* The experts of a mixture: expert 0, and the distance from one expert to the next, which is in
 * elements for arrays and in bytes for packed weights. */
typedef struct ffncore_experts {
    size_t size;
    ffncore_weights first;
    int64_t count;
    int64_t gate_stride;
    int64_t up_stride;
    int64_t down_stride;
    int64_t b_gate_stride;
    int64_t b_up_stride;
    int64_t b_down_stride;
    int64_t packed_stride;
} ffncore_experts;

/* A token t goes through the expert e = expert_ids[t, s] of each of its top_k slots s:
 *     y[t] = sum over s, in order, of w[t, s] FFN_e(x[t])
 *     y[t] = sum over s, in order, of FFN_e(w[t, s] x[t])      with weight_on_input
 * where w are the routing weights; w x is rounded to the dtype of x. */
typedef struct ffncore_moe_forward_args {
    size_t size;
    ffncore_matrix x; /* [T, d] */
    ffncore_matrix y; /* [T, d] */
    ffncore_experts experts;
    ffncore_activation activation;
    const int32_t *expert_ids;      /* [T, top_k], contiguous: 0 to count - 1, or -1 for none */
    ffncore_matrix routing_weights; /* [T, top_k], float32, or float64 with float64 x */
    int32_t weight_on_input;
    void *saved; /* NULL, or ffncore_moe_saved_bytes() bytes, which receive gate and up before the
                    activation */
} ffncore_moe_forward_args;

typedef struct ffncore_moe_backward_args {
    size_t size;
    ffncore_matrix x;
    ffncore_matrix grad_y;
    ffncore_experts experts;
    ffncore_activation activation;
    const int32_t *expert_ids;
    ffncore_matrix routing_weights;
    int32_t weight_on_input;
    const void *saved;     /* what the forward pass filled, or NULL: gate and up are recomputed */
    int32_t accumulate;    /* 0: gradients are stored, 1: they are added to the arrays' values */
    ffncore_matrix grad_x; /* this and every gradient below may be absent; then it costs nothing */
    ffncore_matrix grad_routing_weights; /* of the weights' dtype; 0 where the expert is -1 */
    ffncore_experts grad_experts; /* gradients that are present in `first` are computed for all
                                     experts; 0 for an expert that no token chose */
    double *grad_alpha_p;         /* xielu's two trainable parameters */
    double *grad_alpha_n;
} ffncore_moe_backward_args;

/* The activations alone, elementwise: h = act(gate) * up, or act(up) where gate is absent. All
 * matrices are [rows, cols]. */
typedef struct ffncore_activation_args {
    size_t size;
    ffncore_activation activation;
    ffncore_matrix gate;
    ffncore_matrix up;
    ffncore_matrix h;         /* forward: written. backward: not read */
    ffncore_matrix grad_h;    /* backward only */
    ffncore_matrix grad_gate; /* backward of a gated block only, may be absent */
    ffncore_matrix grad_up;   /* backward only, may be absent */
    double *grad_alpha_p;     /* backward of xielu only, may be NULL */
    double *grad_alpha_n;
} ffncore_activation_args;

typedef enum ffncore_score_fn {
    FFNCORE_SCORE_SOFTMAX = 0,
    FFNCORE_SCORE_SIGMOID = 1,
    FFNCORE_SCORE_SQRTSOFTPLUS = 2, /* sqrt(log(1 + exp(z))) */
    FFNCORE_SCORE_SOFTMAX_TOPK = 3  /* experts are chosen by their logits, and the weights are the
                                       softmax over the chosen logits; norm_topk_prob, norm_eps and
                                       norm_min are not read */
} ffncore_score_fn;

typedef enum ffncore_group_score {
    FFNCORE_GROUP_TOP2_SUM = 0, /* the sum of a group's two largest values */
    FFNCORE_GROUP_MAX = 1
} ffncore_group_score;

/* How a token chooses k of E experts by its logits z.
 *   1. The scores are s = score_fn(z).
 *   2. Experts are selected by the values s (or z, with select_on_logits) +
 *      e_score_correction_bias.
 *   3. With n_group > 1 the experts form n_group groups of equal size. The topk_group best groups
 *      keep their values; the values of the other groups become group_mask_value.
 *   4. The experts with the k largest values are chosen, in falling order. NaN comes before all
 *      numbers, and a tie goes to the lowest index.
 *   5. Their weights are routed_scaling_factor s / D. D is 1, or with norm_topk_prob
 *      max(sum of the chosen s + norm_eps, norm_min).
 * Fill the struct with ffncore_router_init first. */
typedef struct ffncore_router {
    size_t size;
    int32_t score_fn; /* ffncore_score_fn */
    int32_t select_on_logits;
    int32_t norm_topk_prob;
    int32_t group_score; /* ffncore_group_score */
    int64_t n_group;     /* divides E; 1: no groups */
    int64_t topk_group;
    double group_mask_value; /* -inf, or 0 */
    double norm_eps;
    double norm_min;
    double routed_scaling_factor;
    ffncore_vector e_score_correction_bias; /* [E], may be absent; it has no gradient */
} ffncore_router;

/* Logits, weights and gradients are all float32 or all float64. */
typedef struct ffncore_route_args {
    size_t size;
    ffncore_router router;
    ffncore_matrix logits;  /* [T, E] */
    int32_t *experts;       /* [T, k], contiguous in k; written, or read if experts_given is 1 */
    int64_t expert_stride;  /* elements from one token to the next */
    int32_t experts_given;  /* 1: experts are chosen already; -1 means none, and gets weight 0 */
    ffncore_matrix weights; /* [T, k], written */
    ffncore_vector log_sum_exp; /* [T], receives log(sum of exp(logits)); only with
                                   FFNCORE_SCORE_SOFTMAX; may be absent */
} ffncore_route_args;

typedef struct ffncore_route_backward_args {
    size_t size;
    ffncore_router router;  /* bias and groups, by which the experts were chosen, are not read */
    ffncore_matrix logits;  /* [T, E] */
    const int32_t *experts; /* [T, k], -1 for none; no expert twice for one token */
    int64_t expert_stride;
    ffncore_matrix grad_weights; /* [T, k] */
    ffncore_matrix grad_logits;  /* [T, E], written */
} ffncore_route_backward_args;

typedef enum ffncore_norm_kind {
    FFNCORE_NORM_RMS = 0,  /* u = x / sqrt(mean x^2 + eps) */
    FFNCORE_NORM_LAYER = 1 /* u = (x - mean x) / sqrt(mean (x - mean x)^2 + eps) */
} ffncore_norm_kind;

/* y = u (gain_offset + gain) + bias for each row of x; sums are computed in float32, or float64. An
 * absent gain is 1, an absent bias is 0. Both have x's dtype; or float32 with a 16-bit x, or 16
 * bits with a float32 x. */
typedef struct ffncore_norm_args {
    size_t size;
    int32_t kind; /* ffncore_norm_kind */
    double eps;   /* >= 0 */
    double gain_offset;
    ffncore_matrix x;      /* [T, d] */
    ffncore_vector gain;   /* [d] */
    ffncore_vector bias;   /* [d], not read by the backward pass */
    ffncore_matrix y;      /* forward: written. backward: not read */
    ffncore_matrix grad_y; /* backward only; as are the following, which may be absent */
    ffncore_matrix grad_x;
    ffncore_vector grad_gain; /* of gain's dtype, or float32 if that has 16 bits; x's for no gain */
    ffncore_vector grad_bias; /* likewise */
} ffncore_norm_args;

/* What a call would cost: arithmetic, memory traffic, and the plan by which it would run. */
typedef struct ffncore_cost {
    size_t size;
    double flops;           /* of the products, 2 per multiply-add */
    double activations;     /* elements to which an activation is applied */
    double bytes;           /* a weight matrix counts once for each product that reads it, and its
                               gradient once as it is written; biases are not counted */
    int64_t token_chunk;    /* tokens whose hidden units are held at once */
    int64_t ff_chunk;       /* hidden units that are held at once */
    int64_t token_slice;    /* backward: tokens of x and grad_y that are held packed at once */
    int64_t extra_bytes;    /* workspace beyond inputs, outputs and saved activations */
    int32_t tokens_in_rows; /* 1: tokens are rows of A in the products C = A B, and weights are the
                               panels of B; 0: the other way round */
} ffncore_cost;

const char *ffncore_version(void);
const char *ffncore_last_error(void);

/* dense FFN */
void ffncore_activation_init(ffncore_activation *activation, int32_t kind);
ffncore_status ffncore_ffn_forward(const ffncore_forward_args *args);
ffncore_status ffncore_ffn_backward(const ffncore_backward_args *args);
ffncore_status ffncore_activation_forward(const ffncore_activation_args *args);
ffncore_status ffncore_activation_backward(const ffncore_activation_args *args);
/* Bytes of the saved gate and up, which have x's dtype: all of gate (if gated), then all of up,
 * each in panels of 64 tokens, [f][64]. The last panel is [f][remaining tokens rounded up to 16].
 * -1: see ffncore_last_error(). */
int64_t ffncore_saved_bytes(int32_t dtype, int64_t tokens, int64_t d_ff, int32_t gated);
/* mixture of experts */
ffncore_status ffncore_moe_forward(const ffncore_moe_forward_args *args);
ffncore_status ffncore_moe_backward(const ffncore_moe_backward_args *args);
/* The same for a mixture: one such array for the rows of each expert, in the order of the
 * experts. */
int64_t ffncore_moe_saved_bytes(int32_t dtype, const int32_t *expert_ids, int64_t tokens,
                                int64_t top_k, int64_t n_experts, int64_t d_ff, int32_t gated);
/* The cost depends on shapes alone: of pointers only whether they are NULL matters, and for x, y
 * and grad_y not even that. packed = 1: the cost with packed weights. */
ffncore_status ffncore_forward_cost(const ffncore_forward_args *args, int32_t packed,
                                    ffncore_cost *cost);
ffncore_status ffncore_backward_cost(const ffncore_backward_args *args, ffncore_cost *cost);

/* routing of a mixture of experts */
void ffncore_router_init(ffncore_router *router, int32_t score_fn);
ffncore_status ffncore_route(const ffncore_route_args *args);
ffncore_status ffncore_route_backward(const ffncore_route_backward_args *args);

/* norms of rows */
ffncore_status ffncore_norm_forward(const ffncore_norm_args *args);
ffncore_status ffncore_norm_backward(const ffncore_norm_args *args);

/* packed weights: pack once, run often. The layout is the same for every instruction set, and equal
 * weights make equal bytes. dtype is that of the packed matrices: the weights' own, or bfloat16 or
 * float16 for float32 weights, which are rounded once. ffncore_packed_bytes returns -1 on failure.
 * ffncore_unpack writes the matrices and biases that are present in `into`; they have the packed
 * dtype or float32. It is an error if `packed` does not contain one of them, or has it in another
 * shape. */
int64_t ffncore_packed_bytes(int32_t dtype, const ffncore_weights *weights);
ffncore_status ffncore_pack(int32_t dtype, const ffncore_weights *weights, void *packed);
ffncore_status ffncore_unpack(const ffncore_weights *into, const void *packed);

/* instruction sets: names are "scalar", "avx2", "avx512", "avx512bf16" */
int32_t ffncore_isa_count(void);
const char *ffncore_isa_name(int32_t index);
const char *ffncore_isa_current(void);
ffncore_status ffncore_isa_use(const char *name);
const char *ffncore_cpu_features(void);
const char *ffncore_build_info(void);

/* threads and memory */
int32_t ffncore_num_threads(void);
ffncore_status ffncore_set_num_threads(int32_t n); /* 0: the default */
void ffncore_clear_workspace(void);

/* For tests; must not run at the same time as another call. Replaces the chunk sizes of the plan (0
 * keeps the plan's own) and the side of the products that the tokens are on (tokens_in_rows; -1: as
 * the library chooses, 0: panels, 1: rows). threads_always = 1: small calls use all threads,
 * too. */
ffncore_status ffncore_debug_plan(int64_t token_chunk, int64_t ff_chunk, int64_t token_slice,
                                  int32_t tokens_in_rows, int32_t threads_always);
/* Replaces how few tokens read packed weights: the panels that a thread reads side by side, and the
 * bytes that it prefetches ahead in each (0: none); -1: as the library chooses. */
ffncore_status ffncore_debug_streams(int32_t panels, int64_t ahead);
/* FLOPs that the products have computed since the last call of this function. Where tokens are
 * rows, they include the hidden units that only pad a panel. */
int64_t ffncore_debug_flops(void);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
