// Packed weights through the C ABI. A buffer's first bytes say what it holds; what it is unpacked
// into has to agree with them in every present matrix and bias.
#include "include/ffncore.h"

#include <optional>
#include <string>

#include "api_call.h"
#include "api_check.h"
#include "core/cpu.h"
#include "ops/packing.h"

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

template <class T> ffncore_status pack(const ffncore_weights &w, void *packed) {
    require(!w.packed, "weights are packed already");
    Biases<T> biases;
    const Weights<T> weights = weights_of<T>(w, biases);
    const PackedHeader header = header_of(kDtype<T>, w);
    const int threads = packing_threads(PackedLayout(sizeof(T), header).bytes);
    std::optional<Line> line;
    announce(line, "pack", header, threads);
    pack_weights(weights, header, kernels<T>(), threads, static_cast<char *>(packed));
    return FFNCORE_OK;
}

template <class T> ffncore_status unpack(const ffncore_weights &into, const void *packed) {
    check_size("weights", into.size, sizeof into);
    const PackedHeader h = packed_header("packed", packed, kDtype<T>);
    const ffncore_matrix *const m[3] = {&into.gate, &into.up, &into.down};
    const ffncore_vector *const b[3] = {&into.b_gate, &into.b_up, &into.b_down};
    constexpr const char *kMatrices[3] = {"gate", "up", "down"};
    constexpr const char *kBiases[3] = {"b_gate", "b_up", "b_down"};
    const int64_t there[3] = {h.b_gate, h.b_up, h.b_down};
    require(h.gated || !into.gate.data, "gate is given, but packed is of a plain block");
    for (int i = 0; i < 3; ++i) {
        const int64_t rows = i < 2 ? h.f : h.d;
        if (m[i]->data) check_matrix(kMatrices[i], *m[i], rows, i < 2 ? h.d : h.f);
        require(there[i] || !b[i]->data, "%s is given, but packed has none", kBiases[i]);
        check_vector(kBiases[i], *b[i], rows);
    }
    const int threads = packing_threads(PackedLayout(sizeof(T), h).bytes);
    std::optional<Line> line;
    announce(line, "unpack", h, threads);
    unpack_weights<T>(static_cast<const char *>(packed),
                      {matrix<T>(into.gate), matrix<T>(into.up), matrix<T>(into.down)},
                      {vector<T>(into.b_gate), vector<T>(into.b_up), vector<T>(into.b_down)},
                      kernels<T>(), threads);
    return FFNCORE_OK;
}

} // namespace

int64_t ffncore_packed_bytes(int32_t dtype, const ffncore_weights *weights) {
    return guarded_or<int64_t>(-1, [&] {
        require(weights, "weights is NULL");
        return with_dtype(dtype, [&](auto t) {
            weight_shapes<decltype(t)>(*weights);
            return PackedLayout(sizeof t, header_of(dtype, *weights)).bytes;
        });
    });
}

ffncore_status ffncore_pack(int32_t dtype, const ffncore_weights *weights, void *packed) {
    return guarded([&] {
        require(weights, "weights is NULL");
        require(packed, "packed is NULL");
        return with_dtype(dtype, [&](auto t) { return pack<decltype(t)>(*weights, packed); });
    });
}

ffncore_status ffncore_unpack(int32_t dtype, const ffncore_weights *into, const void *packed) {
    return guarded([&] {
        require(into, "into is NULL");
        require(packed, "packed is NULL");
        return with_dtype(dtype, [&](auto t) { return unpack<decltype(t)>(*into, packed); });
    });
}
