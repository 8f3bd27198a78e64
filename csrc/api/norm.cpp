// The C ABI of norms: validates the arguments and turns them into those of ops/norm.
#include "../include/ffncore.h"

#include <cmath>
#include <optional>
#include <vector>

#include "../core/cpu.h"
#include "../ops/norm/norm.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

namespace {

// gain or bias beside x: one dtype, or 16 bits beside float32.
void check_parameter(const char *name, const ffncore_vector &v, int64_t d, int32_t x_dtype) {
    check_vector(name, v, d);
    if (!v.data) return;
    check_dtype(name, v.dtype);
    const bool mixed = v.dtype != x_dtype && v.dtype != FFNCORE_FLOAT64 &&
                       (v.dtype == FFNCORE_FLOAT32 || x_dtype == FFNCORE_FLOAT32) &&
                       x_dtype != FFNCORE_FLOAT64;
    if (!mixed) check_same_dtype(name, v.dtype, x_dtype);
}

void check_norm(const ffncore_norm_args &a) {
    require(a.kind == FFNCORE_NORM_RMS || a.kind == FFNCORE_NORM_LAYER,
            "kind is %" PRId32 "; expected 0 or 1", a.kind);
    require(a.eps >= 0 && std::isfinite(a.eps), "eps is %g; expected a number from 0", a.eps);
    require(std::isfinite(a.gain_offset), "gain_offset is %g; expected a finite number",
            a.gain_offset);
    check_sizes("x", a.x.rows, a.x.cols);
    check_matrix("x", a.x, a.x.rows, a.x.cols);
    check_parameter("gain", a.gain, a.x.cols, a.x.dtype);
    check_parameter("bias", a.bias, a.x.cols, a.x.dtype);
}

void check_like_x(const char *name, const ffncore_matrix &m, const ffncore_matrix &x) {
    check_matrix(name, m, x.rows, x.cols);
    check_same_dtype(name, m.dtype, x.dtype);
}

void zero(const Output &v, int64_t n) {
    for (int64_t i = 0; v.data && i < n; ++i)
        for (int64_t b = 0; b < v.bytes(); ++b) v.at(i)[b] = 0;
}

template <class T> ffncore_status norm(const ffncore_norm_args &a, bool back) {
    check_norm(a);
    Norm<T> n{kernels<T>(a.x.dtype),
              norm_threads(a.x.rows * a.x.cols),
              a.x.dtype == FFNCORE_BFLOAT16,
              {a.kind == FFNCORE_NORM_LAYER, a.eps}};
    n.rows = a.x.rows;
    n.d = a.x.cols;
    n.x = input(a.x);
    if (back) {
        const int32_t of = a.gain.data ? a.gain.dtype : a.x.dtype;
        check_like_x("grad_y", a.grad_y, a.x);
        if (a.grad_x.data) check_like_x("grad_x", a.grad_x, a.x);
        n.grad_y = input(a.grad_y);
        n.grad_x = output(a.grad_x);
        n.grad_gain = gradient("grad_gain", a.grad_gain, n.d, of);
        n.grad_bias = gradient("grad_bias", a.grad_bias, n.d, of);
    } else {
        check_like_x("y", a.y, a.x);
        n.y = output(a.y);
    }
    if (n.rows == 0 || n.d == 0) {
        zero(n.grad_gain, n.d);
        zero(n.grad_bias, n.d);
        return FFNCORE_OK;
    }
    std::optional<Line> line;
    if (verbose())
        line.emplace(back ? "norm_backward" : "norm_forward", a.x.dtype, false, n.threads,
                     "rows=" + std::to_string(n.rows) + " d=" + std::to_string(n.d));
    Biases<T> vectors(n.kernels);
    const T *const given = vectors.contiguous(a.gain);
    std::vector<T> gain(size_t(n.d), T(1));
    for (int64_t i = 0; given && i < n.d; ++i) gain[size_t(i)] = T(a.gain_offset) + given[i];
    n.gain = gain.data();
    n.bias = vectors.contiguous(a.bias);
    return done(back ? norm_backward(n) : norm_forward(n));
}

} // namespace

ffncore_status ffncore_norm_forward(const ffncore_norm_args *args) {
    return with_args(args, &ffncore_norm_args::x, "x.dtype",
                     [&](auto t) { return norm<decltype(t)>(*args, false); });
}

ffncore_status ffncore_norm_backward(const ffncore_norm_args *args) {
    return with_args(args, &ffncore_norm_args::x, "x.dtype",
                     [&](auto t) { return norm<decltype(t)>(*args, true); });
}
