// The entry points of the dense FFN: chooses between tokens as rows and as panels for each group,
// builds and runs the schedule, and makes the request for a plan.
#include "ffn.h"

#include <utility>

namespace ffncore {

namespace {

template <class T> auto forward_phases(const std::vector<ForwardGroup<T>> &groups) {
    return [&groups](const Build<T> &build) {
        for (const ForwardGroup<T> &group : groups) {
            if (forward_in_rows(build.call.kernels, group.weights, group.tokens))
                add_forward_rows(build, group);
            else
                add_forward_panels(build, group);
        }
    };
}

template <class T> void add_backward(const Build<T> &build, BackwardGroup<T> &g);

// Adds dx first and alone, then the rest in the same workspace (Plan::grad_x_apart).
template <class T> void add_backward_apart(const Build<T> &build, BackwardGroup<T> &g) {
    BackwardGroup<T> first = g;
    first.grad_gate = first.grad_up = first.grad_down = {};
    first.grad_b_gate = first.grad_b_up = first.grad_b_down = {};
    first.xielu = false;
    Arena again = build.arena;
    add_backward(build, first);
    const Output grad_x = std::exchange(g.grad_x, {});
    add_backward(Build<T>{build.schedule, again, build.scratch, build.call}, g);
    g.grad_x = grad_x;
    if (again.used() > build.arena.used()) build.arena = again;
}

template <class T> void add_backward(const Build<T> &build, BackwardGroup<T> &g) {
    const PlanRequest request = backward_request(build.call, g);
    const Plan plan = make_plan(request);
    if (plan.grad_x_apart) return add_backward_apart(build, g);
    request.rows ? add_backward_rows(build, g, plan) : add_backward_panels(build, g, plan);
}

template <class T> auto backward_phases(std::vector<BackwardGroup<T>> &groups) {
    return [&groups](const Build<T> &build) {
        for (BackwardGroup<T> &group : groups) add_backward(build, group);
    };
}

} // namespace

template <class T>
bool ffn_forward(const Call<T> &call, const std::vector<ForwardGroup<T>> &groups) {
    return run_schedule(call, forward_phases(groups));
}

template <class T>
int64_t workspace_forward(const Call<T> &call, const std::vector<ForwardGroup<T>> &groups) {
    return count_workspace(call, forward_phases(groups));
}

template <class T> bool ffn_backward(const Call<T> &call, std::vector<BackwardGroup<T>> &groups) {
    return run_schedule(call, backward_phases(groups));
}

template <class T>
int64_t workspace_backward(const Call<T> &call, std::vector<BackwardGroup<T>> &groups) {
    return count_workspace(call, backward_phases(groups));
}

// The part of a plan's request that both passes share.
template <class T>
static PlanRequest request(const Call<T> &call, const Weights<T> &w, int64_t tokens, bool rows) {
    PlanRequest r{};
    r.tokens = tokens;
    r.d = w.d;
    r.f = w.f;
    r.gated = w.gated;
    r.element = sizeof(T);
    r.panel = call.kernels.vectors * call.kernels.width;
    r.rows = rows;
    return r;
}

template <class T> PlanRequest forward_request(const Call<T> &call, const ForwardGroup<T> &g) {
    return request(call, g.weights, g.tokens, forward_in_rows(call.kernels, g.weights, g.tokens));
}

template <class T> PlanRequest backward_request(const Call<T> &call, const BackwardGroup<T> &g) {
    PlanRequest r = request(
        call, g.weights, g.tokens,
        backward_in_rows(g.tokens, g.weights.packed(), takes_pairs(call.kernels, g.weights)));
    r.backward = true;
    r.recompute = !g.saved;
    r.converts = !g.x.template holds<T>();
    const Needs<T> needs(g);
    r.weight_grads =
        needs.gate || needs.up || needs.down || needs.b_gate || needs.b_up || needs.b_down;
    for (const Output *gradient :
         {&g.grad_gate, &g.grad_up, &g.grad_down, &g.grad_b_gate, &g.grad_b_up})
        r.narrow = r.narrow || (gradient->data && !gradient->template holds<T>());
    r.grad_x = needs.x;
    r.xielu = needs.xielu;
    return r;
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template bool ffn_forward<T>(const Call<T> &, const std::vector<ForwardGroup<T>> &);           \
    template bool ffn_backward<T>(const Call<T> &, std::vector<BackwardGroup<T>> &);               \
    template int64_t workspace_forward<T>(const Call<T> &, const std::vector<ForwardGroup<T>> &);  \
    template int64_t workspace_backward<T>(const Call<T> &, std::vector<BackwardGroup<T>> &);      \
    template PlanRequest forward_request<T>(const Call<T> &, const ForwardGroup<T> &);             \
    template PlanRequest backward_request<T>(const Call<T> &, const BackwardGroup<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
