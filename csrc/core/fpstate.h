// Floating-point state of the calling thread. Saved, set to round-to-nearest with all exceptions
// masked, and restored: results do not depend on the caller's mode. Subnormals are kept (MXCSR
// 0x1F80), or (bfloat16's arithmetic, 0x9FC0) zero going in and coming out.
// Not inline: a compiler must not move arithmetic across these calls.
#pragma once

namespace ffncore {
unsigned set_float_state(bool flush);
void restore_float_state(unsigned saved);
} // namespace ffncore
