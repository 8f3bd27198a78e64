/* ffncore on NVIDIA GPUs (sm_80 and later): the C ABI of libffncore_cuda.so.
 *
 * Structs, shapes, options and statuses are those of ffncore.h. What differs:
 *
 * - Arrays lie in device memory, also expert_ids, grad_alpha_p and grad_alpha_n; structs do not.
 * - A dense layer is a mixture of one expert without expert_ids: experts.count 1, expert_ids NULL,
 *   routing_weights absent. Its saved array has T rows, that of a mixture T top_k.
 * - Types: float32, bfloat16 and float16, subnormals included; no float64, no packed weights.
 *   Routing weights, logits and their gradients are float32.
 * - Of gate, up and down the rows or the columns are contiguous (a stride is 1), and gate's as
 *   up's are. All else has any strides.
 * - Expert ids out of range count as -1. Environment: FFNCORE_CUDA_DEBUG=1 makes them an error, and
 *   each call wait until it has run; FFNCORE_CUDA_BATCH_INVARIANT=1 is that option of every call.
 *
 * Calls queue work on a stream and return. They allocate nothing: a query tells the bytes of
 * workspace, from shapes alone. An array may be used again once the stream is past the call. What
 * was queued runs in the same order always: equal calls have equal bits.
 * A function that can fail returns a status, or -1 where it returns bytes;
 * ffncore_cuda_last_error() then has the sentence (of this thread, until its next failure).
 */
#ifndef FFNCORE_CUDA_H
#define FFNCORE_CUDA_H

#include "ffncore.h"

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* Where a call runs, and how. */
typedef struct ffncore_cuda_call {
    size_t size;
    void *stream;            /* cudaStream_t; NULL: the default stream */
    void *workspace;         /* device memory at a multiple of 256 bytes, of the bytes asked for */
    int64_t workspace_bytes; /* how much there is */
    int32_t device;          /* of the stream and the arrays; -1: the current one */
    int32_t batch_invariant; /* 0: a forward pass of at most 16 tokens that saves nothing has a path
                                of its own, and other bits; 1: there is one path */
} ffncore_cuda_call;

const char *ffncore_cuda_version(void);
const char *ffncore_cuda_last_error(void);
/* How many devices of this machine can run ffncore. FFNCORE_UNSUPPORTED where none can: no driver,
 * no device, or none of sm_80. */
ffncore_status ffncore_cuda_devices(int32_t *count);

/* Both passes of a layer, dense or a mixture. The queries look at shapes, strides, types and
 * whether a pointer is NULL, and at call for batch_invariant. */
int64_t ffncore_cuda_forward_workspace(const ffncore_moe_forward_args *args,
                                       const ffncore_cuda_call *call);
ffncore_status ffncore_cuda_forward(const ffncore_moe_forward_args *args,
                                    const ffncore_cuda_call *call);
int64_t ffncore_cuda_backward_workspace(const ffncore_moe_backward_args *args,
                                        const ffncore_cuda_call *call);
ffncore_status ffncore_cuda_backward(const ffncore_moe_backward_args *args,
                                     const ffncore_cuda_call *call);
/* Saved gate and up, of x's dtype: [gated ? 2 : 1][rows][f], gate's before up's. A mixture's rows
 * are in the order of their experts, and by token and slot within one; those without an expert are
 * not there, and the last rows then unused. */
int64_t ffncore_cuda_saved_bytes(int32_t dtype, int64_t rows, int64_t d_ff, int32_t gated);

/* Routing; without workspace. */
ffncore_status ffncore_cuda_route(const ffncore_route_args *args, const ffncore_cuda_call *call);
ffncore_status ffncore_cuda_route_backward(const ffncore_route_backward_args *args,
                                           const ffncore_cuda_call *call);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
