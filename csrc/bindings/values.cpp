// The Python types of values.h. Their arguments are given by name, because six arrays or ten
// numbers in a row are easily mixed up.
#include "values.h"

#include <pybind11/stl.h>

#include <algorithm>

namespace binding {
namespace {

// Python's names of the members of a struct, each with its type.
template <class Struct, class Member> struct Field {
    const char *name;
    Member Struct::*member;
};
using Activation = ffncore_activation;
using Router = ffncore_router;

constexpr Field<Activation, int32_t> kActivationChoices[] = {
    {"kind", &Activation::kind},
    {"clamp", &Activation::clamp},
};
constexpr Field<Activation, double> kActivationOptions[] = {
    {"limit", &Activation::limit},
    {"alpha", &Activation::alpha},
    {"up_offset", &Activation::up_offset},
    {"gate_softcap", &Activation::gate_softcap},
    {"up_softcap", &Activation::up_softcap},
    {"gate_multiplier", &Activation::gate_multiplier},
    {"negative_slope", &Activation::negative_slope},
    {"alpha_p", &Activation::alpha_p},
    {"alpha_n", &Activation::alpha_n},
    {"beta", &Activation::beta},
    {"eps", &Activation::eps},
};
constexpr Field<Router, int32_t> kRouterChoices[] = {
    {"score_fn", &Router::score_fn},
    {"select_on_logits", &Router::select_on_logits},
    {"norm_topk_prob", &Router::norm_topk_prob},
    {"group_score", &Router::group_score},
};
constexpr Field<Router, int64_t> kRouterGroups[] = {
    {"n_group", &Router::n_group},
    {"topk_group", &Router::topk_group},
};
constexpr Field<Router, double> kRouterNumbers[] = {
    {"group_mask_value", &Router::group_mask_value},
    {"norm_eps", &Router::norm_eps},
    {"norm_min", &Router::norm_min},
    {"routed_scaling_factor", &Router::routed_scaling_factor},
};

// A type whose attributes are the members in these lists; it is made from keywords of their names.
template <class Struct, class... Lists>
void add_struct(py::module_ &m, const char *name, const Lists &...lists) {
    py::class_<Struct> type(m, name);
    type.def(py::init([&lists...](const py::kwargs &given) {
        Struct made{};
        made.size = sizeof made;
        const auto fill = [&]<class Member>(const Field<Struct, Member> &field) {
            made.*field.member = given[field.name].template cast<Member>();
        };
        (std::ranges::for_each(lists, fill), ...);
        return made;
    }));
    type.def("__repr__", [name, &lists...](const Struct &made) {
        py::list fields;
        const auto add = [&](const auto &field) {
            fields.append(py::str("{}={}").format(field.name, made.*field.member));
        };
        (std::ranges::for_each(lists, add), ...);
        return py::str("{}({})").format(name, py::str(", ").attr("join")(fields));
    });
    const auto show = [&](const auto &field) { type.def_readonly(field.name, field.member); };
    (std::ranges::for_each(lists, show), ...);
}

void add_weights(py::module_ &m) {
    const auto none = py::none();
    py::class_<Weights>(m, "Weights")
        .def(py::init([](py::object gate, py::array up, py::array down, py::object b_gate,
                         py::object b_up, py::object b_down) {
                 return Weights({gate, up, down, b_gate, b_up, b_down});
             }),
             py::kw_only(), py::arg("gate") = none, py::arg("up"), py::arg("down"),
             py::arg("b_gate") = none, py::arg("b_up") = none, py::arg("b_down") = none)
        .def_static(
            "packed",
            [](py::array buffer, int64_t d_model, int64_t d_ff, bool gated,
               std::optional<int64_t> n_experts,
               int64_t stride) { return Weights(buffer, d_model, d_ff, gated, n_experts, stride); },
            py::arg("buffer"), py::kw_only(), py::arg("d_model"), py::arg("d_ff"), py::arg("gated"),
            py::arg("n_experts") = none, py::arg("stride") = 0);
}

} // namespace

void add_values(py::module_ &m) {
    add_weights(m);
    add_struct<Activation>(m, "Activation", kActivationChoices, kActivationOptions);
    add_struct<Router>(m, "Router", kRouterChoices, kRouterGroups, kRouterNumbers);
}

} // namespace binding
