// Layers with float32 x and float16 weights.
#include "passes.inl"

namespace ffncore::cuda {
FFNCORE_CUDA_PASSES(float, F16);
} // namespace ffncore::cuda
