// Layers of float32: everything that they launch is compiled here.
#include "backward.cuh"
#include "forward.cuh"
#include "simt_tile.cuh"

namespace ffncore::cuda {

using Of = Tiles<SimtTile, float>;
template void layer_forward<Of, float, float>(const LayerForward<float> &,
                                              const LayerWeights<float> &, Arena &, cudaStream_t);
template void layer_backward<Of, float, float>(const LayerBackward<float, float> &,
                                               const LayerWeights<float> &, Arena &, cudaStream_t);

} // namespace ffncore::cuda
