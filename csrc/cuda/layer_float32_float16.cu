// Layers with x of float32 beside weights of float16.
#include "passes.inl"

namespace ffncore::cuda {
FFNCORE_CUDA_PASSES(float, F16);
} // namespace ffncore::cuda
