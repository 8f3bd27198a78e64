// The dense FFN, forward and backward, as schedules over groups:
//
//   h = act(x W_gate^T + b_gate) * (x W_up^T + b_up), or act(x W_up^T + b_up)      [T, f]
//   y = h W_down^T + b_down                                                        [T, d]
//
// A group is the weights of one expert and the tokens that go through it. A dense layer is a
// mixture with one expert, so it has one group.
//
//   forward_rows.cpp     forward with tokens as rows: packed weights, or few tokens
//   forward_panels.cpp   forward with tokens as panels: raw weights, read in place
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

// Gradients with data == nullptr are not computed, and cost nothing.
template <class T> struct BackwardGroup {
    Weights<T> weights;
    int64_t tokens;
    Input x, grad_y;
    const char *saved; // or nullptr: recompute
    bool accumulate;
    Output grad_x, grad_gate, grad_up, grad_down;
    Output grad_b_gate, grad_b_up, grad_b_down; // vectors, whose stride is `row`
    bool xielu;           // the sums for the gradients of xielu's parameters are needed
    double xielu_sums[2]; // receives these sums
};

// What a backward pass has to compute for the gradients that are asked for.
template <class T> struct Needs {
    bool gate, up, down, x; // gradients
    bool b_gate, b_up, b_down, xielu;
    bool dh;            // dgate or dup
    bool h;             // for the gradient of down
    bool preactivation; // gate and up
    explicit Needs(const BackwardGroup<T> &g)
        : gate(g.grad_gate.data), up(g.grad_up.data), down(g.grad_down.data), x(g.grad_x.data),
          b_gate(g.grad_b_gate.data), b_up(g.grad_b_up.data), b_down(g.grad_b_down.data),
          xielu(g.xielu), dh(gate || up || x || b_gate || b_up || xielu), h(down),
          preactivation(dh || h) {}
};

// Whether these weights are bfloat16 and there is an instruction that takes pairs of bfloat16. The
// forward pass with packed weights uses it, and so do both passes where tokens are panels.
template <class T> bool takes_pairs(const Kernels<T> &kernels, const Weights<T> &w) {
    return w.type == kBfloat16 && kernels.pairs.pack;
}

// Whether the forward pass has tokens as rows. Raw 16-bit weights are widened in both cases. With
// tokens as rows they are also transposed, which costs as much as computing a quarter of a vector
// of tokens. So panels are better only where their last vector of tokens is nearly full. With many
// tokens the difference is small.
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

// Return false if memory ran out.
template <class T>
bool ffn_forward(const Call<T> &call, const std::vector<ForwardGroup<T>> &groups);
template <class T> bool ffn_backward(const Call<T> &call, std::vector<BackwardGroup<T>> &groups);

// Each adds the phases of one group.
template <class T> void add_forward_rows(const Build<T> &build, const ForwardGroup<T> &group);
template <class T> void add_forward_panels(const Build<T> &build, const ForwardGroup<T> &group);
template <class T>
void add_backward_rows(const Build<T> &build, BackwardGroup<T> &group, const Plan &plan);
template <class T>
void add_backward_panels(const Build<T> &build, BackwardGroup<T> &group, const Plan &plan);

// Adds to the current phase the product of x [tokens, d] with gate and up of `part`. It stores h =
// act(gate) * up, unless h is nullptr, and the preactivations, if `save` is given. pairs: x and h
// are rows of bfloat16 pairs (Rows::pairs_of), and ldh counts pairs.
template <class T>
void add_up_rows(const Build<T> &build, const Weights<T> &part, const TokenRows<T> &x,
                 int64_t tokens, T *h, int64_t ldh, const Preactivations &save, bool pairs = false);

template <class T> PlanRequest forward_request(const Call<T> &call, const ForwardGroup<T> &group);
template <class T> PlanRequest backward_request(const Call<T> &call, const BackwardGroup<T> &group);

} // namespace ffncore
