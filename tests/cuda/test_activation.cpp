// Tests activations, their derivatives and the gradients of a hidden unit against formulas in
// double.
#include "../../csrc/cuda/activation.cuh"
#include "support.h"

namespace {

double capped(double v, double c) { return c > 0 ? c * std::tanh(v / c) : v; }
double logistic(double v) { return 1 / (1 + std::exp(-v)); }

double value(const ActivationParams &p, double v) {
    switch (p.kind) {
    case kRelu:
        return std::fmax(v, 0);
    case kRelu2:
        return std::fmax(v, 0) * std::fmax(v, 0);
    case kGelu:
        return v * std::erfc(-v / std::sqrt(2.)) / 2;
    case kGeluTanh:
        return v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))) / 2;
    case kQuickGelu:
        return capped(v, p.gate_softcap) * logistic(1.702 * v);
    case kSilu:
        return capped(v, p.gate_softcap) * logistic(p.alpha * v);
    case kSigmoid:
        return logistic(v);
    case kTanh:
        return std::tanh(v);
    case kMish:
        return v * std::tanh(std::log1p(std::exp(v)));
    case kHardswish:
        return v * std::fmin(std::fmax(v + 3, 0), 6) / 6;
    case kLeakyRelu:
        return v >= 0 ? v : p.negative_slope * v;
    case kXielu:
        return v > 0 ? p.xielu_p * v * v + p.beta * v
                     : p.xielu_n * (std::expm1(std::fmin(v, p.eps)) - v) + p.beta * v;
    default:
        return v;
    }
}

double hidden_unit(const ActivationParams &p, double gate, double up, bool plain) {
    double v = p.gate_multiplier * (plain ? up : gate);
    if (!plain && p.clamp == kClampPre) v = std::fmin(v, p.limit);
    double a = value(p, v);
    if (plain) return a;
    if (p.clamp == kClampPost) a = std::fmin(a, p.limit);
    double u = up;
    if (p.clamp != kClampNone) u = std::fmin(std::fmax(u, -p.limit), p.limit);
    return a * (capped(u, p.up_softcap) + p.up_offset);
}

ActivationParams params(int kind) {
    ActivationParams p{};
    p.kind = kind;
    p.alpha = p.gate_multiplier = 1;
    p.negative_slope = 0.1f, p.xielu_p = 0.8f, p.xielu_n = 0.9f, p.beta = 0.5f, p.eps = -1e-6f;
    return p;
}

// gate and up go over a grid that stays away from kinks by more than the step of the differences.
void test_options(const ActivationParams &p) {
    constexpr double kStep = 1e-5;
    int wrong = 0;
    for (double gate = -9.37; gate < 10; gate += 0.71)
        for (double up = -4.13; up < 5; up += 0.77)
            for (const bool plain : {false, true}) {
                if (plain && p.clamp + p.up_softcap + p.up_offset != 0) continue;
                const float g = (float)gate, u = (float)up;
                const double expected = hidden_unit(p, g, u, plain);
                const float h = plain ? hidden(p, u) : hidden(p, g, u);
                const Side a = gate_side(p, plain ? u : g, plain), b = up_side(p, u);
                const double by_gate =
                    (plain ? hidden_unit(p, 0, u + kStep, true) - hidden_unit(p, 0, u - kStep, true)
                           : hidden_unit(p, g + kStep, u, false) -
                                 hidden_unit(p, g - kStep, u, false)) /
                    (2 * kStep);
                const double by_up =
                    (hidden_unit(p, g, u + kStep, false) - hidden_unit(p, g, u - kStep, false)) /
                    (2 * kStep);
                const double scale = 1e-6 * (1 + std::fabs(expected));
                wrong += !(std::fabs(h - expected) < 2 * scale);
                const double slope = a.slope * (plain ? 1 : b.value);
                wrong += !(std::fabs(slope - by_gate) < 1e-5 * (1 + std::fabs(by_gate)));
                if (!plain)
                    wrong +=
                        !(std::fabs(a.value * b.slope - by_up) < 1e-5 * (1 + std::fabs(by_up)));
            }
    if (wrong) std::printf("kind %d: %d\n", p.kind, wrong);
    CHECK(wrong == 0);
}

void test_ends() {
    const float big = 200, inf = INFINITY;
    for (int kind = kIdentity; kind <= kXielu; ++kind) {
        const ActivationParams p = params(kind);
        for (float v : {-big, -90.f, 0.f, 90.f, big}) {
            const Act a = activate(p, v);
            CHECK(std::isfinite(a.value) && std::isfinite(a.slope));
        }
        const Act nan = activate(p, NAN);
        CHECK(std::isnan(nan.value));
        CHECK(kind == kIdentity || std::isnan(nan.slope));
    }
    CHECK(activate(params(kSilu), inf).value == inf && activate(params(kSilu), inf).slope == 1);
    CHECK(activate(params(kSigmoid), -inf).value == 0 && activate(params(kTanh), inf).slope == 0);
}

} // namespace

int main() {
    for (int kind = kIdentity; kind <= kXielu; ++kind) test_options(params(kind));
    ActivationParams p = params(kSilu);
    p.alpha = 1.702f, p.clamp = kClampPre, p.limit = 3.5f, p.up_offset = 1;
    test_options(p); // gpt-oss
    p.clamp = kClampPost;
    test_options(p);
    p = params(kSilu);
    p.gate_softcap = 5, p.up_softcap = 3, p.gate_multiplier = 0.7f;
    test_options(p);
    test_ends();
    return finish();
}
