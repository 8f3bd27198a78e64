// A mixture of experts: each token's row goes through the experts that its router chose.
//
//   y[t] = sum over slots s of w[t, s] FFN_e(x[t]),  e = ids[t, s]      weight on the output
//   y[t] = sum over slots s of FFN_e(w[t, s] x[t])                      weight on the input
//
// x, y [T, d]; ids, w [T, k]. The rows of an expert are a group, computed by the same products and
// epilogues as a dense layer, with the same bits. The k outputs of a token are added in T in slot
// order, gradients of x in the order of experts, then slots. Both sums begin with their first term,
// so that a mixture of one expert with weight 1 has the bits of the dense layer.
//
//   forward.cpp   one chunk of tokens at a time: up of all experts, then down and the slots' sum
//   backward.cpp  some experts at a time, in rising order, so each gradient is written once
#pragma once
#include <memory>

#include "../layer/ffn.h"
#include "dispatch.h"

namespace ffncore {

// Tokens of a chunk of the forward pass; h of all their rows is held at once. 4096 tokens read the
// weights twice.
constexpr int64_t kMoeChunk = 2048;

// What both passes take. ids and factors are [tokens][top_k]; the factors are the routing weights.
template <class T> struct Mixture {
    std::vector<Weights<T>> experts; // those that no token chose may be empty
    int64_t tokens, top_k;
    const int32_t *ids;
    const T *factors;
    bool on_input; // the factors multiply the input, not the output
    Input x;

    int64_t d, f; // of every expert
    bool gated;
    // The saved preactivations of the experts lie one behind the other (preactivations.h). Returns
    // the element with which each begins; and at the end the number of all elements.
    std::vector<int64_t> saved_offsets() const;
    std::vector<int64_t> counts() const; // rows of each expert
};

template <class T> struct MoeForward {
    Mixture<T> mixture;
    Output y;
    char *saved; // or nullptr
};

// Gradients with data == nullptr are not computed, and cost nothing. Those of weights are given by
// the gradient of expert 0 and the distance from one expert to the next, in elements.
struct ExpertGradient {
    Output first;
    int64_t stride = 0;
    Output of(int64_t expert) const {
        Output out = first;
        if (out.data) out.data += expert * stride * out.bytes();
        return out;
    }
};
template <class T> struct MoeBackward {
    Mixture<T> mixture;
    Input grad_y;
    const char *saved; // or nullptr: recompute
    bool accumulate;
    Output grad_x, grad_factors; // grad_factors [tokens, top_k], of T
    ExpertGradient grad_gate, grad_up, grad_down, grad_b_gate, grad_b_up, grad_b_down;
    bool xielu;           // see BackwardGroup
    double xielu_sums[2]; // receives these sums
};

// Return false if memory ran out.
template <class T> bool moe_forward(const Call<T> &call, const MoeForward<T> &moe);
template <class T> bool moe_backward(const Call<T> &call, MoeBackward<T> &moe);

} // namespace ffncore
