// The Python binding. It passes the pointers and strides of numpy arrays to the C ABI, and turns a
// status into an exception. Functions that compute or move data run without the GIL.
// python/ffncore/_core.pyi has the signatures.
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "../bench/measure.h"
#include "values.h"

using binding::block_of, binding::named, binding::Weights;

namespace {

void ffn_forward(const py::array &x, const py::array &y, const Weights &weights,
                 const ffncore_activation &activation, py::object saved) {
    ffncore_forward_args args{sizeof args,     matrix(x),  matrix(y),
                              weights.block(), activation, data(saved)};
    run([&] { return ffncore_ffn_forward(&args); });
}

py::object ffn_backward(const py::array &x, const py::array &grad_y, const Weights &weights,
                        const ffncore_activation &activation, py::object saved, bool accumulate,
                        py::object grad_x, const py::dict &grads, bool xielu) {
    double alpha_p = 0, alpha_n = 0;
    ffncore_backward_args args{};
    args.size = sizeof args;
    args.x = matrix(x);
    args.grad_y = matrix(grad_y);
    args.weights = weights.block();
    args.activation = activation;
    args.saved = data(saved);
    args.accumulate = accumulate;
    args.grad_x = matrix(grad_x);
    const ffncore_weights to = block_of([&](int i) { return named(grads, i); });
    args.grad_gate = to.gate;
    args.grad_up = to.up;
    args.grad_down = to.down;
    args.grad_b_gate = to.b_gate;
    args.grad_b_up = to.b_up;
    args.grad_b_down = to.b_down;
    args.grad_alpha_p = xielu ? &alpha_p : nullptr;
    args.grad_alpha_n = xielu ? &alpha_n : nullptr;
    run([&] { return ffncore_ffn_backward(&args); });
    return xielu ? py::object(py::make_tuple(alpha_p, alpha_n)) : py::none();
}

void activation_forward(py::object gate, const py::array &up, const py::array &h,
                        const ffncore_activation &activation) {
    ffncore_activation_args args{};
    args.size = sizeof args;
    args.activation = activation;
    args.gate = matrix(gate);
    args.up = matrix(up);
    args.h = matrix(h);
    run([&] { return ffncore_activation_forward(&args); });
}

py::object activation_backward(const py::array &grad_h, py::object gate, const py::array &up,
                               py::object grad_gate, const py::array &grad_up,
                               const ffncore_activation &activation, bool xielu) {
    double alpha_p = 0, alpha_n = 0;
    ffncore_activation_args args{};
    args.size = sizeof args;
    args.activation = activation;
    args.gate = matrix(gate);
    args.up = matrix(up);
    args.grad_h = matrix(grad_h);
    args.grad_gate = matrix(grad_gate);
    args.grad_up = matrix(grad_up);
    args.grad_alpha_p = xielu ? &alpha_p : nullptr;
    args.grad_alpha_n = xielu ? &alpha_n : nullptr;
    run([&] { return ffncore_activation_backward(&args); });
    return xielu ? py::object(py::make_tuple(alpha_p, alpha_n)) : py::none();
}

ffncore_norm_args norm_args(int32_t kind, double eps, double gain_offset, const py::array &x,
                            py::object gain) {
    ffncore_norm_args args{};
    args.size = sizeof args;
    args.kind = kind;
    args.eps = eps;
    args.gain_offset = gain_offset;
    args.x = matrix(x);
    args.gain = vector(gain);
    return args;
}

void norm_forward(int32_t kind, double eps, double gain_offset, const py::array &x, py::object gain,
                  py::object bias, const py::array &y) {
    ffncore_norm_args args = norm_args(kind, eps, gain_offset, x, gain);
    args.bias = vector(bias);
    args.y = matrix(y);
    run([&] { return ffncore_norm_forward(&args); });
}

void norm_backward(int32_t kind, double eps, double gain_offset, const py::array &x,
                   py::object gain, const py::array &grad_y, py::object grad_x,
                   py::object grad_gain, py::object grad_bias) {
    ffncore_norm_args args = norm_args(kind, eps, gain_offset, x, gain);
    args.grad_y = matrix(grad_y);
    args.grad_x = matrix(grad_x);
    args.grad_gain = vector(grad_gain);
    args.grad_bias = vector(grad_bias);
    run([&] { return ffncore_norm_backward(&args); });
}

// A cost depends on shapes alone, so pointers that only have to be present point here. Biases cost
// nothing, but their gradients do.
char present;

ffncore_weights shapes(int64_t d, int64_t f, bool gated, bool packed, int32_t dtype) {
    ffncore_weights w{};
    w.size = sizeof w;
    if (gated) w.gate = {&present, f, d, d, 1, dtype};
    w.up = {&present, f, d, d, 1, dtype};
    w.down = {&present, d, f, f, 1, dtype};
    w.packed = packed ? &present : nullptr;
    return w;
}

py::dict cost_dict(const ffncore_cost &c) {
    py::dict out;
    out["flops"] = c.flops;
    out["activations"] = c.activations;
    out["bytes"] = c.bytes;
    out["token_chunk"] = c.token_chunk;
    out["ff_chunk"] = c.ff_chunk;
    out["token_slice"] = c.token_slice;
    out["extra_bytes"] = c.extra_bytes;
    out["tokens_in_rows"] = (bool)c.tokens_in_rows;
    return out;
}

py::dict forward_cost(const std::string &dtype, const std::string &weights_dtype, int64_t tokens,
                      int64_t d, int64_t f, bool gated, bool packed,
                      const ffncore_activation &activation, bool save) {
    ffncore_forward_args args{};
    args.size = sizeof args;
    args.x = {nullptr, tokens, d, d, 1, dtype_of(dtype)};
    args.weights = shapes(d, f, gated, false, dtype_of(weights_dtype));
    args.activation = activation;
    args.saved = save ? &present : nullptr;
    ffncore_cost cost{};
    cost.size = sizeof cost;
    check(ffncore_forward_cost(&args, packed, &cost));
    return cost_dict(cost);
}

py::dict backward_cost(const std::string &dtype, const std::string &weights_dtype, int64_t tokens,
                       int64_t d, int64_t f, bool gated, bool packed,
                       const ffncore_activation &activation, bool recompute,
                       const std::array<bool, 8> &needs) {
    double alphas;
    const int32_t x_type = dtype_of(dtype), w_type = dtype_of(weights_dtype);
    ffncore_backward_args args{};
    args.size = sizeof args;
    args.x = {nullptr, tokens, d, d, 1, x_type};
    args.weights = shapes(d, f, gated, packed, w_type);
    args.activation = activation;
    args.saved = recompute ? nullptr : &present;
    auto matrix = [&](int i, int64_t rows, int64_t cols) {
        const int32_t type = i == 0 ? x_type : w_type;
        return needs[i] ? ffncore_matrix{&present, rows, cols, cols, 1, type} : ffncore_matrix{};
    };
    auto vector = [&](int i, int64_t length) {
        return needs[i] ? ffncore_vector{&present, length, 1, w_type} : ffncore_vector{};
    };
    args.grad_x = matrix(0, tokens, d);
    args.grad_gate = matrix(1, f, d);
    args.grad_up = matrix(2, f, d);
    args.grad_down = matrix(3, d, f);
    args.grad_b_gate = vector(4, f);
    args.grad_b_up = vector(5, f);
    args.grad_b_down = vector(6, d);
    args.grad_alpha_p = args.grad_alpha_n = needs[7] ? &alphas : nullptr;
    ffncore_cost cost{};
    cost.size = sizeof cost;
    check(ffncore_backward_cost(&args, &cost));
    return cost_dict(cost);
}

py::list isas() {
    py::list names;
    for (int32_t i = 0; i < ffncore_isa_count(); ++i) names.append(ffncore_isa_name(i));
    return names;
}

std::string isa() {
    const char *name = ffncore_isa_current();
    if (!name) check(ffncore_isa_use(nullptr)); // raises, as FFNCORE_ISA names one that cannot run
    return name ? name : ffncore_isa_current();
}

} // namespace

