// The first half of every entry point: validates the arguments, turns failures into a status and a
// sentence, and turns the plain structs of the C ABI into those of the kernels. ffncore_cuda.h
// lists the differences to ffncore.h. Only pointers to host memory are dereferenced.
#pragma once
#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "../include/ffncore_cuda.h"
#include "layer.cuh"

namespace ffncore::cuda {

// ---- failures: each thread has a buffer for its sentence

constexpr int kSentence = 512;
inline char *sentence() {
    static thread_local char text[kSentence];
    return text;
}
struct Refused { // thrown after the sentence has been stored
    ffncore_status status;
};
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void refuse(ffncore_status status,
                                                                      const char *format, ...) {
    va_list values;
    va_start(values, format);
    std::vsnprintf(sentence(), kSentence, format, values);
    va_end(values);
    throw Refused{status};
}
#define FFNCORE_REQUIRE(holds, ...)                                                                \
    do {                                                                                           \
        if (!(holds)) refuse(FFNCORE_INVALID_ARGUMENT, __VA_ARGS__);                               \
    } while (0)

inline void require_success(cudaError_t error) {
    if (error != cudaSuccess)
        refuse(FFNCORE_UNSUPPORTED, "the device refused: %s", cudaGetErrorString(error));
}

// Run body(), and turn its exceptions into a status, so that none leaves the C ABI.
template <class Value, class Body> Value guarded_or(Value otherwise, const Body &body) noexcept {
    try {
        return body();
    } catch (const Refused &) {
        return otherwise;
    }
}
template <class Body> ffncore_status guarded(const Body &body) noexcept {
    try {
        body();
        return FFNCORE_OK;
    } catch (const Refused &refused) {
        return refused.status;
    }
}

// ---- options

inline bool environment_has(const char *name) {
    const char *const value = std::getenv(name);
    return value && value[0] == '1' && !value[1];
}
inline bool debugging() { return environment_has("FFNCORE_CUDA_DEBUG"); }
inline bool one_path(const ffncore_cuda_call &call) {
    return call.batch_invariant || environment_has("FFNCORE_CUDA_BATCH_INVARIANT");
}

// ---- checks; `name` is the argument that the sentence begins with

constexpr int64_t kMaxLength = int64_t(1) << 40;   // of one dimension
constexpr int64_t kMaxElements = int64_t(1) << 57; // so that bytes fit in 63 bits
constexpr int64_t kMaxExperts = 65535;             // a grid's second dimension
constexpr int64_t kMaxRows = INT32_MAX;            // rows are counted in 32 bits

inline const char *dtype_name(int32_t dtype) {
    constexpr const char *kNames[] = {"float32", "float64", "bfloat16", "float16"};
    return dtype >= 0 && dtype < 4 ? kNames[dtype] : "unknown";
}
inline bool is_narrow(int32_t dtype) {
    return dtype == FFNCORE_BFLOAT16 || dtype == FFNCORE_FLOAT16;
}
inline void check_dtype(const char *name, int32_t dtype) {
    FFNCORE_REQUIRE(dtype == FFNCORE_FLOAT32 || is_narrow(dtype),
                    "%s has dtype %s; expected float32, bfloat16 or float16 on a GPU", name,
                    dtype_name(dtype));
}
inline void check_same_dtype(const char *name, int32_t dtype, int32_t expected,
                             bool or_float32 = false) {
    const bool wide = or_float32 && is_narrow(expected);
    FFNCORE_REQUIRE(dtype == expected || (wide && dtype == FFNCORE_FLOAT32),
                    "%s has dtype %s; expected %s%s", name, dtype_name(dtype), dtype_name(expected),
                    wide ? " or float32" : "");
}
inline void check_struct(const char *name, size_t given, size_t expected) {
    FFNCORE_REQUIRE(given == expected, "%s.size is %zu; expected sizeof, %zu", name, given,
                    expected);
}
inline void check_sizes(const char *name, int64_t rows, int64_t cols) {
    int64_t elements = 0;
    const bool fits = rows >= 0 && cols >= 0 && rows <= kMaxLength && cols <= kMaxLength &&
                      !__builtin_mul_overflow(rows, cols, &elements) && elements <= kMaxElements;
    FFNCORE_REQUIRE(fits,
                    "%s has shape (%" PRId64 ", %" PRId64
                    "); expected from 0 to 2^40 in each dimension, and at most 2^57 elements",
                    name, rows, cols);
}
inline void check_matrix(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols) {
    FFNCORE_REQUIRE(m.data || rows == 0 || cols == 0,
                    "%s is absent; expected shape (%" PRId64 ", %" PRId64 ")", name, rows, cols);
    FFNCORE_REQUIRE(m.rows == rows && m.cols == cols,
                    "%s has shape (%" PRId64 ", %" PRId64 "); expected (%" PRId64 ", %" PRId64 ")",
                    name, m.rows, m.cols, rows, cols);
}
inline void check_vector(const char *name, const ffncore_vector &v, int64_t length) {
    FFNCORE_REQUIRE(!v.data || v.length == length, "%s has length %" PRId64 "; expected %" PRId64,
                    name, v.length, length);
}

// ---- conversions

inline Type type_of(int32_t dtype) {
    if (dtype == FFNCORE_BFLOAT16) return kBfloat16;
    return dtype == FFNCORE_FLOAT16 ? kFloat16 : kFloat32;
}
template <class T> Matrix<T> matrix_of(const ffncore_matrix &m, int64_t group = 0) {
    return {(T *)m.data, m.row_stride, m.col_stride, group};
}
// A gradient of a matrix or vector with the dtype `primal`; it may be absent.
inline AnyMatrix gradient(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols,
                          int64_t group, int32_t primal) {
    if (!m.data) return {};
    check_matrix(name, m, rows, cols);
    check_same_dtype(name, m.dtype, primal, true);
    return {m.data, m.row_stride, m.col_stride, group, type_of(m.dtype)};
}
inline AnyMatrix gradient(const char *name, const ffncore_vector &v, int64_t length, int64_t group,
                          int32_t primal) {
    if (!v.data) return {};
    check_vector(name, v, length);
    check_same_dtype(name, v.dtype, primal, true);
    return {v.data, 0, v.stride, group, type_of(v.dtype)};
}
inline Bias bias(const char *name, const ffncore_vector &v, int64_t length, int64_t group,
                 int32_t weights) {
    if (!v.data) return {};
    check_vector(name, v, length);
    check_same_dtype(name, v.dtype, weights, true);
    return {v.data, v.stride, group, type_of(v.dtype)};
}

inline double softplus(double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))); }
inline double logistic(double x) {
    return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

inline ActivationParams activation_params(const ffncore_activation &a, bool gated) {
    check_struct("activation", a.size, sizeof a);
    FFNCORE_REQUIRE(a.kind >= FFNCORE_IDENTITY && a.kind <= FFNCORE_XIELU,
                    "activation.kind is %" PRId32 "; expected 0 to 12", a.kind);
    FFNCORE_REQUIRE(a.clamp >= FFNCORE_CLAMP_NONE && a.clamp <= FFNCORE_CLAMP_POST,
                    "activation.clamp is %" PRId32 "; expected 0, 1 or 2", a.clamp);
    FFNCORE_REQUIRE(gated ||
                        (a.clamp == FFNCORE_CLAMP_NONE && a.up_offset == 0 && a.up_softcap == 0),
                    "activation: limit, up_offset and up_softcap belong to gated blocks");
    FFNCORE_REQUIRE(a.clamp == FFNCORE_CLAMP_NONE || a.limit > 0,
                    "activation.limit is %g; expected a number above 0", a.limit);
    FFNCORE_REQUIRE(a.gate_softcap >= 0 && a.up_softcap >= 0,
                    "activation has softcaps of %g and %g; expected no negative number",
                    a.gate_softcap, a.up_softcap);
    ActivationParams p{};
    p.kind = a.kind;
    p.clamp = a.clamp;
    p.limit = (float)a.limit;
    p.alpha = (float)a.alpha;
    p.up_offset = (float)a.up_offset;
    p.gate_softcap = (float)a.gate_softcap;
    p.up_softcap = (float)a.up_softcap;
    p.gate_multiplier = (float)a.gate_multiplier;
    p.negative_slope = (float)a.negative_slope;
    p.xielu_p = (float)softplus(a.alpha_p);
    p.xielu_n = (float)(a.beta + softplus(a.alpha_n));
    p.beta = (float)a.beta;
    p.eps = (float)a.eps;
    return p;
}

// ---- a call

// Makes the device of the call the current one, as long as this object lives.
class OnDevice {
  public:
    explicit OnDevice(int32_t device) {
        require_success(cudaGetDevice(&before_));
        changed_ = device >= 0 && device != before_;
        if (changed_) require_success(cudaSetDevice(device));
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice &) = delete;
    OnDevice &operator=(const OnDevice &) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

inline void check_call(const ffncore_cuda_call *call) {
    FFNCORE_REQUIRE(call, "call is NULL");
    check_struct("call", call->size, sizeof *call);
}

// Calls body(stream), which queues work; then checks that all of it was accepted, and in debug mode
// that it ran.
template <class Body> void queue(const ffncore_cuda_call &call, const Body &body) {
    const OnDevice here(call.device);
    const cudaStream_t stream = (cudaStream_t)call.stream;
    body(stream);
    require_success(cudaGetLastError());
    if (debugging()) require_success(cudaStreamSynchronize(stream));
}

// In debug mode, checks that all ids are from -1 to experts - 1. Waits for the stream.
inline void check_ids(const char *name, const int32_t *ids, int64_t stride, int64_t tokens,
                      int64_t k, int64_t experts, cudaStream_t stream) {
    if (!debugging()) return;
    constexpr int64_t kCopied = 1024; // ids at a time
    int32_t copy[kCopied];
    // If there are no gaps between the tokens, all are one run.
    const int64_t runs = stride == k ? 1 : tokens, length = stride == k ? tokens * k : k;
    for (int64_t run = 0; run < runs; ++run)
        for (int64_t first = 0; first < length; first += kCopied) {
            const int64_t count = smaller(kCopied, length - first);
            require_success(cudaMemcpyAsync(copy, ids + run * stride + first, count * sizeof *copy,
                                            cudaMemcpyDeviceToHost, stream));
            require_success(cudaStreamSynchronize(stream));
            for (int64_t i = 0; i < count; ++i) {
                const int64_t slot = run * k + first + i;
                FFNCORE_REQUIRE(copy[i] >= -1 && copy[i] < experts,
                                "%s has %" PRId32 " at (%" PRId64 ", %" PRId64
                                "); expected -1 to %" PRId64,
                                name, copy[i], slot / k, slot % k, experts - 1);
            }
        }
}

} // namespace ffncore::cuda
