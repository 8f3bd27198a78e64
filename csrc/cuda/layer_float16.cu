// Layers of float16: everything that they launch is compiled here.
#include "backward.cuh"
#include "forward.cuh"
#include "tensor_tile.cuh"

namespace ffncore::cuda {

using Of = Tiles<TensorTile, F16>;
template void layer_forward<Of, F16, F16>(const LayerForward<F16> &, const LayerWeights<F16> &,
                                          Arena &, cudaStream_t);
template void layer_backward<Of, F16, F16>(const LayerBackward<F16, F16> &,
                                           const LayerWeights<F16> &, Arena &, cudaStream_t);
template void layer_backward<Of, F16, float>(const LayerBackward<F16, float> &,
                                             const LayerWeights<F16> &, Arena &, cudaStream_t);

} // namespace ffncore::cuda
