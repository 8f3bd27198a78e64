// Turns numpy arrays, and tuples of them, into the structs of the C ABI, and a status into an
// exception. Dtypes, ranks and shapes have been checked in Python (python/ffncore/arrays), which
// also has the error texts; nothing is checked twice here.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../include/ffncore.h"
#include "gil.h"

namespace py = pybind11;

namespace {

inline void check(ffncore_status status) {
    if (status == FFNCORE_OK) return;
    if (status == FFNCORE_OUT_OF_MEMORY) {
        PyErr_SetString(PyExc_MemoryError, ffncore_last_error());
        throw py::error_already_set();
    }
    if (status == FFNCORE_UNSUPPORTED) throw std::runtime_error(ffncore_last_error());
    throw py::value_error(ffncore_last_error());
}

// Calls call() without the GIL, and turns its status into an exception.
template <class Call> void run(const Call &call) { check(without_gil(call)); }

inline int64_t checked(int64_t bytes) {
    if (bytes < 0) throw py::value_error(ffncore_last_error());
    return bytes;
}

inline int32_t dtype_of(const std::string &name) {
    return name == "float64"    ? FFNCORE_FLOAT64
           : name == "bfloat16" ? FFNCORE_BFLOAT16
           : name == "float16"  ? FFNCORE_FLOAT16
                                : FFNCORE_FLOAT32;
}
inline int32_t dtype_of(const py::array &a) {
    switch (a.itemsize()) {
    case 8:
        return FFNCORE_FLOAT64;
    case 4:
        return FFNCORE_FLOAT32;
    default:
        return a.dtype().kind() == 'f' ? FFNCORE_FLOAT16 : FFNCORE_BFLOAT16; // ml_dtypes: 'V'
    }
}

inline py::array array_of(py::handle h) { return py::reinterpret_borrow<py::array>(h); }

inline ffncore_matrix matrix(py::handle h) {
    if (h.is_none()) return {};
    const py::array a = array_of(h);
    const int64_t size = a.itemsize();
    return {const_cast<void *>(a.data()), a.shape(0),          a.shape(1),
            a.strides(0) / size,          a.strides(1) / size, dtype_of(a)};
}

inline ffncore_vector vector(py::handle h) {
    if (h.is_none()) return {};
    const py::array a = array_of(h);
    return {const_cast<void *>(a.data()), a.shape(0), a.strides(0) / a.itemsize(), dtype_of(a)};
}

inline void *data(py::handle h) {
    return h.is_none() ? nullptr : const_cast<void *>(array_of(h).data());
}

// WeightsTuple (6 entries) or PackedTuple (7).
inline ffncore_weights weights(const py::tuple &t) {
    ffncore_weights w{};
    w.size = sizeof w;
    if (t.size() == 6) {
        w.gate = matrix(t[0]);
        w.up = matrix(t[1]);
        w.down = matrix(t[2]);
        w.b_gate = vector(t[3]);
        w.b_up = vector(t[4]);
        w.b_down = vector(t[5]);
        return w;
    }
    w.packed = data(t[0]);
    const int64_t d = t[1].cast<int64_t>(), f = t[2].cast<int64_t>();
    if (t[3].cast<bool>()) w.gate = {nullptr, f, d, 0, 0, 0};
    w.up = {nullptr, f, d, 0, 0, 0};
    w.down = {nullptr, d, f, 0, 0, 0};
    return w;
}

inline ffncore_activation activation(const py::tuple &t) {
    ffncore_activation a{};
    a.size = sizeof a;
    a.kind = t[0].cast<int32_t>();
    a.clamp = t[1].cast<int32_t>();
    double *const options[] = {&a.limit,          &a.alpha,      &a.up_offset,
                               &a.gate_softcap,   &a.up_softcap, &a.gate_multiplier,
                               &a.negative_slope, &a.alpha_p,    &a.alpha_n,
                               &a.beta,           &a.eps};
    for (size_t i = 0; i < 11; ++i) *options[i] = t[2 + i].cast<double>();
    return a;
}

} // namespace

void add_mixture(py::module_ &m); // mixture.cpp
