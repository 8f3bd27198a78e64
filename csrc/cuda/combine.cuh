// What a mixture does around its products. Each kernel reads and writes every number once:
//
//   take_slots       token[row] = slot / k, factor[row] = w[slot], with slot = slots[row]
//   gather_rows      to[row] = factor[row] x[token[row]], rounded: for the weight on the input;
//                    without tokens and factors it makes a copy whose rows are contiguous
//   combine_rows     y[t] = sum over slots s, in order, of w[t, s] rows[place[t, s]]
//   sum_rows         b[g][c] (+)= sum over the rows of a group of w[row] m[row][c]: for biases
//   dot_rows         dots[row] = <a[row], b[token[row]]>
//   factor_gradient  dw[slot] = sum of the row's parts, + <dy[token], b_down[expert]>
//
// Sums run in a fixed order, in float, and are rounded once. Rows are moved eight columns at a
// time, so that a thread loads 16 bytes of 16-bit elements at once.
#pragma once
#include "epilogue.cuh"
#include "scheduler.cuh"

namespace ffncore::cuda {

constexpr int kRowThreads = 256; // threads of a block that goes along a row

// Calls body(c, count) for this thread's columns, eight at a time; count is how many there are from
// c.
template <class Body> __device__ __forceinline__ void along_row(int64_t columns, Body body) {
    for (int64_t c = threadIdx.x * kRun; c < columns; c += blockDim.x * kRun) body(c, columns - c);
}

struct Slots {
    const int32_t *slots; // [rows], in the order of the experts
    const int32_t *place; // [T * k]
    int64_t top_k;
    Matrix<const float> weights; // [T, k]
    __device__ float weight(int64_t slot) const { return *weights.at(slot / top_k, slot % top_k); }
};

template <int = 0>
__global__ void take_slots(Slots s, Groups groups, int32_t *tokens, float *factors) {
    const int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= groups.end(groups.count - 1)) return;
    tokens[row] = (int32_t)(s.slots[row] / s.top_k);
    factors[row] = s.weight(s.slots[row]);
}

// tokens == nullptr: row i is token i; factors == nullptr: all are 1.
template <class T>
__global__ void gather_rows(const int32_t *tokens, const float *factors, Groups groups,
                            Matrix<const T> x, Matrix<T> to, int64_t columns) {
    const int64_t row = blockIdx.x;
    if (row >= groups.end(groups.count - 1)) return;
    const int64_t token = tokens ? tokens[row] : row;
    const float factor = factors ? factors[row] : 1;
    along_row(columns, [&](int64_t c, int64_t count) {
        float run[kRun];
        read_run(run, x, token, c, count);
#pragma unroll
        for (int e = 0; e < kRun; ++e) run[e] *= factor;
        write_run(to, row, c, count, run);
    });
}

// factors == nullptr: all are 1. add: the old number of y is added last.
template <class T, class Row>
__global__ void combine_rows(const int32_t *place, int64_t top_k, Matrix<const Row> rows,
                             const float *factors, Matrix<T> y, int64_t columns, bool add) {
    const int64_t token = blockIdx.x;
    along_row(columns, [&](int64_t c, int64_t count) {
        float sum[kRun] = {}, run[kRun];
        for (int64_t s = 0; s < top_k; ++s) {
            const int32_t row = place[token * top_k + s];
            if (row < 0) continue;
            const float factor = factors ? factors[row] : 1;
            read_run(run, rows, row, c, count);
#pragma unroll
            for (int e = 0; e < kRun; ++e) sum[e] = fmaf(factor, run[e], sum[e]);
        }
        if (add) {
            read_run(run, to_read(y), token, c, count);
#pragma unroll
            for (int e = 0; e < kRun; ++e) sum[e] += run[e];
        }
        write_run(y, token, c, count, sum);
    });
}

// Warps of a block, which sums 32 columns. Each warp sums every eighth row, so that several rows
// are loaded at the same time; then the sums of the warps are added in order. lines: the rows of m
// for the rows of the group; nullptr: they are the same.
constexpr int kSumWarps = 8;

