// The scalar level: its vocabulary, then the kernels that are written in it; one exported symbol.
#include "kernels.h"

#include "vec_scalar.h"

#include "table.inl"

const ffncore::KernelTable *ffncore_kernels_scalar(void) noexcept {
    static ffncore::KernelTable storage;
    static const ffncore::KernelTable *table = ffncore::make_table<2, 2>(storage, "scalar");
    return table;
}
