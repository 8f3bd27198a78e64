// The activations alone, elementwise: h = act(gate) * up, or act(up), and their backward pass.
// All matrices are [rows, cols] of any strides; gate.data == nullptr: plain.
#pragma once
#include "../arrays/array.h"
#include "../schedule/call.h"

namespace ffncore {

template <class T> struct Elementwise {
    int64_t rows, cols;
    Input gate, up, grad_h;
    Output h, grad_gate, grad_up; // gradients may be absent
    bool xielu;                   // the sums behind the gradients of xielu's parameters are needed
    double xielu_sums[2];         // receives them
};

template <class T> void activation_forward(const Call<T> &call, Elementwise<T> e);
template <class T> void activation_backward(const Call<T> &call, Elementwise<T> &e);

} // namespace ffncore
