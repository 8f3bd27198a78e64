// What this machine has, and which kernels run on it. This file and streams.h read the environment
// (FFNCORE_ISA, FFNCORE_NUM_THREADS, FFNCORE_VERBOSE).
#pragma once
#include <cstdint>
#include <string>

#include "../kernels/kernels.h"

namespace ffncore {

// The levels that this build has and this machine supports, the best one last.
int isa_count();
const KernelTable *isa_table(int index);
const KernelTable *current_isa(); // nullptr: FFNCORE_ISA names a level that cannot run
bool use_isa(const char *name);   // nullptr or "": the default; returns false if it cannot run
const char *isa_problem();        // the sentence for the two failures above
const char *cpu_features();       // "avx2 fma f16c avx512f ..."
int64_t l2_bytes();               // L2 of one core; 1 MiB if unknown
int64_t l3_bytes();               // the L3 that a core shares; 0 if unknown
bool verbose();                   // FFNCORE_VERBOSE=1
int requested_threads();          // FFNCORE_NUM_THREADS, or 0
int physical_cores();             // within the affinity mask and the cgroup quota; at least 1

} // namespace ffncore
