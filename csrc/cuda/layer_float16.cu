// Layers of float16.
#include "passes.inl"

namespace ffncore::cuda {
FFNCORE_CUDA_PASSES(F16, F16);
} // namespace ffncore::cuda
