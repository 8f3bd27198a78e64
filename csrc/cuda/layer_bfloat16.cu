// Layers of bfloat16.
#include "passes.inl"

namespace ffncore::cuda {
FFNCORE_CUDA_PASSES(Bf16, Bf16);
} // namespace ffncore::cuda
