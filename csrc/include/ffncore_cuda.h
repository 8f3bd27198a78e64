/* ffncore on NVIDIA GPUs (sm_80 and later): the C ABI of libffncore_cuda.so.
 *
 * Structs, shapes, options and statuses are those of ffncore.h. These are the differences:
 *
 * - Arrays lie in device memory, including expert_ids, grad_alpha_p and grad_alpha_n. Structs lie
 *   in the memory of the host.
 * - A dense layer is a mixture of one expert without expert_ids: experts.count is 1, expert_ids is
 *   NULL, and routing_weights is absent. Its saved array has T rows, that of a mixture T top_k.
 * - Types are float32, bfloat16 and float16, subnormals included. There is no float64, and there
 *   are no packed weights. Routing weights, logits and their gradients are float32.
 * - In gate, up and down either the rows or the columns must be contiguous (one stride is 1), and
 *   gate must be contiguous in the same dimension as up. Other arrays may have any strides.
 * - Expert ids out of range count as -1. The environment variable FFNCORE_CUDA_DEBUG=1 makes them
 *   an error, and makes each call wait until it has run. FFNCORE_CUDA_BATCH_INVARIANT=1 sets the
 *   option batch_invariant of every call.
 *
 * A call queues its work on a stream and returns. It allocates nothing: a query returns the bytes
 * of workspace that it needs, from shapes alone. An array may be reused once the stream is past the
 * call. The queued work always runs in the same order, so equal calls give equal bits. A function
 * that can fail returns a status, or -1 where it returns a number of bytes.
 * ffncore_cuda_last_error() then returns the sentence; each thread has its own, which stays until
 * the next failure of that thread.
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
    void *stream;    /* cudaStream_t; NULL: the default stream */
    void *workspace; /* device memory, aligned to 256 bytes, of the size that the query gave */
    int64_t workspace_bytes; /* size of workspace */
    int32_t device;          /* of the stream and the arrays; -1: the current device */
    int32_t batch_invariant; /* 0: a forward pass of at most 16 tokens that saves nothing takes a
                                faster path of its own, which gives other bits; 1: all sizes take
                                one path */
} ffncore_cuda_call;

const char *ffncore_cuda_version(void);
const char *ffncore_cuda_last_error(void);
/* How many devices of this machine can run ffncore. Returns FFNCORE_UNSUPPORTED where none can:
 * there is no driver, no device, or no device of sm_80 or later. */
ffncore_status ffncore_cuda_devices(int32_t *count);

/* Both passes of a layer, dense or a mixture. The queries (_workspace) read shapes, strides, types
 * and whether a pointer is NULL; of call they read only batch_invariant. */
int64_t ffncore_cuda_forward_workspace(const ffncore_moe_forward_args *args,
                                       const ffncore_cuda_call *call);
ffncore_status ffncore_cuda_forward(const ffncore_moe_forward_args *args,
                                    const ffncore_cuda_call *call);
int64_t ffncore_cuda_backward_workspace(const ffncore_moe_backward_args *args,
                                        const ffncore_cuda_call *call);
ffncore_status ffncore_cuda_backward(const ffncore_moe_backward_args *args,
                                     const ffncore_cuda_call *call);
/* Bytes of the saved gate and up, which have x's dtype: [gated ? 2 : 1][rows][f], gate before up.
 * The rows of a mixture are ordered by expert, then token, then slot. Rows without an expert are
 * left out, so that the last rows of the array are then unused. */
int64_t ffncore_cuda_saved_bytes(int32_t dtype, int64_t rows, int64_t d_ff, int32_t gated);

/* Routing; it needs no workspace. */
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
