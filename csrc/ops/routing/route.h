// Routing: T tokens choose k of E experts each, by their logits; and the backward pass. Formulas:
// kernels/route.inl; meaning of the options: ffncore_router in include/ffncore.h.
//
// Logits, weights and gradients are of T, float or double, and matrices of any strides. Tokens are
// independent, so that neither threads nor other tokens change a bit.
#pragma once
#include "../arrays/array.h"

namespace ffncore {

template <class T> struct Route {
    const Kernels<T> &kernels;
    int threads;
    RouteParams params;
    int64_t tokens = 0;
    Input logits{};             // [T, E]
    int32_t *experts = nullptr; // [T, k]; read where they are given, and by the backward pass
    int64_t expert_stride = 0;
    bool given = false;
    const T *bias = nullptr; // [E]
    Output weights{};        // [T, k]; its gradient in the backward pass
    Output log_sum_exp{};    // [T], or absent
    Output grad_logits{};    // [T, E], of the backward pass
};

// false: out of memory.
template <class T> bool route(const Route<T> &r);
template <class T> bool route_backward(const Route<T> &r);

} // namespace ffncore