PYBIND11_MODULE(core, m) {
    m.attr("__version__") = ffncore_version();
    m.def("ffn_forward", &ffn_forward);
    m.def("ffn_backward", &ffn_backward);
    m.def("activation_forward", &activation_forward);
    m.def("activation_backward", &activation_backward);
    m.def("norm_forward", &norm_forward);
    m.def("norm_backward", &norm_backward);
    binding::add_values(m);
    binding::add_mixture(m);
    binding::add_coded(m);
    m.def("saved_bytes", [](const py::array &x, int64_t tokens, int64_t f, bool gated) {
        return checked(ffncore_saved_bytes(dtype_of(x), tokens, f, gated));
    });
    m.def("forward_cost", &forward_cost);
    m.def("backward_cost", &backward_cost);
    m.def("packed_bytes", [](const std::string &dtype, const Weights &weights) {
        return checked(ffncore_packed_bytes(dtype_of(dtype), &weights.block()));
    });
    m.def("pack", [](const std::string &dtype, const Weights &weights, const py::array &buffer) {
        const int32_t type = dtype_of(dtype);
        void *const to = data(buffer);
        run([&] { return ffncore_pack(type, &weights.block(), to); });
    });
    m.def("unpack", [](const Weights &packed, const Weights &into) {
        run([&] { return ffncore_unpack(&into.block(), packed.block().packed); });
    });
    m.def("isas", &isas);
    m.def("isa", &isa);
    m.def("use_isa", [](std::optional<std::string> name) {
        if (ffncore_isa_use(name ? name->c_str() : nullptr) != FFNCORE_OK)
            throw py::value_error(ffncore_last_error());
    });
    m.def("cpu_features", &ffncore_cpu_features);
    m.def("build_info", &ffncore_build_info);
    m.def("num_threads", &ffncore_num_threads);
    m.def("set_num_threads", [](int32_t n) { check(ffncore_set_num_threads(n)); });
    m.def("clear_workspace", [] {
        run([] {
            ffncore_clear_workspace();
            return FFNCORE_OK;
        });
    });
    m.def(
        "debug_plan",
        [](int64_t token_chunk, int64_t ff_chunk, int64_t token_slice, int32_t rows, bool always) {
            check(ffncore_debug_plan(token_chunk, ff_chunk, token_slice, rows, always));
        },
        py::arg("token_chunk") = 0, py::arg("ff_chunk") = 0, py::arg("token_slice") = 0,
        py::arg("tokens_in_rows") = -1, py::arg("threads_always") = false);
    m.def(
        "debug_streams",
        [](int32_t panels, int64_t ahead) { check(ffncore_debug_streams(panels, ahead)); },
        py::arg("panels") = -1, py::arg("ahead") = -1);
    m.def("debug_flops", &ffncore_debug_flops);
    m.def("measure", [](const std::string &what, const std::string &isa, const std::string &dtype,
                        int64_t bytes, double seconds, int threads) {
        return without_gil([&] {
            return ffncore_measure(what.c_str(), isa.c_str(), dtype.c_str(), bytes, seconds,
                                   threads);
        });
    });
}

// The module's entry point. It refuses a subinterpreter before pybind11 does anything, because
// pybind11 would ask for the GIL on behalf of the main interpreter. A thread that holds the GIL for
// another interpreter would then wait for ever (CPython 3.10 and 3.11; later versions refuse by
// themselves, and so does numpy).
extern "C" PYBIND11_EXPORT PyObject *PyInit__core() {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return PyInit_core();
    PyErr_SetString(PyExc_ImportError, "ffncore is imported in a subinterpreter; expected the main "
                                       "interpreter, which is all that numpy supports");
    return nullptr;
}
