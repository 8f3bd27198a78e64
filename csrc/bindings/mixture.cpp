// The Python door of routing and of mixtures of experts; see module.cpp.
#include "arrays.h"

namespace {

// Of element 0 along a leading dimension, and the distance to the next.
ffncore_matrix matrix_of(py::handle h, int64_t &stride) {
    if (h.is_none()) return {};
    const py::array a = array_of(h);
    const int64_t size = a.itemsize();
    stride = a.strides(0) / size;
    return {const_cast<void *>(a.data()), a.shape(1),          a.shape(2),
            a.strides(1) / size,          a.strides(2) / size, dtype_of(a)};
}
ffncore_vector vector_of(py::handle h, int64_t &stride) {
    if (h.is_none()) return {};
    const py::array a = array_of(h);
    stride = a.strides(0) / a.itemsize();
    return {const_cast<void *>(a.data()), a.shape(1), a.strides(1) / a.itemsize(), dtype_of(a)};
}

// ExpertsTuple (6 entries with a leading dimension each) or PackedExpertsTuple (9).
ffncore_experts experts(const py::tuple &t, int64_t count) {
    ffncore_experts e{};
    e.size = sizeof e;
    e.count = count;
    if (t.size() == 6) {
        ffncore_weights &w = e.first;
        w.size = sizeof w;
        w.gate = matrix_of(t[0], e.gate_stride);
        w.up = matrix_of(t[1], e.up_stride);
        w.down = matrix_of(t[2], e.down_stride);
        w.b_gate = vector_of(t[3], e.b_gate_stride);
        w.b_up = vector_of(t[4], e.b_up_stride);
        w.b_down = vector_of(t[5], e.b_down_stride);
        return e;
    }
    e.first = weights(t);
    e.packed_stride = t[8].cast<int64_t>();
    return e;
}

void moe_forward(const py::array &x, const py::array &y, const py::tuple &w, int64_t n_experts,
                 const py::tuple &act, const py::array &ids, const py::array &routing_weights,
                 bool on_input, py::object saved) {
    ffncore_moe_forward_args args{};
    args.size = sizeof args;
    args.x = matrix(x);
    args.y = matrix(y);
    args.experts = experts(w, n_experts);
    args.activation = activation(act);
    args.expert_ids = static_cast<const int32_t *>(ids.data());
    args.routing_weights = matrix(routing_weights);
    args.weight_on_input = on_input;
    args.saved = data(saved);
    run([&] { return ffncore_moe_forward(&args); });
}

py::object moe_backward(const py::array &x, const py::array &grad_y, const py::tuple &w,
                        int64_t n_experts, const py::tuple &act, const py::array &ids,
                        const py::array &routing_weights, bool on_input, py::object saved,
                        bool accumulate, py::object grad_x, py::object grad_routing_weights,
                        const py::tuple &grads, bool xielu) {
    double alpha_p = 0, alpha_n = 0;
    ffncore_moe_backward_args args{};
    args.size = sizeof args;
    args.x = matrix(x);
    args.grad_y = matrix(grad_y);
    args.experts = experts(w, n_experts);
    args.activation = activation(act);
    args.expert_ids = static_cast<const int32_t *>(ids.data());
    args.routing_weights = matrix(routing_weights);
    args.weight_on_input = on_input;
    args.saved = data(saved);
    args.accumulate = accumulate;
    args.grad_x = matrix(grad_x);
    args.grad_routing_weights = matrix(grad_routing_weights);
    args.grad_experts = experts(grads, n_experts);
    args.grad_alpha_p = xielu ? &alpha_p : nullptr;
    args.grad_alpha_n = xielu ? &alpha_n : nullptr;
    run([&] { return ffncore_moe_backward(&args); });
    return xielu ? py::object(py::make_tuple(alpha_p, alpha_n)) : py::none();
}

// RouterTuple and the bias.
ffncore_router router(const py::tuple &t, py::handle bias) {
    ffncore_router r{};
    r.size = sizeof r;
    r.score_fn = t[0].cast<int32_t>();
    r.select_on_logits = t[1].cast<bool>();
    r.norm_topk_prob = t[2].cast<bool>();
    r.norm_eps = t[3].cast<double>();
    r.norm_min = t[4].cast<double>();
    r.routed_scaling_factor = t[5].cast<double>();
    r.n_group = t[6].cast<int64_t>();
    r.topk_group = t[7].cast<int64_t>();
    r.group_score = t[8].cast<int32_t>();
    r.group_mask_value = t[9].cast<double>();
    r.e_score_correction_bias = vector(bias);
    return r;
}

void route(const py::array &logits, const py::array &experts, bool given, const py::array &weights,
           py::object log_sum_exp, const py::tuple &options, py::object bias) {
    ffncore_route_args args{};
    args.size = sizeof args;
    args.router = router(options, bias);
    args.logits = matrix(logits);
    args.experts = static_cast<int32_t *>(data(experts));
    args.expert_stride = experts.strides(0) / experts.itemsize();
    args.experts_given = given;
    args.weights = matrix(weights);
    args.log_sum_exp = vector(log_sum_exp);
    run([&] { return ffncore_route(&args); });
}

void route_backward(const py::array &grad_weights, const py::array &experts,
                    const py::array &logits, const py::array &grad_logits,
                    const py::tuple &options) {
    ffncore_route_backward_args args{};
    args.size = sizeof args;
    args.router = router(options, py::none());
    args.logits = matrix(logits);
    args.experts = static_cast<const int32_t *>(data(experts));
    args.expert_stride = experts.strides(0) / experts.itemsize();
    args.grad_weights = matrix(grad_weights);
    args.grad_logits = matrix(grad_logits);
    run([&] { return ffncore_route_backward(&args); });
}

} // namespace

void add_mixture(py::module_ &m) {
    m.def("moe_forward", &moe_forward);
    m.def("moe_backward", &moe_backward);
    m.def("moe_saved_bytes",
          [](const py::array &x, const py::array &ids, int64_t n_experts, int64_t f, bool gated) {
              return checked(
                  ffncore_moe_saved_bytes(dtype_of(x), static_cast<const int32_t *>(ids.data()),
                                          ids.shape(0), ids.shape(1), n_experts, f, gated));
          });
    m.def("route", &route);
    m.def("route_backward", &route_backward);
}
