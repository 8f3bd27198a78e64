// The machine's limits, for `python -m ffncore bench`. Private: not part of the C ABI in ffncore.h.
#pragma once
#include <cstdint>

#if defined(__GNUC__)
#define FFNCORE_MEASURE_EXPORT __attribute__((visibility("default")))
#else
#define FFNCORE_MEASURE_EXPORT
#endif

// what                                      returns
// "fma"                                     FLOP/s (2 per fused multiply-add and lane)
// "clock"                                   Hz, right after FMA work of the same ISA
// "read"                                    bytes/s over a buffer of `bytes`, kept between calls
// "activation:<kind>:<forward|backward>:<plain|gated>"   elements of h per second, data in L1
// "issue"                                   runs of 100 nops a second, in 0.3 ms, once
// "release"                                 0; frees the read buffer
// The best of slices of about 2 ms (one pass of "read" at least) in `seconds`, all threads
// together; "clock" is the mean over the threads. Negative: kMeasureUnknown, kMeasureNoMemory.
constexpr double kMeasureUnknown = -1;  // no such what, isa or dtype on this machine
constexpr double kMeasureNoMemory = -2; // the buffer or a thread cannot be had

extern "C" FFNCORE_MEASURE_EXPORT double ffncore_measure(const char *what, const char *isa,
                                                         const char *dtype, int64_t bytes,
                                                         double seconds, int threads);
