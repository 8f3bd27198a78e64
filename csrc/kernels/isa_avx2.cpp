// The avx2 level: its vocabulary, then the kernels that are written in it; one exported symbol.
#include "kernels.h"

#include "vec_avx2.h"

#include "table.inl"

const ffncore::KernelTable *ffncore_kernels_avx2(void) noexcept {
    static ffncore::KernelTable storage;
    static const ffncore::KernelTable *table = ffncore::make_table<8, 6>(storage, "avx2");
    return table;
}
