// Layers of bfloat16: everything that they launch is compiled here.
#include "backward.cuh"
#include "forward.cuh"
#include "tensor_tile.cuh"

namespace ffncore::cuda {

using Of = Tiles<TensorTile, Bf16>;
template void layer_forward<Of, Bf16, Bf16>(const LayerForward<Bf16> &, const LayerWeights<Bf16> &,
                                            Arena &, cudaStream_t);
template void layer_backward<Of, Bf16, Bf16>(const LayerBackward<Bf16, Bf16> &,
                                             const LayerWeights<Bf16> &, Arena &, cudaStream_t);
template void layer_backward<Of, Bf16, float>(const LayerBackward<Bf16, float> &,
                                              const LayerWeights<Bf16> &, Arena &, cudaStream_t);

} // namespace ffncore::cuda
