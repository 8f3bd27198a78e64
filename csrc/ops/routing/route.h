// Routing: each of T tokens chooses k of E experts by its logits; and the backward pass. The
// formulas are in kernels/route.inl, the meaning of the options in include/ffncore.h
// (ffncore_router).
//
// Logits, weights and gradients are matrices of float or double, of any strides. Tokens are
// independent of each other, so neither threads nor other tokens change a bit.
#pragma once
#include "../arrays/array.h"

namespace ffncore {

template <class T> struct Route {
    const Kernels<T> &kernels;
    int threads;
    RouteParams params;
    int64_t tokens = 0;
    Input logits{};             // [T, E]
    int32_t *experts = nullptr; // [T, k]; written, or read if given, and by the backward pass
    int64_t expert_stride = 0;
    bool given = false;
    const T *bias = nullptr; // [E]
    Output weights{};        // [T, k]; in the backward pass their gradient, which is read
    Output log_sum_exp{};    // [T], or absent
    Output grad_logits{};    // [T, E], written by the backward pass
};

// Return false if memory ran out.
template <class T> bool route(const Route<T> &r);
template <class T> bool route_backward(const Route<T> &r);

} // namespace ffncore
