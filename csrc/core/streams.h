// How few tokens read weights on this machine. They wait for memory, so how many streams a thread
// reads side by side, and whether it prefetches in software, decide their speed. Both differ from
// one family of CPUs to another and were measured (streams.cpp has the table).
#pragma once
#include <cstdint>

namespace ffncore {

struct Streams {
    int panels;    // packed panels that a thread reads side by side, at most
    int64_t ahead; // packed panels: bytes that are prefetched ahead in each of them; 0: none
    bool raw;      // weights transposed in registers: whether the next rows are prefetched
};

// Those of this machine for packed weights of so many bytes, unless FFNCORE_PREFETCH (0: no
// prefetch; else the bytes ahead) or override_streams says otherwise.
Streams streams(double weight_bytes);
// For tests and measurements. A negative number keeps the machine's own.
void override_streams(int panels, int64_t ahead);

} // namespace ffncore
