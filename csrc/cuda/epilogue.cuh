// What becomes of a product's sums, two neighbouring columns at a time (see product.cuh):
//
//   StoreEpilogue     out (+)= sum + bias                               y, dx, weight gradients
//   HiddenEpilogue    h = act(gate + b_gate) (up + b_up), and both saved        x W_up^T
//   GradientEpilogue  dgate, dup, h again, and what becomes routing weights' gradients  dy W_down
//
// Rows are those of the product: tokens, or routed rows in the experts' order. Everything is float
// until it is rounded once, where it is stored.
#pragma once
#include "activation.cuh"
#include "device.cuh"

namespace ffncore::cuda {

// A matrix, or one for each group; data == nullptr: none.
template <class T> struct Matrix {
    T *data = nullptr;
    int64_t row = 0, col = 1, group = 0; // strides in elements
    __device__ __forceinline__ T *at(int64_t r, int64_t c) const {
        return data + r * row + c * col;
    }
    __device__ __forceinline__ Matrix of(int64_t g) const {
        return {data + g * group, row, col, 0};
    }
};

// A bias along the columns, of the weights' type or of float beside 16 bits.
struct Bias {
    const void *data = nullptr;
    int64_t stride = 0, group = 0;
    int type = 0; // 0: float, 1: bfloat16, 2: float16
    __device__ __forceinline__ Bias of(int64_t g) const {
        Bias mine = *this;
        if (data) mine.data = (const char *)data + g * group * (type == 0 ? 4 : 2);
        return mine;
    }
    __device__ __forceinline__ float at(int64_t c) const {
        if (!data) return 0;
        if (type == 0) return ((const float *)data)[c * stride];
        if (type == 1) return number(((const Bf16 *)data)[c * stride]);
        return number(((const F16 *)data)[c * stride]);
    }
};

template <class Out> struct StoreEpilogue {
    static constexpr bool kSums = false;
    Matrix<Out> out;
    Bias bias;
    int64_t columns;
    bool add;

    __device__ StoreEpilogue of(int64_t g) const { return {out.of(g), bias.of(g), columns, add}; }
    __device__ __forceinline__ void operator()(int64_t r, int64_t c, float x0, float x1) const {
        one(r, c, x0);
        one(r, c + 1, x1);
    }
    __device__ __forceinline__ void one(int64_t r, int64_t c, float x) const {
        if (c >= columns) return;
        if (bias.data) x += bias.at(c);
        Out *to = out.at(r, c);
        put(to, add ? number(*to) + x : x);
    }
};

// gate and up of a gated tile; of a plain one the numbers are up's.
template <class T> struct HiddenEpilogue {
    static constexpr bool kSums = false;
    ActivationParams act;
    Bias b_gate, b_up;
    Matrix<T> h, save_gate, save_up; // any of them may be absent
    int64_t columns;

    __device__ HiddenEpilogue of(int64_t g) const {
        HiddenEpilogue mine = *this;
        mine.b_gate = b_gate.of(g);
        mine.b_up = b_up.of(g);
        return mine;
    }
    __device__ __forceinline__ void operator()(int64_t r, int64_t c, float g0, float g1, float u0,
                                               float u1) const {
        gated(r, c, g0, u0);
        gated(r, c + 1, g1, u1);
    }
    __device__ __forceinline__ void operator()(int64_t r, int64_t c, float u0, float u1) const {
        plain(r, c, u0);
        plain(r, c + 1, u1);
    }
    __device__ __forceinline__ void gated(int64_t r, int64_t c, float gate, float up) const {
        if (c >= columns) return;
        gate += b_gate.at(c);
        up += b_up.at(c);
        if (save_gate.data) put(save_gate.at(r, c), gate);
        if (save_up.data) put(save_up.at(r, c), up);
        if (h.data) put(h.at(r, c), hidden(act, gate, up));
    }
    __device__ __forceinline__ void plain(int64_t r, int64_t c, float up) const {
        if (c >= columns) return;
        up += b_up.at(c);
        if (save_up.data) put(save_up.at(r, c), up);
        if (h.data) put(h.at(r, c), hidden(act, up));
    }
};

// The numbers are dh without a row's factor. dots [row][part]: sums of dh h over the tile's parts
// of columns, for the gradient of the factor.
template <class T> struct GradientEpilogue {
    static constexpr bool kSums = true;
    ActivationParams act;
    Matrix<const T> gate, up; // with their bias; gate absent: a plain block
    const float *factors;     // of rows, or nullptr: 1
    Matrix<T> dgate, dup, h;  // any of them may be absent
    Matrix<float> dots;       // may be absent; a column for every part of whole tiles
    Matrix<float> xielu[2];   // [row][column]: terms of its parameters' gradients; may be absent
    int64_t columns;

    __device__ GradientEpilogue of(int64_t) const { return *this; }
    __device__ __forceinline__ float operator()(int64_t r, int64_t c, float x0, float x1) const {
        return one(r, c, x0) + one(r, c + 1, x1);
    }
    __device__ __forceinline__ float one(int64_t r, int64_t c, float dh) const {
        if (c >= columns) return 0;
        const bool is_plain = !gate.data;
        const float before = number(is_plain ? *up.at(r, c) : *gate.at(r, c));
        const Side g = gate_side(act, before, is_plain);
        const Side u = is_plain ? Side{1, 0} : up_side(act, number(*up.at(r, c)));
        const float value = g.value * u.value, factor = factors ? factors[r] : 1;
        const float grad = dh * factor;
        // A slope of 0 is a mask: what is infinite does not pass it.
        const float to_gate = g.slope == 0 ? 0 : grad * u.value * g.slope;
        if (is_plain) {
            if (dup.data) put(dup.at(r, c), to_gate);
        } else {
            if (dgate.data) put(dgate.at(r, c), to_gate);
            if (dup.data) put(dup.at(r, c), u.slope == 0 ? 0 : grad * g.value * u.slope);
        }
        if (h.data) put(h.at(r, c), value * factor);
        if (xielu[0].data)
            xielu_terms(act, before, grad * u.value, *xielu[0].at(r, c), *xielu[1].at(r, c));
        return dh * value;
    }
    __device__ __forceinline__ void sum(int64_t r, int64_t part, float x) const {
        if (dots.data) *dots.at(r, part) = x;
    }
};

} // namespace ffncore::cuda
