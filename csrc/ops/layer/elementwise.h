// The activations alone, elementwise, and their backward pass:
//
//   h = act(gate) * up      or, if gate.data == nullptr, h = act(up)
//
// All matrices are [rows, cols] and may have any strides.
#pragma once
#include "../arrays/array.h"
#include "../schedule/call.h"

namespace ffncore {

template <class T> struct Elementwise {
    int64_t rows, cols;
    Input gate, up, grad_h;
    Output h, grad_gate, grad_up; // gradients may be absent
    bool xielu;                   // the sums for the gradients of xielu's parameters are needed
    double xielu_sums[2];         // receives these sums
};

template <class T> void activation_forward(const Call<T> &call, Elementwise<T> e);
template <class T> void activation_backward(const Call<T> &call, Elementwise<T> &e);

} // namespace ffncore
