/* ffncore: the feed-forward half of a transformer, as kernels. This is its C ABI.
 *
 *     h = act(x W_gate^T + b_gate) * (x W_up^T + b_up)      gated block, T tokens
 *     h = act(x W_up^T + b_up)                              plain block (gate.data == NULL)
 *     y = h W_down^T + b_down
 *
 * Shapes: x, y [T, d]; gate, up [f, d]; down [d, f]; b_gate, b_up [f]; b_down [d].
 * Dtypes: x and what has its shape share one; weights have it too, or 16 bits beside float32 x.
 * Biases have the weights' dtype, or float32 beside 16 bits. A gradient has the dtype of what it is
 * a gradient of, or float32. Sums are in float32 (float64 for float64) until they are rounded once.
 * Strides count elements and may have any value, also 0 or negative. Inputs are never written.
 * No output may share memory with an input, with another output, or (by its strides) with itself;
 * this is not tested. Data lies at multiples of its element's size.
 * Every struct begins with its size (set it to sizeof), so that later versions may append fields.
 * A function that can fail returns a status, or -1 where it returns bytes; ffncore_last_error()
 * then has the sentence (of this thread, until its next failure). No exception comes out of any.
 * Without its # lines and the two extern "C" blocks this file is plain declarations, which a parser
 * such as cffi's reads as they are.
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
    FFNCORE_INVALID_ARGUMENT = 1, /* a size, pointer or option that does not fit */
    FFNCORE_OUT_OF_MEMORY = 2,
    FFNCORE_UNSUPPORTED = 3 /* this machine or this build lacks it */
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

/* The options in the order in which they act: gate * gate_multiplier, clamp, activation (alpha,
 * softcap), clamp; up clamp, up softcap, + up_offset. Start from ffncore_activation_init. */
typedef struct ffncore_activation {
    size_t size;
    int32_t kind;        /* ffncore_activation_kind */
    int32_t clamp;       /* ffncore_clamp; limit, up_offset, up_softcap: gated blocks only */
    double limit;        /* > 0 where clamp is not NONE */
    double alpha;        /* silu: x * sigmoid(alpha x) */
    double up_offset;    /* h = act(gate) * (up + up_offset) */
    double gate_softcap; /* c > 0: silu and quick_gelu, c tanh(x / c) sigmoid(alpha x); 0: none */
    double up_softcap;   /* c > 0: c tanh(up / c); 0: none */
    double gate_multiplier; /* act(gate_multiplier * gate) */
    double negative_slope;  /* leaky_relu */
    double alpha_p;         /* xielu, before softplus */
    double alpha_n;         /* xielu, before softplus */
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
    const void *packed;    /* NULL, or what ffncore_pack filled: then gate, up, down, biases give
                              shapes alone (rows and cols set, data NULL; gate.rows 0 = plain);
                              up.dtype counts for costs, else packed knows its own */
} ffncore_weights;

typedef struct ffncore_forward_args {
    size_t size;
    ffncore_matrix x;
    ffncore_matrix y;
    ffncore_weights weights;
    ffncore_activation activation;
    void *saved; /* NULL, or ffncore_saved_bytes() bytes: gate and up before the activation */
} ffncore_forward_args;

typedef struct ffncore_backward_args {
    size_t size;
    ffncore_matrix x;
    ffncore_matrix grad_y;
    ffncore_weights weights;
    ffncore_activation activation;
    const void *saved;     /* what the forward pass filled, or NULL: gate and up are recomputed */
    int32_t accumulate;    /* 0: gradients are stored, 1: added into what is there */
    ffncore_matrix grad_x; /* every gradient below may be absent, and then costs nothing */
    ffncore_matrix grad_gate;
    ffncore_matrix grad_up;
    ffncore_matrix grad_down;
    ffncore_vector grad_b_gate;
    ffncore_vector grad_b_up;
    ffncore_vector grad_b_down;
    double *grad_alpha_p; /* xielu's two trainable parameters */
    double *grad_alpha_n;
} ffncore_backward_args;

/* The experts of a mixture: expert 0, and the distances from one expert to the next: of arrays in
 * elements, of packed weights in bytes. */
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

/* y[t] = sum over slots s, in order, of w[t, s] FFN_e(x[t]), e = expert_ids[t, s]; or (weight on
 * the input) of FFN_e(w[t, s] x[t]), the product rounded to x's dtype. */
typedef struct ffncore_moe_forward_args {
    size_t size;
    ffncore_matrix x; /* [T, d] */
    ffncore_matrix y; /* [T, d] */
    ffncore_experts experts;
    ffncore_activation activation;
    const int32_t *expert_ids;      /* [T, top_k], without gaps: 0 to count - 1, or -1 for none */
    ffncore_matrix routing_weights; /* [T, top_k], float32, or float64 beside float64 x */
    int32_t weight_on_input;
    void *saved; /* NULL, or ffncore_moe_saved_bytes() bytes: gate and up before the activation */
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
    int32_t accumulate;    /* 0: gradients are stored, 1: added into what is there */
    ffncore_matrix grad_x; /* every gradient may be absent, and then costs nothing */
    ffncore_matrix grad_routing_weights; /* of their dtype; 0 where the expert is -1 */
    ffncore_experts grad_experts; /* those present in `first`; 0 for experts that no token chose */
    double *grad_alpha_p;         /* xielu's two trainable parameters */
    double *grad_alpha_n;
} ffncore_moe_backward_args;

/* Elementwise: h = act(gate) * up (gated) or act(up), all [rows, cols]; gate absent = plain. */
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
    FFNCORE_SCORE_SOFTMAX_TOPK = 3  /* scores are the logits; weights are the softmax over the
                                       chosen ones, and norm_topk_prob, _eps, _min are not read */
} ffncore_score_fn;

