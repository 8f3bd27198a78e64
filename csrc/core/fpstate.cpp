// Sets MXCSR of the calling thread, see fpstate.h. On machines other than x86-64 the state is left
// as it is; only the scalar level is built there, and its arithmetic follows the caller's mode.
#include "fpstate.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ffncore {

#if defined(__x86_64__)
constexpr unsigned kKeep = 0x1F80;  // all exceptions masked, round to nearest even
constexpr unsigned kFlush = 0x9FC0; // also flush to zero, and denormals are zeros

unsigned set_float_state(bool flush) {
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(flush ? kFlush : kKeep);
    return saved;
}

void restore_float_state(unsigned saved) { _mm_setcsr(saved); }
#else
unsigned set_float_state(bool) { return 0; }

void restore_float_state(unsigned) {}
#endif

} // namespace ffncore
