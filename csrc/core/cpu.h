// What this machine is, and which kernels run on it. The only reader of the environment
// (FFNCORE_ISA, FFNCORE_NUM_THREADS, FFNCORE_VERBOSE).
#pragma once
#include <cstdint>
#include <string>

#include "../kernels/kernels.h"

namespace ffncore {

// Levels compiled in and supported by this machine, best last.
int isa_count();
const KernelTable *isa_table(int index);
const KernelTable *current_isa(); // nullptr: FFNCORE_ISA names one that cannot run
bool use_isa(const char *name);   // false: unknown here; nullptr or "": the default
const char *isa_problem();        // the sentence for the two failures above
const char *cpu_features();       // "avx2 fma f16c avx512f ..."
int64_t l2_bytes();               // of one core; 1 MiB where it cannot be told
bool verbose();                   // FFNCORE_VERBOSE=1
int requested_threads();          // FFNCORE_NUM_THREADS, or 0
int physical_cores();             // in the affinity mask and cgroup quota, at least 1

} // namespace ffncore
