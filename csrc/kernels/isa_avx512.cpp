// The avx512 level: its vocabulary, then the kernels that are written in it; one exported symbol.
#include "kernels.h"

#include "vec_avx512.h"

#include "table.inl"

const ffncore::KernelTable *ffncore_kernels_avx512(void) noexcept {
    using namespace ffncore;
    static KernelTable storage;
    static const KernelTable *table =
        make_table<kTileRows[0], kTileRows[1], kTileRows[2], kTileRows[3]>(storage, "avx512");
    return table;
}