template <class T, class Out>
__global__ void sum_rows(Groups groups, Matrix<const T> m, const int32_t *lines,
                         const float *factors, Matrix<Out> to, int64_t columns, bool add) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int64_t group = blockIdx.y, c = (int64_t)blockIdx.x * kWarp + lane;
    float *const of_warps = (float *)shared_memory();
    float sum = 0;
    if (c < columns)
        for (int64_t r = groups.begin(group) + warp; r < groups.end(group); r += kSumWarps)
            sum = fmaf(factors ? factors[r] : 1.f, number(*m.at(lines ? lines[r] : r, c)), sum);
    of_warps[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || c >= columns) return;
    for (int i = 1; i < kSumWarps; ++i) sum += of_warps[i * kWarp + lane];
    Out *out = to.of(group).at(0, c);
    put(out, add ? number(*out) + sum : sum);
}

// One warp for each row.
template <class T>
__global__ void dot_rows(Groups groups, Matrix<const T> a, const int32_t *lines, Matrix<const T> b,
                         int64_t columns, float *dots) {
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (row >= groups.end(groups.count - 1)) return;
    const int lane = threadIdx.x % kWarp;
    float sum = 0;
    for (int64_t c = lane; c < columns; c += kWarp)
        sum = fmaf(number(*a.at(row, c)), number(*b.at(lines[row], c)), sum);
    sum = sum_lanes<kWarp>(sum);
    if (lane == 0) dots[row] = sum;
}

template <class T, class Out>
void launch_sum_rows(const Groups &groups, const Matrix<const T> &m, const int32_t *lines,
                     const float *factors, const Matrix<Out> &to, int64_t columns, bool add,
                     cudaStream_t stream) {
    constexpr int threads = kSumWarps * kWarp;
    launch(sum_rows<T, Out>, {ceil_div<int64_t>(columns, kWarp), groups.count}, threads,
           threads * (int)sizeof(float), stream, groups, m, lines, factors, to, columns, add);
}

// The total of sums [rows][parts] over all rows, in double. The warps of kSumBlocks blocks make a
// sum each (sum_parts), and one warp adds these (finish_sum).
constexpr int kSumBlocks = 64, kSumThreads = 256;
constexpr int kSumParts = kSumBlocks * kSumThreads / kWarp;

template <int = 0>
__global__ void sum_parts(Groups groups, const float *sums, int64_t parts, double *to) {
    const int64_t count = groups.end(groups.count - 1) * parts;
    const int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    for (int64_t i = thread; i < count; i += (int64_t)kSumBlocks * kSumThreads) sum += sums[i];
    sum = sum_lanes<kWarp>(sum);
    if (thread % kWarp == 0) to[thread / kWarp] = sum;
}
template <int = 0>
__global__ void finish_sum(const double *parts, double factor, double *to, bool add) {
    double sum = 0;
    for (int i = threadIdx.x; i < kSumParts; i += kWarp) sum += parts[i];
    sum = factor * sum_lanes<kWarp>(sum);
    if (threadIdx.x == 0) *to = add ? *to + sum : sum;
}

// One warp for each slot. dots is [rows][parts]. The gradient of a slot without an expert is 0.
template <class T>
__global__ void factor_gradient(const int32_t *place, int64_t slots, int64_t top_k,
                                Matrix<const float> dots, int64_t parts, const int32_t *ids,
                                Bias b_down, Matrix<const T> grad_y, int64_t d, Matrix<float> to,
                                bool add) {
    const int64_t slot = (int64_t)blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (slot >= slots) return;
    const int lane = threadIdx.x % kWarp;
    const int32_t row = place[slot];
    float sum = 0;
    if (row >= 0) {
        for (int64_t i = lane; i < parts; i += kWarp) sum += *dots.at(row, i);
        const Bias bias = b_down.of(ids[slot]);
        for (int64_t c = lane; bias.data && c < d; c += kWarp)
            sum = fmaf(number(*grad_y.at(slot / top_k, c)), bias.at(c), sum);
    }
    sum = sum_lanes<kWarp>(sum);
    float *out = to.at(slot / top_k, slot % top_k);
    if (lane == 0) *out = add ? *out + sum : sum;
}

} // namespace ffncore::cuda
