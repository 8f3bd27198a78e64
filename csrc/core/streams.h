// How weights are best read from memory on this machine, where few tokens wait for them.
#pragma once
#include <cstdint>

namespace ffncore {

struct Streams {
    int panels;    // packed panels that a thread reads side by side, at most
    int64_t ahead; // bytes that are prefetched ahead in each of them; 0: no prefetch
};

// By the machine's table, but for what FFNCORE_PREFETCH (bytes ahead) or override_streams says.
Streams streams();
void override_streams(const Streams &streams); // a negative number: the machine's own

} // namespace ffncore
