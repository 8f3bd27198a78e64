// The first half of every entry point: test what was given, turn plain structs into the engine's,
// and turn failures into a status and a sentence. Python has checked its arguments already, in its
// own words; these checks are for embedders. Where nothing is wrong, nothing is formatted or
// allocated.
#pragma once
#include <cinttypes>
#include <cstdint>
#include <vector>

#include "include/ffncore.h"
#include "ops/elementwise.h"
#include "ops/ffn.h"

#if defined(__GNUC__)
#define FFNCORE_PRINTF __attribute__((format(printf, 2, 3)))
#else
#define FFNCORE_PRINTF
#endif

namespace ffncore {

// ---- failures: one sentence a thread, in a buffer of its own, so that telling cannot fail

const char *last_error() noexcept;
ffncore_status fail(ffncore_status status, const char *format, ...) noexcept FFNCORE_PRINTF;
struct Refused { // thrown once the sentence is kept
    ffncore_status status;
};
void require(bool holds, const char *format, ...) FFNCORE_PRINTF;
// What the exception that is being handled means; for use in a handler.
ffncore_status failure() noexcept;

// Nothing is thrown through the C ABI: body() runs in here.
template <class Body> ffncore_status guarded(const Body &body) noexcept {
    try {
        return body();
    } catch (...) {
        return failure();
    }
}
template <class Value, class Body> Value guarded_or(Value otherwise, const Body &body) noexcept {
    try {
        return body();
    } catch (...) {
        failure();
        return otherwise;
    }
}

// ---- checks; `name` begins the sentence

void check_dtype(int32_t dtype);
void check_size(const char *name, size_t given, size_t expected);
// Sizes whose products, padded to panels, can be counted.
void check_sizes(const char *name, int64_t rows, int64_t cols);
void check_matrix(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols);
void check_vector(const char *name, const ffncore_vector &v, int64_t length); // may be absent
ActivationParams activation_params(const ffncore_activation &a, bool gated);
PackedHeader packed_header(const char *name, const void *packed, int32_t dtype);

inline bool is_gated(const ffncore_weights &w) {
    return w.packed ? w.gate.rows > 0 : w.gate.data != nullptr;
}

// Chooses the element type once: run(T()) for float or double.
template <class Run> auto with_dtype(int32_t dtype, const Run &run) {
    check_dtype(dtype);
    return dtype == FFNCORE_FLOAT32 ? run(float()) : run(double());
}
template <class T> constexpr int32_t kDtype = sizeof(T) == 4 ? FFNCORE_FLOAT32 : FFNCORE_FLOAT64;

// ---- conversions

template <class T> Matrix<T> matrix(const ffncore_matrix &m) {
    return {static_cast<T *>(m.data), m.row_stride, m.col_stride};
}
template <class T> Matrix<T> vector(const ffncore_vector &v) {
    return {static_cast<T *>(v.data), v.stride, 0};
}

// Biases of any stride, as the kernels want them: contiguous.
template <class T> class Biases {
  public:
    const T *contiguous(const ffncore_vector &v) {
        const T *const data = static_cast<const T *>(v.data);
        if (!data || v.stride == 1) return data;
        copies_.emplace_back(v.length);
        for (int64_t i = 0; i < v.length; ++i) copies_.back()[i] = data[i * v.stride];
        return copies_.back().data();
    }

  private:
    std::vector<std::vector<T>> copies_;
};

// Of weights alone the shapes, and whether they are packed and where: nothing is read.
template <class T> Weights<T> weight_shapes(const ffncore_weights &w);
template <class T> Weights<T> weights_of(const ffncore_weights &w, Biases<T> &biases);
// run: x, y and grad_y must be there too.
template <class T>
ForwardGroup<T> forward_group(const ffncore_forward_args &a, const Weights<T> &w, bool run);
template <class T>
BackwardGroup<T> backward_group(const ffncore_backward_args &a, const Weights<T> &w, bool run);
template <class T> Elementwise<T> elementwise(const ffncore_activation_args &a, bool backward);

} // namespace ffncore
