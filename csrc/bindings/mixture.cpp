// The functions of _core for mixtures of experts and routing; see module.cpp.
#include "values.h"

using binding::experts_of, binding::named, binding::Weights;

namespace {

// The arguments that both passes share.
template <class Args>
Args moe_args(const py::array &x, const Weights &weights, const ffncore_activation &activation,
              const py::array &ids, const py::array &factors, bool on_input, py::handle saved) {
    Args args{};
    args.size = sizeof args;
    args.x = matrix(x);
    args.experts = weights.experts();
    args.activation = activation;
    args.expert_ids = static_cast<const int32_t *>(data(ids));
    args.routing_weights = matrix(factors);
    args.weight_on_input = on_input;
    args.saved = data(saved);
    return args;
}

void moe_forward(const py::array &x, const py::array &y, const Weights &weights,
                 const ffncore_activation &activation, const py::array &ids,
                 const py::array &factors, bool on_input, py::object saved) {
    auto args =
        moe_args<ffncore_moe_forward_args>(x, weights, activation, ids, factors, on_input, saved);
    args.y = matrix(y);
    run([&] { return ffncore_moe_forward(&args); });
}

py::object moe_backward(const py::array &x, const py::array &grad_y, const Weights &weights,
                        const ffncore_activation &activation, const py::array &ids,
                        const py::array &factors, bool on_input, py::object saved, bool accumulate,
                        py::object grad_x, py::object grad_factors, const py::dict &grads,
                        bool xielu) {
    double alpha_p = 0, alpha_n = 0;
    auto args =
        moe_args<ffncore_moe_backward_args>(x, weights, activation, ids, factors, on_input, saved);
    args.grad_y = matrix(grad_y);
    args.accumulate = accumulate;
    args.grad_x = matrix(grad_x);
    args.grad_routing_weights = matrix(grad_factors);
    args.grad_experts = experts_of([&](int i) { return named(grads, i); }, args.experts.count);
    args.grad_alpha_p = xielu ? &alpha_p : nullptr;
    args.grad_alpha_n = xielu ? &alpha_n : nullptr;
    run([&] { return ffncore_moe_backward(&args); });
    return xielu ? py::object(py::make_tuple(alpha_p, alpha_n)) : py::none();
}

// The arguments that both passes share. The forward pass writes experts, unless they are given; the
// backward pass reads them.
template <class Args>
Args route_args(const py::array &logits, const py::array &experts, const ffncore_router &router,
                py::handle bias) {
    Args args{};
    args.size = sizeof args;
    args.router = router;
    args.router.e_score_correction_bias = vector(bias);
    args.logits = matrix(logits);
    args.experts = static_cast<int32_t *>(data(experts));
    args.expert_stride = experts.strides(0) / experts.itemsize();
    return args;
}

void route(const py::array &logits, const py::array &experts, bool given, const py::array &weights,
           py::object log_sum_exp, const ffncore_router &router, py::object bias) {
    auto args = route_args<ffncore_route_args>(logits, experts, router, bias);
    args.experts_given = given;
    args.weights = matrix(weights);
    args.log_sum_exp = vector(log_sum_exp);
    run([&] { return ffncore_route(&args); });
}

void route_backward(const py::array &grad_weights, const py::array &experts,
                    const py::array &logits, const py::array &grad_logits,
                    const ffncore_router &router) {
    auto args = route_args<ffncore_route_backward_args>(logits, experts, router, py::none());
    args.grad_weights = matrix(grad_weights);
    args.grad_logits = matrix(grad_logits);
    run([&] { return ffncore_route_backward(&args); });
}

} // namespace

void binding::add_mixture(py::module_ &m) {
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
