// Layers with float32 x and bfloat16 weights.
#include "passes.inl"

namespace ffncore::cuda {
FFNCORE_CUDA_PASSES(float, Bf16);
} // namespace ffncore::cuda
