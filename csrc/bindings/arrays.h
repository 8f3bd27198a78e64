// Turns numpy arrays into the structs of the C ABI, and a status into an exception. Python has
// checked dtypes, ranks and shapes (python/ffncore/values) and has the error texts; nothing is
// checked again here.
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

// call() without the GIL.
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
        return a.dtype().kind() == 'f' ? FFNCORE_FLOAT16 : FFNCORE_BFLOAT16; // ml_dtypes' : 'V'
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

// The matrix, or the vector, of expert 0 in an array with a leading dimension of experts; `stride`
// receives the distance to the next expert.
inline ffncore_matrix expert_matrix(py::handle h, int64_t &stride) {
    if (h.is_none()) return {};
    const py::array a = array_of(h);
    const int64_t size = a.itemsize();
    stride = a.strides(0) / size;
    return {const_cast<void *>(a.data()), a.shape(1),          a.shape(2),
            a.strides(1) / size,          a.strides(2) / size, dtype_of(a)};
}
inline ffncore_vector expert_vector(py::handle h, int64_t &stride) {
    if (h.is_none()) return {};
    const py::array a = array_of(h);
    stride = a.strides(0) / a.itemsize();
    return {const_cast<void *>(a.data()), a.shape(1), a.strides(1) / a.itemsize(), dtype_of(a)};
}

} // namespace
