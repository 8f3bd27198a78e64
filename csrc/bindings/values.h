// Values that Python makes once and passes to many calls: weights, an activation, a router. A call
// finds the struct of the C ABI in them, and converts nothing but x and its outputs.
//
//   _core.Weights      ffncore_weights or ffncore_experts; it holds their arrays
//   _core.Activation   ffncore_activation
//   _core.Router       ffncore_router without its bias, which is an array of the call
//
// Python checks dtypes, ranks and shapes before it makes one (python/ffncore/values), and has the
// error texts.
#pragma once
#include <array>
#include <optional>
#include <utility>

#include "arrays.h"
#include "gil.h"

namespace binding {

// Names of gradients and weights as Python strings, made once: a lookup then compares pointers.
inline constexpr const char *kNames[] = {"gate", "up", "down", "b_gate", "b_up", "b_down"};

// grads[kNames[i]], or None.
inline py::handle named(const py::dict &grads, int i) {
    static PyObject *const keys[] = {
        PyUnicode_InternFromString(kNames[0]), PyUnicode_InternFromString(kNames[1]),
        PyUnicode_InternFromString(kNames[2]), PyUnicode_InternFromString(kNames[3]),
        PyUnicode_InternFromString(kNames[4]), PyUnicode_InternFromString(kNames[5])};
    PyObject *const found = PyDict_GetItemWithError(grads.ptr(), keys[i]);
    return found ? found : Py_None;
}

// One block's arrays by name: gate, up [f, d], down [d, f], b_gate, b_up [f], b_down [d]. Those
// that are absent are None, or not there.
template <class Get> ffncore_weights block_of(const Get &get) {
    return {sizeof(ffncore_weights), matrix(get(0)), matrix(get(1)), matrix(get(2)),
            vector(get(3)),          vector(get(4)), vector(get(5)), nullptr};
}

// The same with a leading dimension of experts.
template <class Get> ffncore_experts experts_of(const Get &get, int64_t count) {
    ffncore_experts e{};
    e.size = sizeof e;
    e.count = count;
    e.first.size = sizeof e.first;
    e.first.gate = expert_matrix(get(0), e.gate_stride);
    e.first.up = expert_matrix(get(1), e.up_stride);
    e.first.down = expert_matrix(get(2), e.down_stride);
    e.first.b_gate = expert_vector(get(3), e.b_gate_stride);
    e.first.b_up = expert_vector(get(4), e.b_up_stride);
    e.first.b_down = expert_vector(get(5), e.b_down_stride);
    return e;
}

// Weights of one block or of experts, as arrays of any strides or packed. Pointers, shapes and
// strides are those of the moment: what is done to an array's shape later changes nothing here.
class Weights {
  public:
    explicit Weights(std::array<py::object, 6> arrays) : arrays_(std::move(arrays)) {
        const auto get = [&](int i) -> py::handle { return arrays_[i]; };
        const py::array up = array_of(arrays_[1]);
        if (up.ndim() == 3) {
            experts_ = experts_of(get, up.shape(0));
        } else {
            experts_.first = block_of(get);
        }
    }

    // buffer [bytes], as ffncore_pack fills it; expert e begins at byte e * stride.
    Weights(py::array buffer, int64_t d_model, int64_t d_ff, bool gated,
            std::optional<int64_t> n_experts, int64_t stride) {
        experts_.size = sizeof experts_;
        experts_.count = n_experts.value_or(0);
        experts_.packed_stride = stride;
        ffncore_weights &w = experts_.first;
        w.size = sizeof w;
        w.packed = data(buffer);
        if (gated) w.gate = {nullptr, d_ff, d_model, 0, 0, 0};
        w.up = {nullptr, d_ff, d_model, 0, 0, 0};
        w.down = {nullptr, d_model, d_ff, 0, 0, 0};
        arrays_[0] = std::move(buffer);
    }

    // An array's memory may be mapped from a file. Python closes the mapping without the GIL.
    ~Weights() {
        or_sleep([&] {
            for (py::object &array : arrays_) array.release().dec_ref();
        });
    }
    Weights(Weights &&) = default;

    const ffncore_weights &block() const { return experts_.first; }
    const ffncore_experts &experts() const { return experts_; }

  private:
    ffncore_experts experts_{};
    std::array<py::object, 6> arrays_; // held, so that their memory stays
};

void add_values(py::module_ &m);  // values.cpp
void add_mixture(py::module_ &m); // mixture.cpp
void add_coded(py::module_ &m);   // coded.cpp

} // namespace binding
