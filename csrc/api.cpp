// The C ABI: validate, turn plain structs into the engine's, run, turn failures into a status and a
// sentence. Python has checked its arguments already, in its own words; these checks are for
// embedders. FFNCORE_VERBOSE=1 prints a line a call here.
#include "include/ffncore.h"

#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "core/threads.h"
#include "core/workspace.h"
#include "kernels/math64.h"
#include "ops/elementwise.h"
#include "ops/ffn.h"

using namespace ffncore;

namespace {

thread_local std::string last_error;

ffncore_status fail(ffncore_status status, const std::string &sentence) {
    last_error = sentence;
    return status;
}
ffncore_status invalid(const std::string &sentence) {
    return fail(FFNCORE_INVALID_ARGUMENT, sentence);
}

template <class T> Matrix<T> matrix(const ffncore_matrix &m) {
    return {(T *)m.data, m.row_stride, m.col_stride};
}
template <class T> Matrix<T> vector(const ffncore_vector &v) { return {(T *)v.data, v.stride, 0}; }

std::string shape(const ffncore_matrix &m) {
    return "(" + std::to_string(m.rows) + ", " + std::to_string(m.cols) + ")";
}

// Throws the sentence; the entry points turn it into a status.
struct Problem {
    std::string sentence;
};
void require(bool holds, const std::string &sentence) {
    if (!holds)
        throw Problem{sentence};
}
void require_shape(const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols) {
    require(m.data && m.rows == rows && m.cols == cols,
            std::string(name) + " has shape " + (m.data ? shape(m) : "(absent)") + "; expected (" +
                std::to_string(rows) + ", " + std::to_string(cols) + ")");
}
void require_length(const char *name, const ffncore_vector &v, int64_t length) {
    require(!v.data || v.length == length,
            std::string(name) + " has length " + std::to_string(v.length) + "; expected " +
                std::to_string(length));
}

int64_t element_size(int32_t dtype) {
    require(dtype == FFNCORE_FLOAT32 || dtype == FFNCORE_FLOAT64,
            "dtype is " + std::to_string(dtype) + "; expected FFNCORE_FLOAT32 or FFNCORE_FLOAT64");
    return dtype == FFNCORE_FLOAT32 ? 4 : 8;
}

// Chooses the element type once: run(T()) for float or double.
template <class Run> auto with_dtype(int32_t dtype, const Run &run) {
    element_size(dtype);
    return dtype == FFNCORE_FLOAT32 ? run(float()) : run(double());
}

const KernelTable &table() {
    const KernelTable *t = current_isa();
    if (!t)
        throw fail(FFNCORE_UNSUPPORTED, isa_problem());
    return *t;
}
const Kernels<float> &kernels(float) { return table().f32; }
const Kernels<double> &kernels(double) { return table().f64; }

void check_size(const char *name, size_t given, size_t expected) {
    require(given == expected, std::string(name) + ".size is " + std::to_string(given) +
                                   "; expected sizeof, " + std::to_string(expected));
}

ActivationParams activation_params(const ffncore_activation &a, bool gated) {
    check_size("activation", a.size, sizeof a);
    require(a.kind >= FFNCORE_IDENTITY && a.kind <= FFNCORE_XIELU,
            "activation.kind is " + std::to_string(a.kind) + "; expected 0 to 12");
    require(a.clamp >= FFNCORE_CLAMP_NONE && a.clamp <= FFNCORE_CLAMP_POST,
            "activation.clamp is " + std::to_string(a.clamp) + "; expected 0, 1 or 2");
    require(gated || (a.clamp == FFNCORE_CLAMP_NONE && a.up_offset == 0 && a.up_softcap == 0),
            "activation: limit, up_offset and up_softcap belong to gated blocks");
    require(a.clamp == FFNCORE_CLAMP_NONE || a.limit > 0, "activation.limit must be positive");
    require(a.gate_softcap >= 0 && a.up_softcap >= 0, "activation: softcaps must not be negative");
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
    p.xielu_p = math64::softplus(a.alpha_p);
    p.xielu_n = a.beta + math64::softplus(a.alpha_n);
    p.beta = a.beta;
    p.eps = a.eps;
    return p;
}

// Waking a sleeping thread costs the caller up to 10 us, so work below 20 us stays on one thread:
// at 80 G multiply-adds a second, or 20 GB a second of weights.
constexpr double kAloneMultiplyAdds = 1.6e6, kAloneBytes = 0.4e6;

template <class T>
Call<T> call_of(const ffncore_activation &a, bool gated, int64_t tokens, const Weights<T> &w) {
    const double weights = (double)w.d * (double)w.f * (gated ? 3 : 2);
    const bool alone =
        weights * (double)tokens < kAloneMultiplyAdds && weights * sizeof(T) < kAloneBytes;
    return {kernels(T()), activation_params(a, gated), alone ? 1 : num_threads(), l2_bytes()};
}

// Biases of any stride, as the kernels want them: contiguous.
template <class T> class Biases {
  public:
    const T *contiguous(const ffncore_vector &v) {
        if (!v.data || v.stride == 1)
            return (const T *)v.data;
        copies_.emplace_back(v.length);
        for (int64_t i = 0; i < v.length; ++i)
            copies_.back()[i] = ((const T *)v.data)[i * v.stride];
        return copies_.back().data();
    }

  private:
    std::vector<std::vector<T>> copies_;
};

bool is_gated(const ffncore_weights &w) { return w.packed ? w.gate.rows > 0 : w.gate.data != nullptr; }

PackedHeader read_header(const void *packed) {
    PackedHeader header;
    std::memcpy(&header, packed, sizeof header);
    require(header.magic == kPackedMagic, "weights.packed is not what ffncore_pack wrote");
    return header;
}

template <class T> Weights<T> weights_of(const ffncore_weights &w, Biases<T> &biases) {
    check_size("weights", w.size, sizeof w);
    const int64_t f = w.up.rows, d = w.up.cols;
    require(f > 0 && d > 0, "weights.up has shape " + shape(w.up) + "; expected at least (1, 1)");
    if (w.packed) {
        const PackedHeader h = read_header(w.packed);
        require(h.dtype == (sizeof(T) == 4 ? FFNCORE_FLOAT32 : FFNCORE_FLOAT64) && h.d == d &&
                    h.f == f && (h.gated != 0) == (w.gate.rows > 0),
                "weights.packed was packed with another dtype or shape");
        return packed_view<T>((const char *)w.packed);
    }
    require_shape("weights.up", w.up, f, d);
    require_shape("weights.down", w.down, d, f);
    if (w.gate.data)
        require_shape("weights.gate", w.gate, f, d);
    else
        require(!w.b_gate.data, "weights.b_gate is given, but weights.gate is not");
    require_length("weights.b_gate", w.b_gate, f);
    require_length("weights.b_up", w.b_up, f);
    require_length("weights.b_down", w.b_down, d);
    Weights<T> out;
    out.d = d;
    out.f = f;
    out.gated = w.gate.data;
    out.gate = matrix<const T>(w.gate);
    out.up = matrix<const T>(w.up);
    out.down = matrix<const T>(w.down);
    out.b_gate = biases.contiguous(w.b_gate);
    out.b_up = biases.contiguous(w.b_up);
    out.b_down = biases.contiguous(w.b_down);
    return out;
}

template <class T>
ForwardGroup<T> forward_group(const ffncore_forward_args &a, Biases<T> &biases, bool run) {
    check_size("args", a.size, sizeof a);
    ForwardGroup<T> g{};
    g.weights = weights_of<T>(a.weights, biases);
    g.tokens = a.x.rows;
    require(a.x.cols == g.weights.d, "x has shape " + shape(a.x) + "; expected (T, " +
                                         std::to_string(g.weights.d) + ") to match weights.up");
    if (run && g.tokens > 0) {
        require(a.x.data, "x.data is NULL");
        require_shape("y", a.y, g.tokens, g.weights.d);
    }
    g.x = matrix<const T>(a.x);
    g.y = matrix<T>(a.y);
    g.saved = (T *)a.saved;
    return g;
}

template <class T>
BackwardGroup<T> backward_group(const ffncore_backward_args &a, Biases<T> &biases, bool run) {
    check_size("args", a.size, sizeof a);
    BackwardGroup<T> g{};
    g.weights = weights_of<T>(a.weights, biases);
    const int64_t d = g.weights.d, f = g.weights.f;
    g.tokens = a.x.rows;
    require(a.x.cols == d, "x has shape " + shape(a.x) + "; expected (T, " + std::to_string(d) +
                               ") to match weights.up");
    auto gradient = [&](const char *name, const ffncore_matrix &m, int64_t rows, int64_t cols) {
        if (m.data && run)
            require_shape(name, m, rows, cols);
        return matrix<T>(m);
    };
    auto bias = [&](const char *name, const ffncore_vector &v, int64_t length) {
        require_length(name, v, length);
        return vector<T>(v);
    };
    if (run && g.tokens > 0) {
        require(a.x.data, "x.data is NULL");
        require_shape("grad_y", a.grad_y, g.tokens, d);
    }
    require(g.weights.gated || (!a.grad_gate.data && !a.grad_b_gate.data),
            "grad_gate is asked for, but the block is plain");
    g.x = matrix<const T>(a.x);
    g.grad_y = matrix<const T>(a.grad_y);
    g.saved = (const T *)a.saved;
    g.accumulate = a.accumulate;
    g.grad_x = g.tokens > 0 ? gradient("grad_x", a.grad_x, g.tokens, d) : Matrix<T>{};
    g.grad_gate = gradient("grad_gate", a.grad_gate, f, d);
    g.grad_up = gradient("grad_up", a.grad_up, f, d);
    g.grad_down = gradient("grad_down", a.grad_down, d, f);
    g.grad_b_gate = bias("grad_b_gate", a.grad_b_gate, f);
    g.grad_b_up = bias("grad_b_up", a.grad_b_up, f);
    g.grad_b_down = bias("grad_b_down", a.grad_b_down, d);
    g.xielu = a.activation.kind == FFNCORE_XIELU && (a.grad_alpha_p || a.grad_alpha_n);
    return g;
}

template <class T> void zero(const Matrix<T> &m, int64_t rows, int64_t cols) {
    for (int64_t i = 0; m.data && i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j)
            m.data[i * m.row + j * m.col] = 0;
}

// sums are those behind the gradients of alpha_p and alpha_n (see ActBackwardArgs).
void xielu_gradients(const double (&sums)[2], const ffncore_activation &a, bool accumulate,
                     double *grad_p, double *grad_n) {
    auto put = [&](double *to, double value) {
        if (to)
            *to = accumulate ? *to + value : value;
    };
    put(grad_p, sums[0] * math64::sigmoid(a.alpha_p));
    put(grad_n, sums[1] * math64::sigmoid(a.alpha_n));
}

// One line a call, with the time of the call.
class Line {
  public:
    Line(const char *op, int32_t dtype, const PlanRequest &request)
        : op_(op), dtype_(dtype), request_(request), start_(std::chrono::steady_clock::now()) {}
    ~Line() {
        const double ms =
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
                .count();
        const Plan plan = make_plan(request_);
        std::fprintf(stderr,
                     "ffncore %s %s %s tokens=%" PRId64 " d=%" PRId64 " f=%" PRId64
                     " isa=%s threads=%d plan=%s,%" PRId64 "x%" PRId64 " %.3f ms\n",
                     op_, dtype_ == FFNCORE_FLOAT32 ? "float32" : "float64",
                     request_.gated ? "gated" : "plain", request_.tokens, request_.d, request_.f,
                     current_isa()->name, num_threads(), request_.rows ? "rows" : "panels",
                     plan.token_chunk, plan.ff_chunk, ms);
    }

