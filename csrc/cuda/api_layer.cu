// The C ABI of layers: validates the arguments and turns them into those of the passes. See
// ffncore_cuda.h.
#include "check.h"
#include "passes.cuh"

namespace ffncore::cuda {
namespace {

// The expert ids of a mixture without tokens, where the pointer may be NULL. A pointer that is not
// NULL marks a mixture.
constexpr int32_t kNoIds[1] = {-1};

// Whether the lines of an operand (operand.cuh) can be the rows of [rows, cols], or its columns.
struct Lines {
    bool rows, columns;
};
Lines lines_of(const char *name, const ffncore_matrix &m) {
    const Lines lines{m.col_stride == 1 || m.cols == 1, m.row_stride == 1 || m.rows == 1};
    FFNCORE_REQUIRE(lines.rows || lines.columns,
                    "%s has strides (%" PRId64 ", %" PRId64 "); expected one of them to be 1", name,
                    m.row_stride, m.col_stride);
    return lines;
}
template <class W> Operand<W> lines(const ffncore_matrix &m, bool by_columns, int64_t group) {
    return operand_of((const W *)m.data, by_columns ? m.col_stride : m.row_stride, group);
}

// Validates the arguments that both passes share, and converts them.
template <class Args> struct Sizes {
    const ffncore_weights &first;
    const int64_t tokens, d, f, experts, top_k; // top_k 0: dense
    const bool gated;

    explicit Sizes(const Args &a)
        : first(a.experts.first), tokens(a.x.rows), d(first.up.cols), f(first.up.rows),
          experts(a.experts.count), top_k(a.routing_weights.cols), gated(first.gate.data) {
        check_struct("experts", a.experts.size, sizeof a.experts);
        check_struct("weights", first.size, sizeof first);
        FFNCORE_REQUIRE(!first.packed, "weights are packed; expected matrices on a GPU");
        check_dtype("x", a.x.dtype);
        check_dtype("weights.up", first.up.dtype);
        FFNCORE_REQUIRE(first.up.dtype == a.x.dtype || a.x.dtype == FFNCORE_FLOAT32,
                        "weights.up has dtype %s; expected %s to match x",
                        dtype_name(first.up.dtype), dtype_name(a.x.dtype));
        FFNCORE_REQUIRE(f > 0 && d > 0,
                        "weights.up has shape (%" PRId64 ", %" PRId64 "); expected at least (1, 1)",
                        f, d);
        check_sizes("weights.up", f, d);
        FFNCORE_REQUIRE(experts >= 1 && experts <= kMaxExperts,
                        "experts.count is %" PRId64 "; expected from 1 to %" PRId64, experts,
                        kMaxExperts);
        FFNCORE_REQUIRE(tokens >= 0 && a.x.cols == d,
                        "x has shape (%" PRId64 ", %" PRId64 "); expected (T, %" PRId64
                        ") to match weights.up",
                        tokens, a.x.cols, d);
        check_matrix("x", a.x, tokens, d);
        const bool ids = a.expert_ids;
        FFNCORE_REQUIRE(top_k >= 0 && (top_k > 0 ? ids || tokens == 0 : !ids),
                        "routing_weights has %" PRId64 " columns and expert_ids is %s; expected "
                        "both (a mixture) or none (a dense layer)",
                        top_k, ids ? "given" : "NULL");
        FFNCORE_REQUIRE(top_k > 0 || experts == 1,
                        "experts.count is %" PRId64 " without expert_ids; expected 1", experts);
        FFNCORE_REQUIRE(top_k == 0 || tokens <= kMaxRows / top_k,
                        "%" PRId64 " tokens x %" PRId64
                        " slots are too many; expected fewer than 2^31",
                        tokens, top_k);
        check_sizes("x", rows(), d);
        check_sizes("the hidden state", rows(), f);
        if (top_k > 0) {
            check_matrix("routing_weights", a.routing_weights, tokens, top_k);
            check_same_dtype("routing_weights", a.routing_weights.dtype, FFNCORE_FLOAT32);
        }
    }
    int64_t rows() const { return tokens * (top_k > 0 ? top_k : 1); }

    LayerRouting routing(const Args &a) const {
        if (top_k == 0) return {};
        return {a.expert_ids ? a.expert_ids : kNoIds, top_k,
                matrix_of<const float>(a.routing_weights), a.weight_on_input != 0};
    }

    template <class W> LayerWeights<W> weights(const ffncore_experts &all) const {
        const int32_t dtype = first.up.dtype;
        LayerWeights<W> w;
        w.experts = experts, w.d = d, w.f = f;
        w.gated = gated;
        check_matrix("weights.up", first.up, f, d);
        check_matrix("weights.down", first.down, d, f);
        check_same_dtype("weights.down", first.down.dtype, dtype);
        Lines up = lines_of("weights.up", first.up);
        const Lines down = lines_of("weights.down", first.down);
        if (gated) {
            check_matrix("weights.gate", first.gate, f, d);
            check_same_dtype("weights.gate", first.gate.dtype, dtype);
            const Lines gate = lines_of("weights.gate", first.gate);
            up = {up.rows && gate.rows, up.columns && gate.columns};
            FFNCORE_REQUIRE(up.rows || up.columns,
                            "one of weights.gate and weights.up has contiguous rows, the other "
                            "contiguous columns; expected the same of both");
        } else {
            FFNCORE_REQUIRE(!first.b_gate.data, "weights.b_gate is given without weights.gate");
        }
        w.up_by_columns = !up.rows, w.down_by_columns = !down.rows;
        w.up = lines<W>(first.up, w.up_by_columns, all.up_stride);
        w.down = lines<W>(first.down, w.down_by_columns, all.down_stride);
        w.b_up = bias("weights.b_up", first.b_up, f, all.b_up_stride, dtype);
        w.b_down = bias("weights.b_down", first.b_down, d, all.b_down_stride, dtype);
        if (!gated) return w;
        w.gate = lines<W>(first.gate, w.up_by_columns, all.gate_stride);
        w.b_gate = bias("weights.b_gate", first.b_gate, f, all.b_gate_stride, dtype);
        return w;
    }
};

// Calls run(T(), W()) for the types of x and of the weights.
template <class Run> void with_types(int32_t x, int32_t weights, const Run &run) {
    if (x == FFNCORE_BFLOAT16)
        run(Bf16(), Bf16());
    else if (x == FFNCORE_FLOAT16)
        run(F16(), F16());
    else if (weights == FFNCORE_BFLOAT16)
        run(float(), Bf16());
    else if (weights == FFNCORE_FLOAT16)
        run(float(), F16());
    else
        run(float(), float());
}

template <class T, class W>
void forward(const ffncore_moe_forward_args &a, const Sizes<ffncore_moe_forward_args> &sizes,
             bool one_path, Arena &arena, cudaStream_t stream) {
    LayerForward<T> layer;
    layer.tokens = sizes.tokens;
    layer.x = matrix_of<const T>(a.x);
    check_matrix("y", a.y, sizes.tokens, sizes.d);
    check_same_dtype("y", a.y.dtype, a.x.dtype);
    layer.y = matrix_of<T>(a.y);
    layer.act = activation_params(a.activation, sizes.gated);
    layer.routing = sizes.routing(a);
    layer.saved = (T *)a.saved;
    run_forward(layer, sizes.template weights<W>(a.experts), one_path, arena, stream);
}

template <class T, class W>
void backward(const ffncore_moe_backward_args &a, const Sizes<ffncore_moe_backward_args> &sizes,
              Arena &arena, cudaStream_t stream) {
    const int64_t d = sizes.d, f = sizes.f;
    const ffncore_experts &g = a.grad_experts;
    const ffncore_weights &grad = g.first, &w = sizes.first;
    check_struct("grad_experts", g.size, sizeof g);
    FFNCORE_REQUIRE(sizes.gated || (!grad.gate.data && !grad.b_gate.data),
                    "a gradient of gate or b_gate is asked for, but the block is plain");
    check_matrix("grad_y", a.grad_y, sizes.tokens, d);
    check_same_dtype("grad_y", a.grad_y.dtype, a.x.dtype);
    LayerBackward<T> layer;
    layer.tokens = sizes.tokens;
    layer.x = matrix_of<const T>(a.x);
    layer.grad_y = matrix_of<const T>(a.grad_y);
    layer.act = activation_params(a.activation, sizes.gated);
    layer.routing = sizes.routing(a);
    layer.saved = (const T *)a.saved;
    layer.add = a.accumulate != 0;
    layer.grad_x = gradient("grad_x", a.grad_x, sizes.tokens, d, 0, a.x.dtype);
    if (a.grad_routing_weights.data) {
        check_matrix("grad_routing_weights", a.grad_routing_weights, sizes.tokens, sizes.top_k);
        check_same_dtype("grad_routing_weights", a.grad_routing_weights.dtype, FFNCORE_FLOAT32);
        layer.grad_weights = matrix_of<float>(a.grad_routing_weights);
    }
    const int32_t type = w.up.dtype;
    layer.grad_gate = gradient("grad_gate", grad.gate, f, d, g.gate_stride, type);
    layer.grad_up = gradient("grad_up", grad.up, f, d, g.up_stride, type);
    layer.grad_down = gradient("grad_down", grad.down, d, f, g.down_stride, type);
    layer.grad_b_gate = gradient("grad_b_gate", grad.b_gate, f, g.b_gate_stride, type);
    layer.grad_b_up = gradient("grad_b_up", grad.b_up, f, g.b_up_stride, type);
    layer.grad_b_down = gradient("grad_b_down", grad.b_down, d, g.b_down_stride, type);
    if (a.activation.kind == FFNCORE_XIELU) {
        layer.factor_p = logistic(a.activation.alpha_p), layer.grad_p = a.grad_alpha_p;
        layer.factor_n = logistic(a.activation.alpha_n), layer.grad_n = a.grad_alpha_n;
    }
    run_backward(layer, sizes.template weights<W>(a.experts), arena, stream);
}

// The passes, as functions of (sizes, arena, stream). With an arena that only counts, nothing runs,
// and the arena has the bytes that a pass needs.
auto forward_pass(const ffncore_moe_forward_args *args, const ffncore_cuda_call *call) {
    return [=](const auto &sizes, Arena &arena, cudaStream_t stream) {
        with_types(args->x.dtype, sizes.first.up.dtype, [&](auto t, auto w) {
            forward<decltype(t), decltype(w)>(*args, sizes, one_path(*call), arena, stream);
        });
    };
}
auto backward_pass(const ffncore_moe_backward_args *args) {
    return [=](const auto &sizes, Arena &arena, cudaStream_t stream) {
        with_types(args->x.dtype, sizes.first.up.dtype, [&](auto t, auto w) {
            backward<decltype(t), decltype(w)>(*args, sizes, arena, stream);
        });
    };
}

template <class Args> Sizes<Args> checked(const Args *args, const ffncore_cuda_call *call) {
    FFNCORE_REQUIRE(args, "args is NULL");
    check_struct("args", args->size, sizeof *args);
    check_call(call);
    return Sizes<Args>(*args);
}

template <class Args, class Pass>
int64_t workspace(const Args *args, const ffncore_cuda_call *call, const Pass &pass) {
    return guarded_or<int64_t>(-1, [&] {
        const Sizes<Args> sizes = checked(args, call);
        Arena counting;
        pass(sizes, counting, nullptr);
        return counting.used();
    });
}

template <class Args, class Pass>
ffncore_status run(const Args *args, const ffncore_cuda_call *call, const Pass &pass) {
    return guarded([&] {
        const Sizes<Args> sizes = checked(args, call);
        Arena counting;
        pass(sizes, counting, nullptr);
        const int64_t bytes = counting.used();
        FFNCORE_REQUIRE(bytes == 0 || (bytes <= call->workspace_bytes && call->workspace &&
                                       (uintptr_t)call->workspace % 256 == 0),
                        "call.workspace has %" PRId64 " bytes at %p; expected %" PRId64
                        " bytes at a multiple of 256",
                        call->workspace_bytes, call->workspace, bytes);
        queue(*call, [&](cudaStream_t stream) {
            if (sizes.top_k > 0)
                check_ids("expert_ids", args->expert_ids, sizes.top_k, sizes.tokens, sizes.top_k,
                          sizes.experts, stream);
            Arena arena(call->workspace);
            pass(sizes, arena, stream);
        });
    });
}

} // namespace
} // namespace ffncore::cuda

using namespace ffncore::cuda;

int64_t ffncore_cuda_forward_workspace(const ffncore_moe_forward_args *args,
                                       const ffncore_cuda_call *call) {
    return workspace(args, call, forward_pass(args, call));
}
ffncore_status ffncore_cuda_forward(const ffncore_moe_forward_args *args,
                                    const ffncore_cuda_call *call) {
    return run(args, call, forward_pass(args, call));
}
int64_t ffncore_cuda_backward_workspace(const ffncore_moe_backward_args *args,
                                        const ffncore_cuda_call *call) {
    return workspace(args, call, backward_pass(args));
}
ffncore_status ffncore_cuda_backward(const ffncore_moe_backward_args *args,
                                     const ffncore_cuda_call *call) {
    return run(args, call, backward_pass(args));
}

int64_t ffncore_cuda_saved_bytes(int32_t dtype, int64_t rows, int64_t d_ff, int32_t gated) {
    return guarded_or<int64_t>(-1, [&] {
        check_dtype("dtype", dtype);
        check_sizes("the hidden state", rows, d_ff);
        return rows * d_ff * (gated ? 2 : 1) * (is_narrow(dtype) ? 2 : 4);
    });
}
