// RMSNorm and LayerNorm of the rows of x [rows, d], and their backward pass. kernels/norm.inl has
// the formulas.
//
// x, y and the gradients may have any strides and types. Rows are independent of each other, so
// neither threads nor other rows change a bit of y or grad_x. The order in which the gradients of
// gain and bias are summed depends on the number of rows alone.
#pragma once
#include "../arrays/array.h"

namespace ffncore {

template <class T> struct Norm {
    const Kernels<T> &kernels;
    int threads;
    bool flushes; // subnormals count as zero
    NormParams params;
    int64_t rows = 0, d = 0;
    Input x{}, grad_y{};
    const T *gain = nullptr; // [d], with its offset
    const T *bias = nullptr; // [d], or absent
    Output y{};
    Output grad_x{}, grad_gain{}, grad_bias{}; // may be absent; the latter two are [d, 1]
};

// Return false if memory ran out.
template <class T> bool norm_forward(const Norm<T> &norm);
template <class T> bool norm_backward(const Norm<T> &norm);

} // namespace ffncore
