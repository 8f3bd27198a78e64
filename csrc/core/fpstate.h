// Floating-point state of the calling thread. Saved, set to round-to-nearest with all exceptions
// masked and denormals kept (MXCSR 0x1F80), and restored: results do not depend on the caller's
// mode. Not inline: a compiler must not move arithmetic across these calls.
#pragma once

namespace ffncore {
unsigned set_float_state();
void restore_float_state(unsigned saved);
} // namespace ffncore
