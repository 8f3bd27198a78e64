// The avx512bf16 level: the kernels of avx512, and products of bfloat16 pairs by VDPBF16PS:
//
//   c[lane] = fma(even a, even b, fma(odd a, odd b, c[lane]))
//
// where subnormals count as zero, in operands and in results. CPUs were observed to compute this,
// and works() checks it on this one, with cases that tell it from the other order of the terms and
// from a single rounding. On a CPU that computes anything else the level is not offered.
#include "kernels.h"

#include "vec_avx512.h"

#include "math.inl"

#include "pack.inl"
#include "pairs.inl"

#include "gemm.inl"

namespace ffncore {
namespace {

inline __m512 pair_terms(__m512 a, __m512 b, __m512 c) {
#if defined(FFNCORE_EMULATE_BF16) // for tests on CPUs without the instruction
    const __m512i odd = _mm512_set1_epi32((int)0xffff0000);
    const auto upper = [&](__m512 v) {
        return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), odd));
    };
    const auto lower = [](__m512 v) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 16));
    };
    return _mm512_fmadd_ps(lower(a), lower(b), _mm512_fmadd_ps(upper(a), upper(b), c));
#else
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
#endif
}

// Vectors whose elements are pairs of bfloat16, each in the place of a float.
struct PairF32 : F32 {
    static inline V fma(V a, V b, V c) { return pair_terms(a, b, c); }
};
template <> constexpr int64_t kTerms<PairF32> = 2;

struct Known {
    uint32_t c, a, b, result; // in a and b the odd element is the upper half
};
constexpr Known kKnown[] = {
    // 2^24 + 1 is a tie that goes to 2^24; + 2. Even first, or rounded once: 2^24 + 4.
    {0x4b800000, 0x3f804000, 0x3f803f80, 0x4b800001},
    // 2^24 + 2 + 1 is a tie that goes to 2^24 + 4. Even first: 2^24 + 2.
    {0x4b800000, 0x40003f80, 0x3f803f80, 0x4b800002},
    // 1 + 2^-24 + 2^-24 has two ties, which go to 1. Rounded once: 1 + 2^-23.
    {0x3f800000, 0x33803380, 0x3f803f80, 0x3f800000},
    // 2^-10 - 2^24 + 2^24 loses 2^-10. Rounded once it would remain.
    {0x3a800000, 0xcb804b80, 0x3f803f80, 0x00000000},
    // A subnormal c, subnormal factors and subnormal products count as zero.
    {0x00400000, 0x00000000, 0x00000000, 0x00000000},
    {0x00000000, 0x00400040, 0x7f007f00, 0x00000000},
    {0x00000000, 0x00800080, 0x3f003e80, 0x00000000},
    // A sum beyond the largest float becomes infinite.
    {0x00000000, 0x7f7f7f7f, 0x7f7f7f7f, 0x7f800000},
};

bool works() {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9FC0);
    bool same = true;
    for (const Known &known : kKnown) {
        const auto all = [](uint32_t bits) {
            volatile uint32_t hidden = bits; // so that the CPU computes it, not the compiler
            return _mm512_castsi512_ps(_mm512_set1_epi32((int)hidden));
        };
        float lanes[F32::W];
        F32::store(lanes, PairF32::fma(all(known.a), all(known.b), all(known.c)));
        for (float lane : lanes) same = same && float_bits(lane) == known.result;
    }
    _mm_setcsr(before);
    return same;
}

template <int NV> void add_tiles(Kernels<float> &kernels) {
    for_heights<kTileRows[NV - 1]>([&](auto height) {
        kernels.pairs.tile[NV][height.kValue] = tile<PairF32, float, kRising, NV, height.kValue>;
        if constexpr (NV == 2 || NV == kMaxVectors)
            kernels.pairs.rounded[NV][height.kValue] =
                tile<PairF32, float, kRising, NV, height.kValue, kRows, Bf16>;
    });
}

const KernelTable *add_pairs(KernelTable &table) {
    table = *ffncore_kernels_avx512();
    table.name = "avx512bf16";
    table.works = works;
    add_tiles<1>(table.bf16);
    add_tiles<2>(table.bf16);
    add_tiles<3>(table.bf16);
    add_tiles<4>(table.bf16);
    fill_groups<PairF32, float, kRising, kRows, kTileRows[1]>(table.bf16.pairs.group);
    table.bf16.pairs.pack = pack_pairs<F32>;
    table.bf16.pairs.pack_tiles = pack_pair_tiles<F32>;
    table.bf16.pairs.join_rows = join_rows<F32>;
    return &table;
}

} // namespace
} // namespace ffncore

const ffncore::KernelTable *ffncore_kernels_avx512bf16(void) noexcept {
    using namespace ffncore;
    static KernelTable storage;
    static const KernelTable *table = add_pairs(storage);
    return table;
}
