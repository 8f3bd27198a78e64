// The floating-point state of the calling thread. It is saved, set to round to nearest with all
// exceptions masked, and restored, so that results do not depend on the caller's mode. Subnormals
// are kept (MXCSR 0x1F80); with `flush`, for bfloat16's arithmetic, they count as zero in operands
// and in results (0x9FC0).
// These functions are not inline, because a compiler must not move arithmetic across the calls.
#pragma once

namespace ffncore {
unsigned set_float_state(bool flush);
void restore_float_state(unsigned saved);
} // namespace ffncore
