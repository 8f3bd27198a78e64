// Both passes of a layer for every pair of types, each compiled in a file of its own, because that
// takes nvcc minutes: x's type T is float beside any weights' type W, and W else.
#pragma once
#include "backward.cuh"
#include "forward.cuh"

namespace ffncore::cuda {

// An arena that counts: what the pass would take from it, and nothing runs.
template <class T, class W>
void run_forward(const LayerForward<T> &layer, const LayerWeights<W> &w, bool one_path,
                 Arena &arena, cudaStream_t stream);
template <class T, class W>
void run_backward(const LayerBackward<T> &layer, const LayerWeights<W> &w, Arena &arena,
                  cudaStream_t stream);

} // namespace ffncore::cuda