typedef enum ffncore_group_score {
    FFNCORE_GROUP_TOP2_SUM = 0, /* the sum of a group's two largest values */
    FFNCORE_GROUP_MAX = 1
} ffncore_group_score;

/* How a token chooses k of E experts by its logits z. Values to select by: scores s (or z), + bias;
 * of n_group equal groups of experts the topk_group best keep theirs, the others get
 * group_mask_value. The k largest are chosen, in falling order; ties to the lowest index, NaN
 * before all numbers. Their weights: routed_scaling_factor s / D, where D is 1, or with
 * norm_topk_prob max(sum of the chosen s + norm_eps, norm_min). Start from ffncore_router_init. */
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
    ffncore_vector e_score_correction_bias; /* [E], may be absent; of no gradient */
} ffncore_router;

/* Logits, weights and gradients are all float32 or all float64. */
typedef struct ffncore_route_args {
    size_t size;
    ffncore_router router;
    ffncore_matrix logits;  /* [T, E] */
    int32_t *experts;       /* [T, k], contiguous in k; written, but read where they are given */
    int64_t expert_stride;  /* from token to token */
    int32_t experts_given;  /* 1: chosen already; -1 is none, and gets weight 0 */
    ffncore_matrix weights; /* [T, k], written */
    ffncore_vector log_sum_exp; /* [T], log(sum of exp(logits)); softmax only, may be absent */
} ffncore_route_args;

typedef struct ffncore_route_backward_args {
    size_t size;
    ffncore_router router;  /* what was chosen by (bias, groups) is not read */
    ffncore_matrix logits;  /* [T, E] */
    const int32_t *experts; /* [T, k], different ones of a token, or -1 */
    int64_t expert_stride;
    ffncore_matrix grad_weights; /* [T, k] */
    ffncore_matrix grad_logits;  /* [T, E], written */
} ffncore_route_backward_args;

/* What a call would cost: arithmetic, memory traffic and the plan that would run. */
typedef struct ffncore_cost {
    size_t size;
    double flops;           /* of the products, 2 per multiply-add */
    double activations;     /* elements that pass an activation */
    double bytes;           /* weight matrices once per pass that needs them, and their gradients
                               written; biases are not counted */
    int64_t token_chunk;    /* tokens whose hidden units are held at once */
    int64_t ff_chunk;       /* hidden units held at once */
    int64_t token_slice;    /* tokens of x (and grad_y) held packed at once */
    int64_t extra_bytes;    /* workspace beyond inputs, outputs and saved tensors */
    int32_t tokens_in_rows; /* 1: weights are the B panels (few tokens, packed weights) */
} ffncore_cost;

const char *ffncore_version(void);
const char *ffncore_last_error(void);

/* dense FFN */
void ffncore_activation_init(ffncore_activation *activation, int32_t kind);
ffncore_status ffncore_ffn_forward(const ffncore_forward_args *args);
ffncore_status ffncore_ffn_backward(const ffncore_backward_args *args);
ffncore_status ffncore_activation_forward(const ffncore_activation_args *args);
ffncore_status ffncore_activation_backward(const ffncore_activation_args *args);
/* Saved gate and up, of x's dtype: [gated ? 2 : 1] x panels of 64 tokens, [f][64] each; the last
 * panel is [f][tokens rounded up to 16]. -1: see ffncore_last_error(). */
int64_t ffncore_saved_bytes(int32_t dtype, int64_t tokens, int64_t d_ff, int32_t gated);
/* mixture of experts */
ffncore_status ffncore_moe_forward(const ffncore_moe_forward_args *args);
ffncore_status ffncore_moe_backward(const ffncore_moe_backward_args *args);
/* As above for the rows of each expert, one expert's behind the other's. */
int64_t ffncore_moe_saved_bytes(int32_t dtype, const int32_t *expert_ids, int64_t tokens,
                                int64_t top_k, int64_t n_experts, int64_t d_ff, int32_t gated);
/* For shapes alone: pointers are tested for NULL, never read (x, y and grad_y not even that).
 * packed: as if weights were packed. */
ffncore_status ffncore_forward_cost(const ffncore_forward_args *args, int32_t packed,
                                    ffncore_cost *cost);
ffncore_status ffncore_backward_cost(const ffncore_backward_args *args, ffncore_cost *cost);

/* routing of a mixture of experts */
void ffncore_router_init(ffncore_router *router, int32_t score_fn);
ffncore_status ffncore_route(const ffncore_route_args *args);
ffncore_status ffncore_route_backward(const ffncore_route_backward_args *args);

/* packed weights: pack once, run often; the layout is the same for every ISA, and equal weights
 * make equal bytes. dtype: of the packed matrices, the weights' own, or 16 bits of float32 (rounded
 * once). packed_bytes: -1 as above. unpack writes what is present in `into`, of the packed dtype or
 * float32, and refuses what `packed` lacks or has in another shape. */
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

/* For tests; not for use beside running calls. Replaces the plan's chunk sizes (0: the plan's own)
 * and its choice of what the panels are (tokens_in_rows, -1: the plan's own, 0: tokens are panels,
 * 1: tokens are rows); threads_always 1: small calls, too, run on all threads. */
ffncore_status ffncore_debug_plan(int64_t token_chunk, int64_t ff_chunk, int64_t token_slice,
                                  int32_t tokens_in_rows, int32_t threads_always);
/* FLOPs of the products since the last call of this, as they ran: where tokens are rows, hidden
 * units that only fill a panel up count too. */
int64_t ffncore_debug_flops(void);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
