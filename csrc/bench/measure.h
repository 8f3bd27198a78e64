// Measures the machine's limits, for `python -m ffncore bench`. This is private, and not part of
// the C ABI in ffncore.h.
#pragma once
#include <cstdint>

#if defined(__GNUC__)
#define FFNCORE_MEASURE_EXPORT __attribute__((visibility("default")))
#else
#define FFNCORE_MEASURE_EXPORT
#endif

// what                                      returns
// "fma"                                     FLOP/s (2 per fused multiply-add and lane)
// "clock"                                   Hz, right after FMA work of the same instruction set
// "read"                                    bytes/s from a buffer of `bytes`, kept between calls
// "activation:<kind>:<forward|backward>:<plain|gated>"   elements of h a second, with data in L1
// "issue"                                   runs of 100 nops a second, measured once, in 0.3 ms
// "release"                                 0; frees the read buffer
// The rates are those of all threads together, in the best slice of those that fit in `seconds`. A
// slice takes about 2 ms, and for "read" at least one pass. "clock" is the mean over the threads. A
// negative number is one of these:
constexpr double kMeasureUnknown = -1;  // this machine has no such what, isa or dtype
constexpr double kMeasureNoMemory = -2; // the buffer or a thread could not be created

extern "C" FFNCORE_MEASURE_EXPORT double ffncore_measure(const char *what, const char *isa,
                                                         const char *dtype, int64_t bytes,
                                                         double seconds, int threads);
