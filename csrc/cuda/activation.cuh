// Every activation and its derivative, one number at a time, and the hidden unit that they make:
//
//     v = gate_multiplier * gate;  clamp "pre":  v = min(v, limit)
//     a = act(v);                  clamp "post": a = min(a, limit)
//     u = clip(up, -limit, limit); u = c tanh(u / c);  u = u + up_offset
//     h = a u
//     dgate = dh u act'(v) gate_multiplier, or 0 beyond the limit
//     dup = dh a (the derivative of u), which is 0 beyond the limits
//
// A plain block has act(gate_multiplier * up) alone. The kind is the same for all threads, so the
// switch costs a few instructions, where a product has hundreds. Every branch lets NaN through.
#pragma once

#include "device.cuh"

namespace ffncore::cuda {

// As ffncore_activation, in float; xielu_p = softplus(alpha_p), xielu_n = beta + softplus(alpha_n).
struct ActivationParams {
    int kind, clamp;
    float limit, alpha, up_offset, gate_softcap, up_softcap, gate_multiplier, negative_slope;
    float xielu_p, xielu_n, beta, eps;
};

// In the order of ffncore_activation_kind and ffncore_clamp.
enum Kind {
    kIdentity,
    kRelu,
    kRelu2,
    kGelu,
    kGeluTanh,
    kQuickGelu,
    kSilu,
    kSigmoid,
    kTanh,
    kMish,
    kHardswish,
    kLeakyRelu,
    kXielu
};
enum Clamp { kClampNone, kClampPre, kClampPost };

struct Act {
    float value, slope;
};

// Below -88 e^-v is infinite and sigma is 0, as it should be.
__device__ __forceinline__ float sigma(float v) { return 1 / (1 + expf(-v)); }
__device__ __forceinline__ float nan_through(float v, float x) { return v != v ? v : x; }

// c tanh(v / c).
__device__ __forceinline__ Act softcapped(float v, float c) {
    const float t = tanhf(v / c);
    return {c * t, 1 - t * t};
}

// g(v) sigma(alpha v), where g(v) is v or, with cap > 0, softcapped.
__device__ __forceinline__ Act swish(float v, float alpha, float cap) {
    const Act g = cap > 0 ? softcapped(v, cap) : Act{v, 1};
    const float s = sigma(alpha * v), rest = sigma(-alpha * v);
    // s falls faster than v grows, so the product is 0 in the limit; computed, it would be 0 * inf.
    const float bent = s == 0 || rest == 0 ? 0 : alpha * g.value * s * rest;
    return {g.value * s, fmaf(g.slope, s, bent)};
}

__device__ __forceinline__ Act gelu(float v) { // v Phi(v); with erfc nothing cancels
    const float cdf = 0.5f * erfcf(-0.70710678f * v);
    const float density = 0.39894228f * expf(-0.5f * v * v);
    return {v * cdf, density == 0 ? cdf : fmaf(v, density, cdf)};
}

__device__ __forceinline__ Act gelu_tanh(float v) { // v sigma(z), z = 2 sqrt(2 / pi) (v + c v^3)
    const float z = 1.5957691f * (v + 0.044715f * v * v * v);
    const float dz = 1.5957691f * (1 + 0.134145f * v * v), s = sigma(z), rest = sigma(-z);
    const float bent = s == 0 || rest == 0 ? 0 : v * dz * s * rest;
    return {v * s, s + bent};
}

__device__ __forceinline__ Act mish(float v) { // v tanh(softplus(v)) = v m / (m + 2)
    if (v > 20) return {v, 1};
    const float e = expf(v), m = e * (e + 2), inverse = 1 / (m + 2), t = m * inverse;
    return {v * t, e == 0 ? t : t + 4 * v * e * (1 + e) * inverse * inverse};
}

__device__ __forceinline__ Act xielu(const ActivationParams &p, float v) {
    const float small = v > p.eps ? p.eps : v, em = expm1f(small);
    if (v > 0) return {v * (p.xielu_p * v + p.beta), 2 * p.xielu_p * v + p.beta};
    const float slope = v > p.eps ? p.beta - p.xielu_n : p.xielu_n * em + p.beta;
    return {p.xielu_n * (em - v) + p.beta * v, nan_through(v, slope)};
}

__device__ inline Act activate(const ActivationParams &p, float v) {
    const float positive = v > 0 || v != v ? v : 0;
    switch (p.kind) {
    case kRelu:
        return {positive, nan_through(v, v > 0 ? 1.f : 0.f)};
    case kRelu2:
        return {positive * positive, 2 * positive};
    case kGelu:
        return gelu(v);
    case kGeluTanh:
        return gelu_tanh(v);
    case kQuickGelu:
        return swish(v, 1.702f, p.gate_softcap);
    case kSilu:
        return swish(v, p.alpha, p.gate_softcap);
    case kSigmoid: {
        const float s = sigma(v);
        return {s, s * sigma(-v)};
    }
    case kTanh: {
        const float t = tanhf(v);
        return {t, 1 - t * t};
    }
    case kMish:
        return mish(v);
    case kHardswish: {
        const float c = v < -3 ? 0.f : v > 3 ? 6.f : v + 3;
        const float slope = v <= -3 ? 0.f : v >= 3 ? 1.f : (v + 1.5f) * (1 / 3.f);
        return {v * (c / 6), slope};
    }
    case kLeakyRelu:
        return {v >= 0 ? v : p.negative_slope * v, nan_through(v, v >= 0 ? 1.f : p.negative_slope)};
    case kXielu:
        return xielu(p, v);
    default:
        return {v, 1};
    }
}

// The two sides of a hidden unit. A `plain` block has no gate; its up is called gate here.
struct Side {
    float value, slope; // slope: the derivative of value by the preactivation, with all options
};

__device__ __forceinline__ Side gate_side(const ActivationParams &p, float gate, bool plain) {
    float v = p.gate_multiplier * gate;
    const bool pre = !plain && p.clamp == kClampPre && v > p.limit;
    if (pre) v = p.limit;
    Act a = activate(p, v);
    const bool post = !plain && p.clamp == kClampPost && a.value > p.limit;
    if (post) a.value = p.limit;
    return {a.value, pre || post ? 0 : a.slope * p.gate_multiplier};
}

__device__ __forceinline__ Side up_side(const ActivationParams &p, float up) {
    float u = up, slope = 1;
    if (p.clamp != kClampNone) {
        if (u > p.limit) u = p.limit, slope = 0;
        if (u < -p.limit) u = -p.limit, slope = 0;
    }
    if (p.up_softcap > 0) {
        const Act capped = softcapped(u, p.up_softcap);
        u = capped.value;
        slope *= capped.slope;
    }
    return {u + p.up_offset, slope};
}

__device__ __forceinline__ float hidden(const ActivationParams &p, float gate, float up) {
    return gate_side(p, gate, false).value * up_side(p, up).value;
}
__device__ __forceinline__ float hidden(const ActivationParams &p, float up) {
    return gate_side(p, up, true).value;
}

// Adds the terms of the gradients of xielu's two parameters: da v^2 where v > 0, else
// da (expm1(min(v, eps)) - v). da is the gradient of the activation's value; v and a are those of
// gate_side.
__device__ __forceinline__ void xielu_terms(const ActivationParams &p, float gate, bool plain,
                                            float grad, float &positive, float &negative) {
    float v = p.gate_multiplier * gate;
    if (!plain && p.clamp == kClampPre && v > p.limit) v = p.limit;
    if (!plain && p.clamp == kClampPost && xielu(p, v).value > p.limit) grad = 0;
    positive += v > 0 ? grad * v * v : 0;
    negative += v > 0 ? 0 : grad * (expm1f(v > p.eps ? p.eps : v) - v);
}

} // namespace ffncore::cuda
