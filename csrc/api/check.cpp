// Validates arguments and converts them to the structs of ops; see check.h.
#include "check.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>

#include "../kernels/math64.h"
#include "../ops/packing/coded.h"

namespace ffncore {

namespace {

// Longer sentences are cut. They occur with long values of environment variables.
constexpr size_t kSentence = 512;
thread_local char sentence[kSentence];

// At most 2^40 in one dimension and 2^57 elements. With both limits, the bytes of twice the
// elements (gate and up), padded to panels, 8 bytes each, stay below 2^62. Python has the second
// limit, too.
constexpr int64_t kMaxLength = int64_t(1) << 40, kMaxElements = int64_t(1) << 57;

void check_tokens(const ffncore_matrix &x, int64_t d) {
    require(x.rows >= 0 && x.cols == d,
            "x has shape (%" PRId64 ", %" PRId64 "); expected (T, %" PRId64 ") to match weights.up",
            x.rows, x.cols, d);
    check_sizes("x", x.rows, d);
}

bool is_narrow(int32_t dtype) { return dtype == FFNCORE_BFLOAT16 || dtype == FFNCORE_FLOAT16; }

// The dtype of weights has to be x's, or a 16-bit one with a float32 x.
void check_weights_dtype(const char *name, int32_t dtype, int32_t x) {
    check_dtype(name, dtype);
    require(dtype == x || (x == FFNCORE_FLOAT32 && is_narrow(dtype)),
            "%s has dtype %s; expected %s to match x", name, dtype_name(dtype), dtype_name(x));
}

} // namespace

// ---- failures

const char *last_error() noexcept { return sentence; }

ffncore_status fail(ffncore_status status, const char *format, ...) noexcept {
    va_list values;
    va_start(values, format);
    std::vsnprintf(sentence, kSentence, format, values);
    va_end(values);
    return status;
}

void require(bool holds, const char *format, ...) {
    if (holds) return;
    va_list values;
    va_start(values, format);
    std::vsnprintf(sentence, kSentence, format, values);
    va_end(values);
    throw Refused{FFNCORE_INVALID_ARGUMENT};
}

ffncore_status failure() noexcept {
    try {
        throw;
    } catch (const Refused &refused) {
        return refused.status;
    } catch (const std::bad_alloc &) {
        return fail(FFNCORE_OUT_OF_MEMORY, "out of memory");
    } catch (const std::length_error &) { // a container larger than any memory
        return fail(FFNCORE_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &e) {
        return fail(FFNCORE_UNSUPPORTED, "the system refused: %s", e.what());
    } catch (...) {
        return fail(FFNCORE_UNSUPPORTED, "an unknown failure");
    }
}

// ---- checks

const char *dtype_name(int32_t dtype) {
    constexpr const char *kNames[] = {"float32", "float64", "bfloat16", "float16"};
    return dtype >= 0 && dtype < kElements ? kNames[dtype] : "unknown";
}

void check_dtype(const char *name, int32_t dtype) {
    require(dtype >= 0 && dtype < kElements,
            "%s is %" PRId32 "; expected FFNCORE_FLOAT32, _FLOAT64, _BFLOAT16 or _FLOAT16", name,
            dtype);
}

void check_same_dtype(const char *name, int32_t dtype, int32_t expected) {
    require(dtype == expected, "%s has dtype %s; expected %s", name, dtype_name(dtype),
            dtype_name(expected));
}

void check_number(const char *name, int32_t dtype, int32_t primal) {
    require(dtype == primal || (is_narrow(primal) && dtype == FFNCORE_FLOAT32),
            "%s has dtype %s; expected %s%s", name, dtype_name(dtype), dtype_name(primal),
            is_narrow(primal) ? " or float32" : "");
}

void check_size(const char *name, size_t given, size_t expected) {
    require(given == expected, "%s.size is %zu; expected sizeof, %zu", name, given, expected);
}

void check_sizes(const char *name, int64_t rows, int64_t cols) {
    int64_t elements = 0;
    const bool fits = rows >= 0 && cols >= 0 && rows <= kMaxLength && cols <= kMaxLength &&
                      !__builtin_mul_overflow(rows, cols, &elements) && elements <= kMaxElements;
    require(fits,
            "%s has shape (%" PRId64 ", %" PRId64
            "); expected from 0 to 2^40 in each dimension, and at most 2^57 elements",
            name, rows, cols);
}

void check_matrix(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols) {
    require(m.data || rows == 0 || cols == 0,
            "%s is absent; expected shape (%" PRId64 ", %" PRId64 ")", name, rows, cols);
    require(m.rows == rows && m.cols == cols,
            "%s has shape (%" PRId64 ", %" PRId64 "); expected (%" PRId64 ", %" PRId64 ")", name,
            m.rows, m.cols, rows, cols);
}

void check_vector(const char *name, const ffncore_vector &v, int64_t length) {
    require(!v.data || v.length == length, "%s has length %" PRId64 "; expected %" PRId64, name,
            v.length, length);
}

ActivationParams activation_params(const ffncore_activation &a, bool gated) {
    check_size("activation", a.size, sizeof a);
    require(a.kind >= FFNCORE_IDENTITY && a.kind <= FFNCORE_XIELU,
            "activation.kind is %" PRId32 "; expected 0 to 12", a.kind);
    require(a.clamp >= FFNCORE_CLAMP_NONE && a.clamp <= FFNCORE_CLAMP_POST,
            "activation.clamp is %" PRId32 "; expected 0, 1 or 2", a.clamp);
    require(gated || (a.clamp == FFNCORE_CLAMP_NONE && a.up_offset == 0 && a.up_softcap == 0),
            "activation: limit, up_offset and up_softcap belong to gated blocks");
    require(a.clamp == FFNCORE_CLAMP_NONE || a.limit > 0,
            "activation.limit is %g; expected a number above 0", a.limit);
    require(a.gate_softcap >= 0 && a.up_softcap >= 0,
            "activation has softcaps of %g and %g; expected no negative number", a.gate_softcap,
            a.up_softcap);
    ActivationParams p{};
    p.kind = a.kind;
    p.clamp = a.clamp;
    p.limit = a.limit;
    p.alpha = a.alpha;
    p.up_offset = a.up_offset;
    p.gate_softcap = a.gate_softcap;
    p.up_softcap = a.up_softcap;
    p.gate_multiplier = a.gate_multiplier;
    p.negative_slope = a.negative_slope;
    if (a.kind == FFNCORE_XIELU) { // only for xielu, as a softplus takes 30 ns
        p.xielu_p = math64::softplus(a.alpha_p);
        p.xielu_n = a.beta + math64::softplus(a.alpha_n);
    }
    p.beta = a.beta;
    p.eps = a.eps;
    return p;
}

PackedHeader packed_header(const char *name, const void *packed) {
    PackedHeader header;
    std::memcpy(&header, packed, sizeof header);
    require(header.magic == kPackedMagic, "%s was not written by ffncore_pack", name);
    return header;
}

// ---- conversions

Output gradient(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols,
                int32_t primal) {
    if (!m.data) return {};
    check_matrix(name, m, rows, cols);
    check_number(name, m.dtype, primal);
    return output(m);
}
Output gradient(const char *name, const ffncore_vector &v, int64_t length, int32_t primal) {
    if (!v.data) return {};
    check_vector(name, v, length);
    check_number(name, v.dtype, primal);
    return output(v);
}

template <class T> Weights<T> weight_shapes(const ffncore_weights &w, int32_t dtype) {
    check_size("weights", w.size, sizeof w);
    const int64_t f = w.up.rows, d = w.up.cols;
    require(f > 0 && d > 0,
            "weights.up has shape (%" PRId64 ", %" PRId64 "); expected at least (1, 1)", f, d);
    check_sizes("weights.up", f, d);
    Weights<T> out;
    out.d = d;
    out.f = f;
    out.gated = is_gated(w);
    check_dtype("weights.up.dtype", w.up.dtype);
    out.type = Element(w.up.dtype);
    if (w.packed) {
        out.packed_up = out.packed_down = static_cast<const char *>(w.packed);
        return out;
    }
    check_weights_dtype("weights.up", w.up.dtype, dtype);
    check_matrix("weights.up", w.up, f, d);
    check_matrix("weights.down", w.down, d, f);
    check_same_dtype("weights.down", w.down.dtype, out.type);
    if (out.gated) {
        check_matrix("weights.gate", w.gate, f, d);
        check_same_dtype("weights.gate", w.gate.dtype, out.type);
    }
    require(out.gated || !w.b_gate.data, "weights.b_gate is given, but weights.gate is not");
    auto bias = [&](const char *name, const ffncore_vector &v, int64_t length) {
        check_vector(name, v, length);
        if (v.data) check_number(name, v.dtype, out.type);
    };
    bias("weights.b_gate", w.b_gate, f);
    bias("weights.b_up", w.b_up, f);
    bias("weights.b_down", w.b_down, d);
    out.gate = input(w.gate);
    out.up = input(w.up);
    out.down = input(w.down);
    return out;
}

template <class T>
Weights<T> weights_of(const ffncore_weights &w, int32_t dtype, Biases<T> &biases) {
    Weights<T> out = weight_shapes<T>(w, dtype);
    if (w.packed) {
        const auto *const coded = static_cast<const CodedHeader *>(w.packed);
        const bool is_coded = coded->packed.magic == kCodedMagic;
        if (is_coded) require(consistent(*coded), "weights.packed was not written by ffncore");
        const PackedHeader h = is_coded ? coded->packed : packed_header("weights.packed", w.packed);
        check_weights_dtype("weights.packed", int32_t(h.dtype), dtype);
        require(h.d == out.d && h.f == out.f && (h.gated != 0) == out.gated,
                "weights.packed holds weights of another shape than weights.up");
        const char *const bytes = static_cast<const char *>(w.packed);
        return is_coded ? coded_view<T>(bytes) : packed_view<T>(bytes);
    }
    out.b_gate = biases.contiguous(w.b_gate);
    out.b_up = biases.contiguous(w.b_up);
    out.b_down = biases.contiguous(w.b_down);
    return out;
}

template <class T>
ForwardGroup<T> forward_group(const ffncore_forward_args &a, const Weights<T> &w, bool run) {
    check_tokens(a.x, w.d);
    check_sizes("the hidden state", a.x.rows, w.f);
    if (run && a.x.rows > 0) {
        require(a.x.data, "x.data is NULL");
        check_matrix("y", a.y, a.x.rows, w.d);
        check_same_dtype("y", a.y.dtype, a.x.dtype);
    }
    return {w, a.x.rows, input(a.x), output(a.y), static_cast<char *>(a.saved)};
}

template <class T>
BackwardGroup<T> backward_group(const ffncore_backward_args &a, const Weights<T> &w, bool run) {
    check_tokens(a.x, w.d);
    check_sizes("the hidden state", a.x.rows, w.f);
    if (run && a.x.rows > 0) {
        require(a.x.data, "x.data is NULL");
        check_matrix("grad_y", a.grad_y, a.x.rows, w.d);
        check_same_dtype("grad_y", a.grad_y.dtype, a.x.dtype);
    }
    require(w.gated || (!a.grad_gate.data && !a.grad_b_gate.data),
            "grad_gate or grad_b_gate is given, but the block is plain");
    BackwardGroup<T> g{};
    g.weights = w;
    g.tokens = a.x.rows;
    g.x = input(a.x);
    g.grad_y = input(a.grad_y);
    g.saved = static_cast<const char *>(a.saved);
    g.accumulate = a.accumulate;
    g.grad_x = gradient("grad_x", a.grad_x, g.tokens, w.d, a.x.dtype);
    g.grad_gate = gradient("grad_gate", a.grad_gate, w.f, w.d, w.type);
    g.grad_up = gradient("grad_up", a.grad_up, w.f, w.d, w.type);
    g.grad_down = gradient("grad_down", a.grad_down, w.d, w.f, w.type);
    g.grad_b_gate = gradient("grad_b_gate", a.grad_b_gate, w.f, w.type);
    g.grad_b_up = gradient("grad_b_up", a.grad_b_up, w.f, w.type);
    g.grad_b_down = gradient("grad_b_down", a.grad_b_down, w.d, w.type);
    g.xielu = a.activation.kind == FFNCORE_XIELU && (a.grad_alpha_p || a.grad_alpha_n);
    return g;
}

template <class T> Elementwise<T> elementwise(const ffncore_activation_args &a, bool backward) {
    const int64_t rows = a.up.rows, cols = a.up.cols;
    check_sizes("up", rows, cols);
    const auto check = [&](const char *name, const ffncore_matrix &m) {
        check_matrix(name, m, rows, cols);
        check_same_dtype(name, m.dtype, a.up.dtype);
    };
    check("up", a.up);
    if (a.gate.data) check("gate", a.gate);
    Elementwise<T> e{};
    e.rows = rows;
    e.cols = cols;
    e.gate = input(a.gate);
    e.up = input(a.up);
    if (!backward) {
        check("h", a.h);
        e.h = output(a.h);
        return e;
    }
    check("grad_h", a.grad_h);
    e.grad_h = input(a.grad_h);
    if (a.gate.data) e.grad_gate = gradient("grad_gate", a.grad_gate, rows, cols, a.up.dtype);
    e.grad_up = gradient("grad_up", a.grad_up, rows, cols, a.up.dtype);
    e.xielu = a.activation.kind == FFNCORE_XIELU && (a.grad_alpha_p || a.grad_alpha_n);
    return e;
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template Weights<T> weight_shapes<T>(const ffncore_weights &, int32_t);                        \
    template Weights<T> weights_of<T>(const ffncore_weights &, int32_t, Biases<T> &);              \
    template ForwardGroup<T> forward_group<T>(const ffncore_forward_args &, const Weights<T> &,    \
                                              bool);                                               \
    template BackwardGroup<T> backward_group<T>(const ffncore_backward_args &, const Weights<T> &, \
                                                bool);                                             \
    template Elementwise<T> elementwise<T>(const ffncore_activation_args &, bool);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
