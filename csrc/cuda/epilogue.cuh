// The epilogues of products, which take the sums of some neighbouring columns at a time (see
// product.cuh):
//
//   StoreEpilogue     out (+)= sum + bias, for y, dx and weight gradients
//   HiddenEpilogue    of x W_up^T: h = act(gate + b_gate) (up + b_up); saves gate and up
//   GradientEpilogue  of dy W_down: dgate, dup, h, and sums for the gradients of routing weights
//
// The rows are those of the product: tokens, or the rows of a mixture in the order of their
// experts. All numbers are float until they are stored, where they are rounded once.
#pragma once
#include "activation.cuh"
#include "device.cuh"

namespace ffncore::cuda {

// A matrix, or one for each group; data == nullptr: absent.
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

// A matrix whose type is known only at run time: a gradient, of the type of the weights or of
// float.
struct AnyMatrix {
    void *data = nullptr;
    int64_t row = 0, col = 1, group = 0;
    Type type = kFloat32;
    template <class T> Matrix<T> of() const { return {(T *)data, row, col, group}; }
};

// A bias along the columns, of the type of the weights; or of float, if the weights have 16 bits.
struct Bias {
    const void *data = nullptr;
    int64_t stride = 0, group = 0;
    Type type = kFloat32;
    __device__ __forceinline__ Bias of(int64_t g) const {
        Bias mine = *this;
        if (data) mine.data = (const char *)data + g * group * (type == kFloat32 ? 4 : 2);
        return mine;
    }
    __device__ __forceinline__ float at(int64_t c) const {
        if (!data) return 0;
        if (type == kFloat32) return ((const float *)data)[c * stride];
        if (type == kBfloat16) return number(((const Bf16 *)data)[c * stride]);
        return number(((const F16 *)data)[c * stride]);
    }
};

// ---- reading and writing n neighbouring columns of a row, of which `count` exist; as whole
// vectors where they are contiguous and aligned

constexpr int kRun = 8; // columns that a thread takes at a time: 16 bytes of 16-bit elements

template <class T, int n>
struct alignas(n * sizeof(T) % kChunkBytes ? sizeof(T) : kChunkBytes) Run {
    T elements[n];
};
template <class T, int n> __device__ __forceinline__ bool is_run(const T *at, int64_t stride) {
    return n * sizeof(T) % kChunkBytes == 0 && stride == 1 && (uintptr_t)at % kChunkBytes == 0;
}

template <class T, int n>
__device__ __forceinline__ void read_run(float (&to)[n], const Matrix<const T> &from, int64_t r,
                                         int64_t c, int64_t count) {
    const T *const at = from.at(r, c);
    if (count >= n && is_run<T, n>(at, from.col)) {
        const Run<T, n> run = *(const Run<T, n> *)at;
#pragma unroll
        for (int e = 0; e < n; ++e) to[e] = number(run.elements[e]);
    } else {
#pragma unroll
        for (int e = 0; e < n; ++e) to[e] = e < count ? number(at[e * from.col]) : 0;
    }
}

template <class T, int n>
__device__ __forceinline__ void write_run(const Matrix<T> &to, int64_t r, int64_t c, int64_t count,
                                          const float (&x)[n]) {
    T *const at = to.at(r, c);
    if (count >= n && is_run<T, n>(at, to.col)) {
        Run<T, n> run;
#pragma unroll
        for (int e = 0; e < n; ++e) put(&run.elements[e], x[e]);
        *(Run<T, n> *)at = run;
    } else {
#pragma unroll
        for (int e = 0; e < n; ++e)
            if (e < count) put(at + e * to.col, x[e]);
    }
}

template <class T> __device__ __forceinline__ Matrix<const T> to_read(const Matrix<T> &m) {
    return {m.data, m.row, m.col, m.group};
}

template <int n>
__device__ __forceinline__ void add_bias(float (&to)[n], const float (&sums)[n], const Bias &bias,
                                         int64_t c, int64_t count) {
#pragma unroll
    for (int e = 0; e < n; ++e) to[e] = sums[e] + (e < count ? bias.at(c + e) : 0);
}

// ---- epilogues

template <class Out> struct StoreEpilogue {
    static constexpr bool kSums = false;
    Matrix<Out> out;
    Bias bias;
    int64_t columns;
    bool add;

    __device__ StoreEpilogue of(int64_t g) const { return {out.of(g), bias.of(g), columns, add}; }
    template <int n>
    __device__ __forceinline__ void operator()(int64_t r, int64_t c, const float (&sums)[n]) const {
        const int64_t count = columns - c;
        if (count <= 0) return;
        float x[n], old[n];
        add_bias(x, sums, bias, c, count);
        if (add) {
            read_run(old, to_read(out), r, c, count);
#pragma unroll
            for (int e = 0; e < n; ++e) x[e] += old[e];
        }
        write_run(out, r, c, count, x);
    }
};

// Takes gate and up of a gated tile; or of a plain tile up alone.
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
    template <int n>
    __device__ __forceinline__ void operator()(int64_t r, int64_t c, const float (&gates)[n],
                                               const float (&ups)[n]) const {
        const int64_t count = columns - c;
        if (count <= 0) return;
        float gate[n], up[n], x[n];
        add_bias(gate, gates, b_gate, c, count);
        add_bias(up, ups, b_up, c, count);
        if (save_gate.data) write_run(save_gate, r, c, count, gate);
        if (save_up.data) write_run(save_up, r, c, count, up);
        if (!h.data) return;
#pragma unroll
        for (int e = 0; e < n; ++e) x[e] = hidden(act, gate[e], up[e]);
        write_run(h, r, c, count, x);
    }
    template <int n>
    __device__ __forceinline__ void operator()(int64_t r, int64_t c, const float (&ups)[n]) const {
        const int64_t count = columns - c;
        if (count <= 0) return;
        float up[n], x[n];
        add_bias(up, ups, b_up, c, count);
        if (save_up.data) write_run(save_up, r, c, count, up);
        if (!h.data) return;
#pragma unroll
        for (int e = 0; e < n; ++e) x[e] = hidden(act, up[e]);
        write_run(h, r, c, count, x);
    }
};

