// Defines what passes.cuh declares. Each layer_*.cu includes this file and instantiates one pair of
// types.
#pragma once
#include "decode.cuh"
#include "passes.cuh"

namespace ffncore::cuda {

template <class T, class W>
void run_forward(const LayerForward<T> &layer, const LayerWeights<W> &w, bool one_path,
                 Arena &arena, cudaStream_t stream) {
    const bool few = layer.tokens <= kDecodeTokens && !layer.saved && !one_path;
    if (few && !w.up_by_columns && !w.down_by_columns)
        decode_forward(layer, w, arena, stream);
    else
        layer_forward(layer, w, arena, stream);
}

template <class T, class W>
void run_backward(const LayerBackward<T> &layer, const LayerWeights<W> &w, Arena &arena,
                  cudaStream_t stream) {
    layer_backward(layer, w, arena, stream);
}

#define FFNCORE_CUDA_PASSES(T, W)                                                                  \
    template void run_forward(const LayerForward<T> &, const LayerWeights<W> &, bool, Arena &,     \
                              cudaStream_t);                                                       \
    template void run_backward(const LayerBackward<T> &, const LayerWeights<W> &, Arena &,         \
                               cudaStream_t)

} // namespace ffncore::cuda
