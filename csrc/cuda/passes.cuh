// Both passes of a layer for every pair of types: T of x and W of the weights. T is W, or float
// with any W. Each pair is compiled in a file of its own (layer_*.cu), because it takes nvcc
// minutes.
#pragma once
#include "backward.cuh"
#include "forward.cuh"

namespace ffncore::cuda {

// With an arena that only counts, nothing runs, and the arena has the bytes that the pass needs.
template <class T, class W>
void run_forward(const LayerForward<T> &layer, const LayerWeights<W> &w, bool one_path,
                 Arena &arena, cudaStream_t stream);
template <class T, class W>
void run_backward(const LayerBackward<T> &layer, const LayerWeights<W> &w, Arena &arena,
                  cudaStream_t stream);

} // namespace ffncore::cuda
