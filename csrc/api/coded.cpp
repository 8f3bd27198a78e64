// The C ABI of packed quantised weights (packing/coded.h).
#include "../include/ffncore_quantised.h"

#include <cstring>

#include "../core/cpu.h"
#include "../ops/packing/coded.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

namespace {

NumbersInput numbers_of(const char *name, const ffncore_numbers &n) {
    if (!n.data) return {};
    if (n.factors) {
        require(n.factor_groups > 0, "%s.factor_groups is %lld; expected at least 1", name,
                (long long)n.factor_groups);
        return {n.data,    n.row_stride,    n.col_stride,   kNumberProduct,
                n.factors, n.factor_stride, n.factor_groups};
    }
    const int64_t kind = n.stored == FFNCORE_FLOAT32    ? kNumberF32
                         : n.stored == FFNCORE_FLOAT16  ? kNumberF16
                         : n.stored == FFNCORE_BFLOAT16 ? kNumberBf16
                                                        : kNoNumber;
    require(kind != kNoNumber, "%s.stored is %s; expected float32, float16 or bfloat16", name,
            dtype_name(n.stored));
    return {n.data, n.row_stride, n.col_stride, kind, nullptr, 0, 1};
}

CodedInput input_of(const char *name, const ffncore_coded &m, int64_t rows, int64_t cols) {
    check_sizes(name, rows, cols);
    require(m.rows == rows && m.cols == cols, "%s has another shape than up", name);
    const int b = m.bits;
    require(b == 1 || b == 2 || b == 4 || b == 5 || b == 6 || b == 8,
            "%s.bits is %d; expected 1, 2, 4, 5, 6 or 8", name, b);
    require(m.group >= 1 && m.group <= cols, "%s.group is %lld; expected 1 to its inputs", name,
            (long long)m.group);
    require(m.scale.data, "%s.scale is absent", name);
    require(!m.zero.data || !m.offset.data, "%s has both zeros and offsets", name);
    return {m.codes,
            m.rows,
            m.cols,
            b,
            m.e4m3 != 0,
            m.group,
            m.table,
            m.center,
            {numbers_of(name, m.scale), numbers_of(name, m.zero), numbers_of(name, m.offset)}};
}

struct Request {
    CodedInput matrices[3];
    const float *biases[3];
    CodedHeader header;

    explicit Request(const ffncore_coded_weights &w) {
        check_size("weights", w.size, sizeof w);
        require(w.up.codes && w.down.codes, "weights have no up or no down");
        const int64_t f = w.up.rows, d = w.up.cols;
        require(f > 0 && d > 0, "weights.up has an empty shape; expected at least (1, 1)");
        matrices[0] = w.gate.codes ? input_of("weights.gate", w.gate, f, d) : CodedInput{};
        matrices[1] = input_of("weights.up", w.up, f, d);
        matrices[2] = input_of("weights.down", w.down, d, f);
        const ffncore_vector *const given[3] = {&w.b_gate, &w.b_up, &w.b_down};
        for (int i = 0; i < 3; ++i) {
            const ffncore_vector &b = *given[i];
            check_vector("a bias", b, i == 2 ? d : f);
            require(!b.data || (b.dtype == FFNCORE_FLOAT32 && b.stride == 1),
                    "a bias is not contiguous float32");
            biases[i] = static_cast<const float *>(b.data);
        }
        const PackedHeader sizes{kCodedMagic,
                                 FFNCORE_FLOAT32,
                                 d,
                                 f,
                                 w.gate.codes != nullptr,
                                 biases[0] != nullptr,
                                 biases[1] != nullptr,
                                 biases[2] != nullptr};
        header = coded_header(sizes, matrices[0], matrices[1], matrices[2]);
    }
};

} // namespace

int64_t ffncore_coded_bytes(const ffncore_coded_weights *weights) {
    return guarded_or<int64_t>(-1, [&] {
        require(weights, "weights is NULL");
        return Request(*weights).header.bytes;
    });
}

ffncore_status ffncore_pack_coded(const ffncore_coded_weights *weights, void *packed) {
    return guarded([&] {
        require(weights, "weights is NULL");
        require(packed, "packed is NULL");
        const Request request(*weights);
        pack_coded(request.header, request.matrices, request.biases,
                   kernels<float>(FFNCORE_FLOAT32), packing_threads(request.header.bytes),
                   static_cast<char *>(packed));
        return FFNCORE_OK;
    });
}

int64_t ffncore_header_bytes(const void *packed, int64_t available) {
    return guarded_or<int64_t>(-1, [&] {
        require(packed, "packed is NULL");
        PackedHeader h;
        require(available >= int64_t(sizeof h), "packed is too short for a header");
        std::memcpy(&h, packed, sizeof h);
        if (h.magic == kCodedMagic) {
            CodedHeader coded;
            require(available >= int64_t(sizeof coded), "packed is too short for a header");
            std::memcpy(&coded, packed, sizeof coded);
            require(consistent(coded), "packed has a damaged header");
            return coded.bytes;
        }
        require(h.magic == kPackedMagic, "packed has a damaged header");
        return PackedLayout(h).bytes;
    });
}
