// What a call would cost: its arithmetic, its memory traffic, and the plan and the workspace that
// it would have. Only shapes count; pointers are compared with NULL, never read.
#include "../include/ffncore.h"

#include <vector>

#include "../ops/layer/ffn.h"
#include "call.h"
#include "check.h"

using namespace ffncore;

namespace {

void fill_plan(ffncore_cost &c, const PlanRequest &request, int64_t workspace) {
    const Plan plan = make_plan(request);
    c.token_chunk = plan.token_chunk;
    c.ff_chunk = plan.ff_chunk;
    c.token_slice = plan.token_slice;
    c.extra_bytes = workspace;
    c.tokens_in_rows = request.rows;
    c.activations = double(request.tokens) * double(request.f);
}

// Adds products of T x d x f, which read a weight matrix each.
template <class T>
void add_products(ffncore_cost &c, const Weights<T> &w, int64_t tokens, int products) {
    const double elements = double(w.d) * double(w.f) * products;
    c.flops += 2 * elements * double(tokens);
    c.bytes += elements * double(element_bytes(w.type));
}
// Adds the product that writes the gradient of a weight matrix, unless that is absent.
template <class T>
void add_gradient(ffncore_cost &c, const Weights<T> &w, int64_t tokens, const Output &gradient) {
    if (!gradient.data) return;
    const double elements = double(w.d) * double(w.f);
    c.flops += 2 * elements * double(tokens);
    c.bytes += elements * double(gradient.bytes());
}

template <class T> void cost_of(const ffncore_forward_args &a, bool packed, ffncore_cost &cost) {
    Weights<T> w = weight_shapes<T>(a.weights, a.x.dtype);
    if (packed && !w.packed()) // any pointer will do, as only its presence counts
        w.packed_up = w.packed_down = w.up.data;
    const std::vector<ForwardGroup<T>> groups{forward_group<T>(a, w, false)};
    const Call<T> call = call_of<T>(a.activation, w, a.x);
    fill_plan(cost, forward_request(call, groups[0]), workspace_forward(call, groups));
    cost.flops = cost.bytes = 0;
    add_products(cost, w, a.x.rows, w.gated ? 3 : 2);
}

template <class T> void cost_of(const ffncore_backward_args &a, ffncore_cost &cost) {
    const Weights<T> w = weight_shapes<T>(a.weights, a.x.dtype);
    std::vector<BackwardGroup<T>> groups{backward_group<T>(a, w, false)};
    const BackwardGroup<T> &g = groups[0];
    const Call<T> call = call_of<T>(a.activation, w, a.x);
    fill_plan(cost, backward_request(call, g), workspace_backward(call, groups));
    const int sides = w.gated ? 2 : 1;
    const Needs<T> needs(g);
    const bool recompute = !g.saved && needs.preactivation;
    cost.flops = cost.bytes = 0;
    add_products(cost, w, g.tokens, (recompute ? sides : 0) + needs.dh + (needs.x ? sides : 0));
    for (const Output *gradient : {&g.grad_gate, &g.grad_up, &g.grad_down})
        add_gradient(cost, w, g.tokens, *gradient);
}

template <class Args, class Run>
ffncore_status guarded_cost(const Args *args, ffncore_cost *cost, const Run &run) {
    return guarded([&] {
        require(args, "args is NULL");
        require(cost, "cost is NULL");
        check_size("args", args->size, sizeof *args);
        check_size("cost", cost->size, sizeof *cost);
        with_dtype("x.dtype", args->x.dtype, run);
        return FFNCORE_OK;
    });
}

} // namespace

int64_t ffncore_saved_bytes(int32_t dtype, int64_t tokens, int64_t d_ff, int32_t gated) {
    return guarded_or<int64_t>(-1, [&] {
        check_dtype("dtype", dtype);
        check_sizes("the hidden state", tokens, d_ff);
        return saved_elements(tokens, d_ff, gated) * element_bytes(Element(dtype));
    });
}

ffncore_status ffncore_forward_cost(const ffncore_forward_args *args, int32_t packed,
                                    ffncore_cost *cost) {
    return guarded_cost(args, cost, [&](auto t) { cost_of<decltype(t)>(*args, packed, *cost); });
}

ffncore_status ffncore_backward_cost(const ffncore_backward_args *args, ffncore_cost *cost) {
    return guarded_cost(args, cost, [&](auto t) { cost_of<decltype(t)>(*args, *cost); });
}
