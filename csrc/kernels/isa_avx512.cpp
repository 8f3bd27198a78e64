// The avx512 level: its vocabulary, the bodies, one exported symbol.
#include "kernels.h"

#include "vec_avx512.h"

#include "table.inl"

const ffncore::KernelTable *ffncore_kernels_avx512(void) noexcept {
    static ffncore::KernelTable storage;
    static const ffncore::KernelTable *table = ffncore::make_table<10, 14, 8, 6>(storage, "avx512");
    return table;
}