  private:
    const char *op_;
    int32_t dtype_;
    PlanRequest request_;
    std::chrono::steady_clock::time_point start_;
};

// Every struct that comes in by pointer is tested once, here.
template <class Body, class... Pointers>
ffncore_status guarded(const Body &body, const Pointers *...pointers) {
    try {
        require((... && pointers), "an argument is NULL");
        return body();
    } catch (const Problem &p) {
        return invalid(p.sentence);
    } catch (ffncore_status status) {
        return status;
    } catch (const std::bad_alloc &) {
        return fail(FFNCORE_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &e) {
        return invalid(e.what());
    }
}

ffncore_status done(bool ran) {
    return ran ? FFNCORE_OK : fail(FFNCORE_OUT_OF_MEMORY, "out of memory for the workspace");
}

template <class T> ffncore_status forward(const ffncore_forward_args &a) {
    Biases<T> biases;
    const std::vector<ForwardGroup<T>> groups{forward_group<T>(a, biases, true)};
    const Call<T> call = call_of<T>(a.activation, groups[0].weights.gated, groups[0].tokens, groups[0].weights);
    if (groups[0].tokens == 0)
        return FFNCORE_OK;
    if (!verbose())
        return done(ffn_forward(call, groups));
    const Line line("ffn_forward", a.dtype, forward_request(call, groups[0]));
    return done(ffn_forward(call, groups));
}

template <class T> ffncore_status backward(const ffncore_backward_args &a) {
    Biases<T> biases;
    std::vector<BackwardGroup<T>> groups{backward_group<T>(a, biases, true)};
    BackwardGroup<T> &g = groups[0];
    const Call<T> call = call_of<T>(a.activation, g.weights.gated, g.tokens, g.weights);
    bool ran = true;
    if (g.tokens > 0) {
        if (verbose()) {
            const Line line("ffn_backward", a.dtype, backward_request(call, g));
            ran = ffn_backward(call, groups);
        } else {
            ran = ffn_backward(call, groups);
        }
    } else if (!g.accumulate) {
        const int64_t d = g.weights.d, f = g.weights.f;
        zero(g.grad_gate, f, d);
        zero(g.grad_up, f, d);
        zero(g.grad_down, d, f);
        zero(g.grad_b_gate, f, 1);
        zero(g.grad_b_up, f, 1);
        zero(g.grad_b_down, d, 1);
    }
    if (ran && g.xielu)
        xielu_gradients(g.xielu_sums, a.activation, g.accumulate, a.grad_alpha_p, a.grad_alpha_n);
    return done(ran);
}

template <class T> Call<T> elementwise_call(const ffncore_activation_args &a) {
    return {kernels(T()), activation_params(a.activation, a.gate.data), num_threads(), l2_bytes()};
}

template <class T> Matrix<const T> readable(const Matrix<T> &m) { return {m.data, m.row, m.col}; }

template <class T> Elementwise<T> elementwise(const ffncore_activation_args &a, bool back) {
    check_size("args", a.size, sizeof a);
    const int64_t rows = a.up.rows, cols = a.up.cols;
    auto same = [&](const char *name, const ffncore_matrix &m) {
        require(m.rows == rows && m.cols == cols, std::string(name) + " has shape " + shape(m) +
                                                      "; expected " + shape(a.up) +
                                                      " to match up");
        return matrix<T>(m);
    };
    Elementwise<T> e{};
    e.rows = rows;
    e.cols = cols;
    e.up = readable(same("up", a.up));
    if (a.gate.data)
        e.gate = readable(same("gate", a.gate));
    if (!back) {
        e.h = same("h", a.h);
        return e;
    }
    e.grad_h = readable(same("grad_h", a.grad_h));
    e.grad_up = same("grad_up", a.grad_up);
    if (a.gate.data)
        e.grad_gate = same("grad_gate", a.grad_gate);
    e.xielu = a.activation.kind == FFNCORE_XIELU && (a.grad_alpha_p || a.grad_alpha_n);
    return e;
}

template <class Request, class Groups>
void fill_cost(ffncore_cost &c, const Request &request, int64_t workspace, const Groups &g) {
    const Plan plan = make_plan(request);
    c.token_chunk = plan.token_chunk;
    c.ff_chunk = plan.ff_chunk;
    c.token_slice = plan.token_slice;
    c.extra_bytes = workspace;
    c.tokens_in_rows = request.rows;
    c.activations = (double)g.tokens * (double)g.weights.f;
}

PackedHeader header_of(int32_t dtype, const ffncore_weights &w) {
    return {kPackedMagic, dtype, w.up.cols, w.up.rows, is_gated(w), w.b_gate.data != nullptr,
            w.b_up.data != nullptr, w.b_down.data != nullptr};
}

} // namespace

const char *ffncore_version(void) {
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
    return TEXT(FFNCORE_VERSION_MAJOR) "." TEXT(FFNCORE_VERSION_MINOR) "." TEXT(
        FFNCORE_VERSION_PATCH);
}

const char *ffncore_last_error(void) { return last_error.c_str(); }

void ffncore_activation_init(ffncore_activation *a, int32_t kind) {
    *a = ffncore_activation{};
    a->size = sizeof *a;
    a->kind = kind;
    a->alpha = 1;
    a->gate_multiplier = 1;
    a->negative_slope = 0.01;
    // Apertus' initial values: softplus gives 0.8 and 0.8 - beta.
    a->alpha_p = 0.20330741325172826;
    a->alpha_n = -1.0502256128148466;
    a->beta = 0.5;
    a->eps = -1e-6;
}

ffncore_status ffncore_ffn_forward(const ffncore_forward_args *args) {
    return guarded([&] {
        return with_dtype(args->dtype, [&](auto t) { return forward<decltype(t)>(*args); });
    }, args);
}

ffncore_status ffncore_ffn_backward(const ffncore_backward_args *args) {
    return guarded([&] {
        return with_dtype(args->dtype, [&](auto t) { return backward<decltype(t)>(*args); });
    }, args);
}

ffncore_status ffncore_activation_forward(const ffncore_activation_args *args) {
    return guarded([&] {
        return with_dtype(args->dtype, [&](auto t) {
            using T = decltype(t);
            const Elementwise<T> e = elementwise<T>(*args, false);
            return done(activation_forward(elementwise_call<T>(*args), e));
        });
    }, args);
}

ffncore_status ffncore_activation_backward(const ffncore_activation_args *args) {
    return guarded([&] {
        return with_dtype(args->dtype, [&](auto t) {
            using T = decltype(t);
            Elementwise<T> e = elementwise<T>(*args, true);
            const bool ran =
                activation_backward(elementwise_call<T>(*args), e);
            if (ran && e.xielu)
                xielu_gradients(e.xielu_sums, args->activation, false, args->grad_alpha_p,
                                args->grad_alpha_n);
            return done(ran);
        });
    }, args);
}

int64_t ffncore_saved_bytes(int32_t dtype, int64_t tokens, int64_t d_ff, int32_t gated) {
    const int64_t size = dtype == FFNCORE_FLOAT64 ? 8 : 4;
    return saved_elements(tokens, d_ff, gated) * size;
}

ffncore_status ffncore_forward_cost(const ffncore_forward_args *a, int32_t packed,
                                    ffncore_cost *cost) {
    return guarded([&] {
        check_size("cost", cost->size, sizeof *cost);
        return with_dtype(a->dtype, [&](auto t) {
            using T = decltype(t);
            Biases<T> biases;
            std::vector<ForwardGroup<T>> groups{forward_group<T>(*a, biases, false)};
            ForwardGroup<T> &g = groups[0];
            const Call<T> call = call_of<T>(a->activation, g.weights.gated, g.tokens, g.weights);
            if (packed) // only whether they are packed is looked at
                g.weights.packed_up = g.weights.packed_down = (const T *)a->weights.up.data;
            const double weights = (double)g.weights.d * g.weights.f * (g.weights.gated ? 3 : 2);
            fill_cost(*cost, forward_request(call, g), workspace_forward(call, groups), g);
            cost->flops = 2 * weights * (double)g.tokens;
            cost->bytes = weights * sizeof(T);
            return FFNCORE_OK;
        });
    }, a, cost);
}

ffncore_status ffncore_backward_cost(const ffncore_backward_args *a, ffncore_cost *cost) {
    return guarded([&] {
        check_size("cost", cost->size, sizeof *cost);
        return with_dtype(a->dtype, [&](auto t) {
            using T = decltype(t);
            Biases<T> biases;
            std::vector<BackwardGroup<T>> groups{backward_group<T>(*a, biases, false)};
            const BackwardGroup<T> &g = groups[0];
            const Call<T> call = call_of<T>(a->activation, g.weights.gated, g.tokens, g.weights);
            const bool gated = g.weights.gated;
            const bool dh = g.grad_x.data || g.grad_gate.data || g.grad_up.data ||
                            g.grad_b_gate.data || g.grad_b_up.data || g.xielu;
            const bool preactivation = dh || g.grad_down.data;
            const int sides = gated ? 2 : 1;
            const int products = (preactivation && !g.saved ? sides : 0) + (dh ? 1 : 0) +
                                 (g.grad_x.data ? sides : 0) + (g.grad_gate.data ? 1 : 0) +
                                 (g.grad_up.data ? 1 : 0) + (g.grad_down.data ? 1 : 0);
            const int written =
                (g.grad_gate.data ? 1 : 0) + (g.grad_up.data ? 1 : 0) + (g.grad_down.data ? 1 : 0);
            const int read = products - written;
            const double one = (double)g.weights.d * (double)g.weights.f;
            fill_cost(*cost, backward_request(call, g), workspace_backward(call, groups), g);
            cost->flops = 2 * one * products * (double)g.tokens;
            cost->bytes = one * (read + written) * sizeof(T);
            return FFNCORE_OK;
        });
    }, a, cost);
}

int64_t ffncore_packed_bytes(int32_t dtype, const ffncore_weights *w) {
    return PackedLayout(dtype == FFNCORE_FLOAT64 ? 8 : 4, header_of(dtype, *w)).bytes;
}

ffncore_status ffncore_pack(int32_t dtype, const ffncore_weights *w, void *packed) {
    return guarded([&] {
        return with_dtype(dtype, [&](auto t) {
            using T = decltype(t);
            Biases<T> biases;
            require(!w->packed, "weights are packed already");
            const Weights<T> weights = weights_of<T>(*w, biases);
            pack_weights(weights, header_of(dtype, *w), kernels(T()), (char *)packed);
            return FFNCORE_OK;
        });
    }, w, (char *)packed);
}

ffncore_status ffncore_unpack(int32_t dtype, const ffncore_weights *into, const void *packed) {
    return guarded([&] {
        return with_dtype(dtype, [&](auto t) {
            using T = decltype(t);
            const PackedHeader h = read_header(packed);
            require((h.dtype == FFNCORE_FLOAT32) == (sizeof(T) == 4) && h.f == into->up.rows &&
                        h.d == into->up.cols && (h.gated || !into->gate.data),
                    "packed has another dtype or shape");
            require((h.b_gate || !into->b_gate.data) && (h.b_up || !into->b_up.data) &&
                        (h.b_down || !into->b_down.data),
                    "packed has no such bias");
            const Matrix<T> m[3] = {matrix<T>(into->gate), matrix<T>(into->up),
                                    matrix<T>(into->down)};
            const Matrix<T> b[3] = {vector<T>(into->b_gate), vector<T>(into->b_up),
                                    vector<T>(into->b_down)};
            unpack_weights<T>((const char *)packed, m, b);
            return FFNCORE_OK;
        });
    }, into, (const char *)packed);
}

int32_t ffncore_isa_count(void) { return isa_count(); }
const char *ffncore_isa_name(int32_t i) {
    return i >= 0 && i < isa_count() ? isa_table(i)->name : nullptr;
}
const char *ffncore_isa_current(void) { return current_isa() ? current_isa()->name : nullptr; }
ffncore_status ffncore_isa_use(const char *name) {
    return guarded([&] {
        return use_isa(name) ? FFNCORE_OK : fail(FFNCORE_UNSUPPORTED, isa_problem());
    });
}
const char *ffncore_cpu_features(void) { return cpu_features(); }
const char *ffncore_build_info(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown compiler";
#endif
}

int32_t ffncore_num_threads(void) { return num_threads(); }
ffncore_status ffncore_set_num_threads(int32_t n) {
    if (n < 0)
        return invalid("the number of threads is " + std::to_string(n) + "; expected at least 0");
    set_num_threads(n);
    return FFNCORE_OK;
}
void ffncore_clear_workspace(void) { clear_workspace(); }

ffncore_status ffncore_debug_plan(int64_t token_chunk, int64_t ff_chunk, int64_t token_slice,
                                  int32_t rows) {
    plan_override = {token_chunk, ff_chunk, token_slice, rows};
    return FFNCORE_OK;
}
int64_t ffncore_debug_flops(void) { return counted_flops.exchange(0); }
