// The C ABI of packed weights. The header of a buffer says what it holds. When it is unpacked,
// every matrix and bias that is asked for has to agree with the header.
#include "../include/ffncore.h"

#include <optional>
#include <string>

#include "../core/cpu.h"
#include "../ops/packing/coded.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

namespace {

PackedHeader header_of(int32_t dtype, const ffncore_weights &w) {
    return {kPackedMagic,
            dtype,
            w.up.cols,
            w.up.rows,
            is_gated(w),
            w.b_gate.data != nullptr,
            w.b_up.data != nullptr,
            w.b_down.data != nullptr};
}

void announce(std::optional<Line> &line, const char *op, const PackedHeader &h, int threads) {
    if (verbose())
        line.emplace(op, int32_t(h.dtype), h.gated, threads,
                     "d=" + std::to_string(h.d) + " f=" + std::to_string(h.f));
}

// Weights may be packed as their own dtype, or float32 as 16 bits.
void check_packs_as(int32_t dtype, const ffncore_weights &w) {
    check_dtype("dtype", dtype);
    const int32_t from = w.up.dtype;
    require(dtype == from || (from == FFNCORE_FLOAT32 && dtype != FFNCORE_FLOAT64),
            "dtype is %s; expected the weights' %s%s", dtype_name(dtype), dtype_name(from),
            from == FFNCORE_FLOAT32 ? ", bfloat16 or float16" : "");
}

template <class T> ffncore_status pack(int32_t dtype, const ffncore_weights &w, void *packed) {
    require(!w.packed, "weights are packed already");
    const Kernels<T> &k = kernels<T>(FFNCORE_FLOAT32); // for bfloat16, too: it keeps subnormals
    Biases<T> biases(k);
    const Weights<T> weights = weights_of<T>(w, w.up.dtype, biases);
    const PackedHeader header = header_of(dtype, w);
    const int threads = packing_threads(PackedLayout(header).bytes);
    std::optional<Line> line;
    announce(line, "pack", header, threads);
    pack_weights(weights, header, k, threads, static_cast<char *>(packed));
    return FFNCORE_OK;
}

template <class T>
ffncore_status unpack(const ffncore_weights &into, const PackedHeader &h, const void *packed) {
    const ffncore_matrix *const m[3] = {&into.gate, &into.up, &into.down};
    const ffncore_vector *const b[3] = {&into.b_gate, &into.b_up, &into.b_down};
    constexpr const char *kMatrices[3] = {"gate", "up", "down"};
    constexpr const char *kBiases[3] = {"b_gate", "b_up", "b_down"};
    const int64_t there[3] = {h.b_gate, h.b_up, h.b_down};
    const int32_t dtype = int32_t(h.dtype);
    require(h.gated || !into.gate.data, "gate is given, but packed holds a plain block");
    for (int i = 0; i < 3; ++i) {
        const int64_t rows = i < 2 ? h.f : h.d;
        if (m[i]->data) {
            check_matrix(kMatrices[i], *m[i], rows, i < 2 ? h.d : h.f);
            check_number(kMatrices[i], m[i]->dtype, dtype);
        }
        require(there[i] || !b[i]->data, "%s is given, but packed holds no such bias", kBiases[i]);
        check_vector(kBiases[i], *b[i], rows);
        if (b[i]->data) check_number(kBiases[i], b[i]->dtype, dtype);
    }
    const int threads = packing_threads(2 * h.d * h.f * element_bytes(Element(dtype)));
    std::optional<Line> line;
    announce(line, "unpack", h, threads);
    const char *const from = static_cast<const char *>(packed);
    const Output matrices[3] = {output(into.gate), output(into.up), output(into.down)};
    const Output biases[3] = {output(into.b_gate), output(into.b_up), output(into.b_down)};
    if constexpr (std::is_same_v<T, float>)
        if (h.magic == kCodedMagic) {
            unpack_coded(from, matrices, biases, kernels<float>(FFNCORE_FLOAT32), threads);
            return FFNCORE_OK;
        }
    unpack_weights<T>(from, matrices, biases, kernels<T>(FFNCORE_FLOAT32), threads);
    return FFNCORE_OK;
}

} // namespace

int64_t ffncore_packed_bytes(int32_t dtype, const ffncore_weights *weights) {
    return guarded_or<int64_t>(-1, [&] {
        require(weights, "weights is NULL");
        check_packs_as(dtype, *weights);
        return with_dtype("weights.up.dtype", weights->up.dtype, [&](auto t) {
            weight_shapes<decltype(t)>(*weights, weights->up.dtype);
            return PackedLayout(header_of(dtype, *weights)).bytes;
        });
    });
}

ffncore_status ffncore_pack(int32_t dtype, const ffncore_weights *weights, void *packed) {
    return guarded([&] {
        require(weights, "weights is NULL");
        require(packed, "packed is NULL");
        check_packs_as(dtype, *weights);
        return with_dtype("weights.up.dtype", weights->up.dtype,
                          [&](auto t) { return pack<decltype(t)>(dtype, *weights, packed); });
    });
}

ffncore_status ffncore_unpack(const ffncore_weights *into, const void *packed) {
    return guarded([&] {
        require(into, "into is NULL");
        require(packed, "packed is NULL");
        check_size("weights", into->size, sizeof *into);
        const auto *const coded = static_cast<const CodedHeader *>(packed);
        const bool is_coded = coded->packed.magic == kCodedMagic;
        if (is_coded) require(consistent(*coded), "packed was not written by ffncore");
        const PackedHeader h = is_coded ? coded->packed : packed_header("packed", packed);
        return with_dtype("packed's dtype", int32_t(h.dtype),
                          [&](auto t) { return unpack<decltype(t)>(*into, h, packed); });
    });
}
