// Layers of float32.
#include "passes.inl"

namespace ffncore::cuda {
FFNCORE_CUDA_PASSES(float, float);
} // namespace ffncore::cuda
