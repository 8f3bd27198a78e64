// Layers with x of float32 beside weights of bfloat16.
#include "passes.inl"

namespace ffncore::cuda {
FFNCORE_CUDA_PASSES(float, Bf16);
} // namespace ffncore::cuda