// Sums over a part of a row: of dh h, for the gradient of the row's factor; and with `xielu` of the
// terms of the gradients of its two parameters.
template <bool xielu> struct GradientSums {
    float dot = 0, positive = 0, negative = 0;
};
template <int lanes, bool xielu>
__device__ __forceinline__ GradientSums<xielu> sum_lanes(GradientSums<xielu> x) {
    x.dot = sum_lanes<lanes>(x.dot);
    if constexpr (xielu) {
        x.positive = sum_lanes<lanes>(x.positive);
        x.negative = sum_lanes<lanes>(x.negative);
    }
    return x;
}

// Takes dh without the factor of the row. The sums go to matrices [row][part], which have a column
// for each part of whole tiles.
template <class T, bool xielu> struct GradientEpilogue {
    static constexpr bool kSums = true;
    using Sum = GradientSums<xielu>;
    ActivationParams act;
    Matrix<const T> gate, up;         // with their bias; gate is absent in a plain block
    const float *factors;             // of the rows; nullptr: all are 1
    Matrix<T> dgate, dup, h;          // dgate only in a gated block
    Matrix<float> dots;               // may be absent
    Matrix<float> positive, negative; // the sums for xielu's parameters
    int64_t columns;

    __device__ GradientEpilogue of(int64_t) const { return *this; }
    template <int n>
    __device__ __forceinline__ Sum operator()(int64_t r, int64_t c, const float (&dh)[n]) const {
        const int64_t count = columns - c;
        const bool plain = !gate.data;
        Sum sum;
        if (count <= 0) return sum;
        float before[n], other[n], to_gate[n], to_up[n], x[n];
        // Two branches, because a choice between the matrices would put both into memory.
        if (plain) {
            read_run(before, up, r, c, count);
        } else {
            read_run(before, gate, r, c, count);
            read_run(other, up, r, c, count);
        }
        const float factor = factors ? factors[r] : 1;
#pragma unroll
        for (int e = 0; e < n; ++e) {
            const Side g = gate_side(act, before[e], plain);
            const Side u = plain ? Side{1, 0} : up_side(act, other[e]);
            const float value = g.value * u.value, grad = dh[e] * factor;
            // A slope of 0 is a mask, and the result is 0 even where a factor is infinite.
            to_gate[e] = g.slope == 0 ? 0 : grad * u.value * g.slope;
            to_up[e] = u.slope == 0 ? 0 : grad * g.value * u.slope;
            x[e] = value * factor;
            if (e < count) sum.dot += dh[e] * value;
            if constexpr (xielu)
                if (e < count)
                    xielu_terms(act, before[e], plain, grad * u.value, sum.positive, sum.negative);
        }
        if (plain) {
            write_run(dup, r, c, count, to_gate);
        } else {
            write_run(dgate, r, c, count, to_gate);
            write_run(dup, r, c, count, to_up);
        }
        write_run(h, r, c, count, x);
        return sum;
    }
    __device__ __forceinline__ void sum(int64_t r, int64_t part, const Sum &x) const {
        if (dots.data) *dots.at(r, part) = x.dot;
        if constexpr (xielu) {
            *positive.at(r, part) = x.positive;
            *negative.at(r, part) = x.negative;
        }
    }
};

} // namespace ffncore::cuda
