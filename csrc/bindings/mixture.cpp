// The binding of routing and of mixtures of experts; see module.cpp.
#include "arrays.h"

namespace {

// The matrix (or vector) of expert 0 in an array with a leading dimension of experts; `stride`
// receives the distance to the next expert.
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

// t is an ExpertsTuple (6 entries, each with a leading dimension) or a PackedExpertsTuple (9
// entries).
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

// The arguments that both passes share; t is a MixtureTuple.
template <class Args> Args moe_args(const py::array &x, const py::tuple &t, py::handle saved) {
    Args args{};
    args.size = sizeof args;
    args.x = matrix(x);
    args.experts = experts(t[0], t[1].cast<int64_t>());
    args.activation = activation(t[2]);
    args.expert_ids = static_cast<const int32_t *>(data(t[3]));
    args.routing_weights = matrix(t[4]);
    args.weight_on_input = t[5].cast<bool>();
    args.saved = data(saved);
    return args;
}

void moe_forward(const py::array &x, const py::array &y, const py::tuple &mixture,
                 py::object saved) {
    auto args = moe_args<ffncore_moe_forward_args>(x, mixture, saved);
    args.y = matrix(y);
    run([&] { return ffncore_moe_forward(&args); });
}

py::object moe_backward(const py::array &x, const py::array &grad_y, const py::tuple &mixture,
                        py::object saved, bool accumulate, py::object grad_x,
                        py::object grad_routing_weights, const py::tuple &grads, bool xielu) {
    double alpha_p = 0, alpha_n = 0;
    auto args = moe_args<ffncore_moe_backward_args>(x, mixture, saved);
    args.grad_y = matrix(grad_y);
    args.accumulate = accumulate;
    args.grad_x = matrix(grad_x);
    args.grad_routing_weights = matrix(grad_routing_weights);
    args.grad_experts = experts(grads, args.experts.count);
    args.grad_alpha_p = xielu ? &alpha_p : nullptr;
    args.grad_alpha_n = xielu ? &alpha_n : nullptr;
    run([&] { return ffncore_moe_backward(&args); });
    return xielu ? py::object(py::make_tuple(alpha_p, alpha_n)) : py::none();
}

// t is a RouterTuple.
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

// The arguments that both passes share. The forward pass writes experts, unless they are given; the
// backward pass reads them.
template <class Args>
Args route_args(const py::array &logits, const py::array &experts, const py::tuple &options,
                py::handle bias) {
    Args args{};
    args.size = sizeof args;
    args.router = router(options, bias);
    args.logits = matrix(logits);
    args.experts = static_cast<int32_t *>(data(experts));
    args.expert_stride = experts.strides(0) / experts.itemsize();
    return args;
}

void route(const py::array &logits, const py::array &experts, bool given, const py::array &weights,
           py::object log_sum_exp, const py::tuple &options, py::object bias) {
    auto args = route_args<ffncore_route_args>(logits, experts, options, bias);
    args.experts_given = given;
    args.weights = matrix(weights);
    args.log_sum_exp = vector(log_sum_exp);
    run([&] { return ffncore_route(&args); });
}

void route_backward(const py::array &grad_weights, const py::array &experts,
                    const py::array &logits, const py::array &grad_logits,
                    const py::tuple &options) {
    auto args = route_args<ffncore_route_backward_args>(logits, experts, options, py::none());
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
