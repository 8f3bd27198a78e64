// The first half of every entry point: validates the arguments, turns the plain structs of the C
// ABI into those of ops, and turns failures into a status and a sentence. Python has checked its
// arguments before, with error texts of its own; these checks are for programs that call the C ABI.
// Where nothing is wrong, nothing is formatted or allocated.
#pragma once
#include <cinttypes>
#include <cstdint>
#include <vector>

#include "../include/ffncore.h"
#include "../ops/layer/elementwise.h"
#include "../ops/layer/ffn.h"

#if defined(__GNUC__)
#define FFNCORE_PRINTF __attribute__((format(printf, 2, 3)))
#else
#define FFNCORE_PRINTF
#endif

namespace ffncore {

// ---- failures: each thread has a buffer for its sentence, so that reporting cannot fail

const char *last_error() noexcept;
ffncore_status fail(ffncore_status status, const char *format, ...) noexcept FFNCORE_PRINTF;
struct Refused { // thrown after the sentence has been stored
    ffncore_status status;
};
void require(bool holds, const char *format, ...) FFNCORE_PRINTF;
// The status of the exception that is being handled, whose sentence it stores. For handlers only.
ffncore_status failure() noexcept;

// Runs body(), and turns its exceptions into a status, so that none leaves the C ABI.
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

// ---- checks; `name` is the argument that the sentence begins with

const char *dtype_name(int32_t dtype);
void check_dtype(const char *name, int32_t dtype);
void check_same_dtype(const char *name, int32_t dtype, int32_t expected);
void check_size(const char *name, size_t given, size_t expected);
// Sizes must be so small that bytes, padded to panels, can be counted in 64 bits.
void check_sizes(const char *name, int64_t rows, int64_t cols);
void check_matrix(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols);
void check_vector(const char *name, const ffncore_vector &v, int64_t length); // may be absent
// The dtype must be `primal`, or float32 if `primal` has 16 bits.
void check_number(const char *name, int32_t dtype, int32_t primal);
ActivationParams activation_params(const ffncore_activation &a, bool gated);
PackedHeader packed_header(const char *name, const void *packed);

inline bool is_gated(const ffncore_weights &w) {
    return w.packed ? w.gate.rows > 0 : w.gate.data != nullptr;
}

// Chooses T, the type that is computed in, and calls run(T()): float or double.
template <class Run> auto with_dtype(const char *name, int32_t dtype, const Run &run) {
    check_dtype(name, dtype);
    return dtype == FFNCORE_FLOAT64 ? run(double()) : run(float());
}

// Checks that args is there, and calls run(T()). T depends on the dtype of the matrix `main`.
template <class Args, class Run>
ffncore_status with_args(const Args *args, const ffncore_matrix Args::*main, const char *name,
                         const Run &run) {
    return guarded([&] {
        require(args, "args is NULL");
        check_size("args", args->size, sizeof *args);
        return with_dtype(name, (args->*main).dtype, run);
    });
}

// ---- conversions

inline Input input(const ffncore_matrix &m) {
    return {static_cast<const char *>(m.data), m.row_stride, m.col_stride, Element(m.dtype)};
}
inline Output output(const ffncore_matrix &m) {
    return {static_cast<char *>(m.data), m.row_stride, m.col_stride, Element(m.dtype)};
}
inline Output output(const ffncore_vector &v) {
    return {static_cast<char *>(v.data), v.stride, 0, Element(v.dtype)};
}

// Biases of any stride and type, as the kernels need them: contiguous, of T.
template <class T> class Biases {
  public:
    explicit Biases(const Kernels<T> &kernels) : kernels_(kernels) {}
    const T *contiguous(const ffncore_vector &v) {
        const T *const data = static_cast<const T *>(v.data);
        if (!data || (v.stride == 1 && v.dtype == kOwn<T>)) return data;
        const int64_t n = v.length;
        copies_.emplace_back(n);
        T *const copy = copies_.back().data();
        kernels_.of[v.dtype].pack(data, v.stride, 0, n, 1, copy, n, n);
        return copy;
    }

  private:
    const Kernels<T> &kernels_;
    std::vector<std::vector<T>> copies_;
};

// Checks the shapes of weights, and whether they are packed; their data is not read. dtype is that
// of x, which the weights have to fit. weights_of also reads packed headers and biases.
template <class T> Weights<T> weight_shapes(const ffncore_weights &w, int32_t dtype);
template <class T>
Weights<T> weights_of(const ffncore_weights &w, int32_t dtype, Biases<T> &biases);
// run: x, y and grad_y must be present, too.
template <class T>
ForwardGroup<T> forward_group(const ffncore_forward_args &a, const Weights<T> &w, bool run);
template <class T>
BackwardGroup<T> backward_group(const ffncore_backward_args &a, const Weights<T> &w, bool run);
// A gradient of a matrix or vector with the dtype `primal`; it may be absent.
Output gradient(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols,
                int32_t primal);
Output gradient(const char *name, const ffncore_vector &v, int64_t length, int32_t primal);
template <class T> Elementwise<T> elementwise(const ffncore_activation_args &a, bool backward);

} // namespace ffncore
