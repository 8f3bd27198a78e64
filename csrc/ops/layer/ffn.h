// The dense FFN, forward and backward, as schedules over groups (a dense layer is a mixture with
// one expert). A group is the weights of one expert and the tokens that go through it.
//
//   forward_rows.cpp     forward with tokens as rows: packed weights, or few tokens
//   forward_panels.cpp   forward with tokens as panels: raw weights read in place
//   backward_rows.cpp    backward with tokens as rows: packed weights, or few tokens
//   backward_panels.cpp  backward with tokens as panels
#pragma once
#include <vector>

#include "../arrays/preactivations.h"
#include "../operands/token_rows.h"
#include "../packing/packing.h"
#include "../schedule/call.h"
#include "../schedule/plan.h"

namespace ffncore {

template <class T> struct ForwardGroup {
    Weights<T> weights;
    int64_t tokens;
    Input x;
    Output y;
    char *saved; // or nullptr
};

// Gradients with data == nullptr are not needed, and cost nothing.
template <class T> struct BackwardGroup {
    Weights<T> weights;
    int64_t tokens;
    Input x, grad_y;
    const char *saved; // or nullptr: recompute
    bool accumulate;
    Output grad_x, grad_gate, grad_up, grad_down;
    Output grad_b_gate, grad_b_up, grad_b_down; // vectors: stride in row
    bool xielu;           // the sums behind the gradients of xielu's parameters are needed
    double xielu_sums[2]; // receives them
};

// What a backward pass has to compute, from what is asked for.
template <class T> struct Needs {
    bool gate, up, down, x; // gradients
    bool b_gate, b_up, b_down, xielu;
    bool dh;            // dgate or dup
    bool h;             // for dW_down
    bool preactivation; // gate and up
    explicit Needs(const BackwardGroup<T> &g)
        : gate(g.grad_gate.data), up(g.grad_up.data), down(g.grad_down.data), x(g.grad_x.data),
          b_gate(g.grad_b_gate.data), b_up(g.grad_b_up.data), b_down(g.grad_b_down.data),
          xielu(g.xielu), dh(gate || up || x || b_gate || b_up || xielu), h(down),
          preactivation(dh || h) {}
};

// Whether there is an instruction that takes pairs of bfloat16. The forward pass through packed
// weights goes by it, and so does all that has tokens as panels.
template <class T> bool takes_pairs(const Kernels<T> &kernels, const Weights<T> &w) {
    return w.type == kBfloat16 && kernels.pairs.pack;
}

// Whether the forward pass has tokens as rows. Raw weights of 16 bits are widened either way: to
// turn them as well costs as much as a quarter of a vector of tokens, so that panels are better
// only where their last vector of tokens is nearly full. With many tokens the difference is small.
template <class T>
bool forward_in_rows(const Kernels<T> &kernels, const Weights<T> &w, int64_t tokens) {
    constexpr int64_t kMany = 256;
    const int64_t idle = round_up(tokens, kernels.width) - tokens;
    const bool better = tokens <= kernels.max_rows[2] || 4 * idle > kernels.width;
    const bool widened = w.type != kOwn<T> && !takes_pairs(kernels, w);
    return tokens_in_rows(tokens, w.packed(), widened && better && tokens <= kMany);
}

template <class T> int64_t workspace_forward(const Call<T> &, const std::vector<ForwardGroup<T>> &);
template <class T> int64_t workspace_backward(const Call<T> &, std::vector<BackwardGroup<T>> &);

// false: out of memory.
template <class T>
bool ffn_forward(const Call<T> &call, const std::vector<ForwardGroup<T>> &groups);
template <class T> bool ffn_backward(const Call<T> &call, std::vector<BackwardGroup<T>> &groups);

// Each adds one group's phases.
template <class T> void add_forward_rows(const Build<T> &build, const ForwardGroup<T> &group);
template <class T> void add_forward_panels(const Build<T> &build, const ForwardGroup<T> &group);
template <class T>
void add_backward_rows(const Build<T> &build, BackwardGroup<T> &group, const Plan &plan);
template <class T>
void add_backward_panels(const Build<T> &build, BackwardGroup<T> &group, const Plan &plan);

// Adds to the current phase what turns x [tokens, d] into gate and up of `part`: their activation
// goes into h, they themselves into `save`, where asked for. pairs: x and h are rows of bfloat16
// (Rows::pairs), and ldh counts pairs.
template <class T>
void add_up_rows(const Build<T> &build, const Weights<T> &part, const TokenRows<T> &x,
                 int64_t tokens, T *h, int64_t ldh, const Preactivations &save, bool pairs = false);

template <class T> PlanRequest forward_request(const Call<T> &call, const ForwardGroup<T> &group);
template <class T> PlanRequest backward_request(const Call<T> &call, const BackwardGroup<T> &group);

} // namespace ffncore
