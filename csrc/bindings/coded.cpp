// The functions of _core for packed quantised weights; see module.cpp. A matrix is a dict, which
// python/ffncore/values/packing/codes.py makes.
#include "../include/ffncore_quantised.h"
#include "values.h"

using binding::Weights;

namespace {

// (data, factors or None, factor_groups, dtype that is stored) or None.
ffncore_numbers numbers(py::handle h) {
    if (h.is_none()) return {};
    const auto given = py::reinterpret_borrow<py::tuple>(h);
    const py::array a = array_of(given[0]);
    ffncore_numbers n{};
    n.data = a.data();
    n.row_stride = a.shape(0) == 1 ? 0 : a.strides(0) / a.itemsize();
    n.col_stride = a.shape(1) == 1 ? 0 : a.strides(1) / a.itemsize();
    n.stored = dtype_of(given[3].cast<std::string>());
    if (given[1].is_none()) return n;
    const py::array factors = array_of(given[1]);
    n.factors = static_cast<const float *>(factors.data());
    n.factor_stride = factors.strides(0) / factors.itemsize();
    n.factor_groups = given[2].cast<int64_t>();
    return n;
}

ffncore_coded matrix_of(py::handle h) {
    ffncore_coded m{};
    if (h.is_none()) return m;
    const auto given = py::reinterpret_borrow<py::dict>(h);
    const py::array codes = array_of(given["codes"]);
    m.rows = codes.shape(0);
    m.cols = codes.shape(1);
    m.codes = static_cast<const uint8_t *>(codes.data());
    m.bits = given["bits"].cast<int32_t>();
    m.e4m3 = given["e4m3"].cast<bool>();
    const py::array table = array_of(given["table"]);
    for (int i = 0; i < 16; ++i) m.table[i] = static_cast<const float *>(table.data())[i];
    m.center = given["center"].cast<float>();
    m.group = given["group"].cast<int64_t>();
    m.scale = numbers(given["scales"]);
    m.zero = numbers(given["zeros"]);
    m.offset = numbers(given["offsets"]);
    return m;
}

// matrices: gate, up, down; biases: b_gate, b_up, b_down; each may be None.
ffncore_coded_weights weights_of(const py::list &matrices, const py::list &biases) {
    ffncore_coded_weights w{};
    w.size = sizeof w;
    w.gate = matrix_of(matrices[0]);
    w.up = matrix_of(matrices[1]);
    w.down = matrix_of(matrices[2]);
    w.b_gate = vector(biases[0]);
    w.b_up = vector(biases[1]);
    w.b_down = vector(biases[2]);
    return w;
}

void pack_coded(const py::list &matrices, const py::list &biases, const py::array &buffer) {
    const auto weights = weights_of(matrices, biases);
    void *const to = data(buffer);
    run([&] { return ffncore_pack_coded(&weights, to); });
}

} // namespace

void binding::add_coded(py::module_ &m) {
    m.def("coded_bytes", [](const py::list &matrices, const py::list &biases) {
        const auto weights = weights_of(matrices, biases);
        return checked(ffncore_coded_bytes(&weights));
    });
    m.def("pack_coded", &pack_coded);
    m.def("header_bytes", [](const py::array &buffer) {
        return checked(ffncore_header_bytes(data(buffer), buffer.nbytes()));
    });
}
