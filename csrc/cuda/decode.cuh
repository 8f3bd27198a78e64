// The forward pass of a layer for few tokens, which takes as long as reading the weights once.
//
//   decode_product  h[row][n] = act(x[line] W_gate[e][n] + b) (x[line] W_up[e][n] + b)
//                   y[t][n] = h[t] W_down[n] + b[n]                                     dense
//   decode_combine  y[t][n] = sum over s, in order, of w[t, s] (h[t k + s] W_down[e][n] + b[e][n])
//
// x, y [T, d]; gate, up [E, f, d]; down [E, d, f]; ids, weights [T, k]. In a dense layer the rows
// are the tokens. In a mixture they are the slots t k + s, with line = t and e = ids[t, s]; a slot
// without an expert adds nothing. With the weights on the input, x is w[t, s] x[t], rounded, and
// outputs are added without factors.
//
// A warp has a few columns, and its lanes go along k. So even one token has thousands of warps,
// which read whole lines of memory. In a dense layer a warp has all rows, and each weight is read
// once. In a mixture a warp has one slot, because few tokens rarely share an expert. Slots are
// neighbours in the grid, so that tokens that do share one find its weights in L2. A sum is a chain
// of fma in each lane, over k of that lane, then a tree over the lanes; its bits depend on neither
// the other rows nor the alignment.
#pragma once
#include "forward.cuh"

namespace ffncore::cuda {

// The most tokens of this path. An SM of sm_90 gets 15 to 20 bytes a cycle from memory, which are 8
// to 10 weights of 16 bits. Its 128 fma a cycle are enough for 12 to 16 rows with these. More rows
// are better computed by the tensor cores.
constexpr int kDecodeTokens = 16;

// Warps of a block. Blocks are small, so that SMs get equal shares even where each has few warps.
constexpr int kDecodeWarps = 4;

// Columns of a warp. Two columns share what is read of x, and still give a layer of 4096 outputs 15
// warps an SM. x comes from L1, at 128 bytes a cycle. With 8 rows or more, reading x would be the
// limit for two columns, so these have four.
template <bool gated, int rows> constexpr int kDecodeColumns = gated || rows < 8 ? 2 : 4;

// Loads of weights that a lane issues before it uses the first. The latency of memory times its
// bandwidth is about 25 KiB an SM: six warps of 8 x 32 x 16 bytes, and there are more warps. From 8
// rows on, the fma take as long as the loads of other warps, and the sums need the registers.
template <int rows> constexpr int kDecodeLoads = rows < 8 ? 8 : 4;

// Blocks that an SM has to have room for, which limits the registers of a thread: enough blocks to
// hide the latency, but no more than leave registers for the sums of so many rows. (Without this
// limit nvcc spills to fit one more block.)
template <int rows> constexpr int kDecodeBlocks = rows < 4 ? 4 : rows < 16 ? 3 : 2;

// The most warps of a block of decode_combine, which has a warp for each slot of a token, so that
// the weights of all its experts are loaded at once. Few mixtures choose more experts; then a warp
// takes several slots.
constexpr int kCombineWarps = 16;

template <class A, class W> struct Decode {
    int64_t tokens, experts;
    LayerRouting routing;
    Operand<A> x;    // or h
    Operand<W> w[2]; // gate and up, or one matrix
    int64_t columns, depth;

    __host__ __device__ unsigned slots() const { // 1 for a dense layer
        return routing.ids ? (unsigned)(tokens * routing.top_k) : 1;
    }
    __device__ __forceinline__ int64_t expert(int64_t slot) const { // -1: none
        if (!routing.ids) return 0;
        const int32_t id = routing.ids[slot];
        return id >= 0 && id < experts ? id : -1;
    }
};

// ---- a warp's sums

// Rows of x. Beyond the last row, the last one is read again, and its result is not written.
template <class A, int rows> struct DecodeRows {
    const A *first;
    int64_t stride;
    int last;
    float factor; // if there is one row; the product is rounded to A

    __device__ __forceinline__ const A *line(int r) const {
        return first + smaller(r, last) * stride;
    }
    __device__ __forceinline__ float read(A x) const {
        if constexpr (rows == 1) return rounded<A>(factor * number(x));
        return number(x);
    }
};

template <class T, int n> struct alignas(kChunkBytes) Chunk {
    T numbers[n];
};

// Adds whole chunks of k, from this lane's `first` on, `ahead` at a time: the weights of all of
// these are loaded before the first is used. The remaining chunks go in smaller steps.
template <int n, int ahead, int rows, int lines, class A, class W>
__device__ __forceinline__ void add_chunks(float (&sums)[rows][lines], const DecodeRows<A, rows> &x,
                                           const W *const (&w)[lines], int first, int chunks) {
    for (; first + (ahead - 1) * kWarp < chunks; first += ahead * kWarp) {
        Chunk<W, n> weights[ahead][lines];
#pragma unroll
        for (int j = 0; j < ahead; ++j)
#pragma unroll
            for (int i = 0; i < lines; ++i)
                weights[j][i] = *(const Chunk<W, n> *)(w[i] + int64_t(first + j * kWarp) * n);
#pragma unroll
        for (int j = 0; j < ahead; ++j) {
            const int64_t k = int64_t(first + j * kWarp) * n;
#pragma unroll
            for (int r = 0; r < rows; ++r) {
                const Chunk<A, n> row = *(const Chunk<A, n> *)(x.line(r) + k);
#pragma unroll
                for (int e = 0; e < n; ++e)
#pragma unroll
                    for (int i = 0; i < lines; ++i)
                        sums[r][i] = fmaf(x.read(row.numbers[e]), number(weights[j][i].numbers[e]),
                                          sums[r][i]);
            }
        }
    }
    if constexpr (ahead > 1) add_chunks<n, ahead / 2>(sums, x, w, first, chunks);
}

// Adds single numbers: this lane's k of all chunks from `first` on.
template <int n, int rows, int lines, class A, class W>
__device__ __forceinline__ void add_numbers(float (&sums)[rows][lines],
                                            const DecodeRows<A, rows> &x,
                                            const W *const (&w)[lines], int first, int64_t depth) {
    const int64_t mine = first + (threadIdx.x - first) % kWarp;
    for (int64_t k0 = mine * n; k0 < depth; k0 += kWarp * n)
        for (int64_t k = k0; k < smaller(k0 + n, depth); ++k)
#pragma unroll
            for (int r = 0; r < rows; ++r)
#pragma unroll
                for (int i = 0; i < lines; ++i)
                    sums[r][i] = fmaf(x.read(x.line(r)[k]), number(w[i][k]), sums[r][i]);
}

// sums[0] becomes the sum over all lanes of row lane / (32 / rows). The tree is that of sum_lanes.
// But as long as a lane has several rows, it keeps one half of them and sends the other half to its
// partner (with half == 0, both halves are the one row). So 16 x 4 sums take 64 shuffles instead of
// 320, and all rows can be written at once.
template <int rows, int lines>
__device__ __forceinline__ void sum_rows_over_lanes(float (&sums)[rows][lines]) {
    static_assert((rows & (rows - 1)) == 0 && rows <= kWarp);
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const int half = rows * step / kWarp;
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int r = 0; r < rows; ++r) // the end must not depend on step, or nvcc does not unroll
#pragma unroll
            for (int i = 0; i < lines && r < (half ? half : 1); ++i) {
                const float low = sums[r][i], high = sums[r + half][i];
                sums[r][i] =
                    (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, step);
            }
    }
}

// The products of rows of x with the columns of the expert from col on, of one matrix or two.
// Beyond the last column, the last one is read again, and its result is not written.
template <int columns, int rows, int lines, class A, class W>
__device__ __forceinline__ void warp_products(float (&sums)[rows][lines], const Decode<A, W> &p,
                                              const DecodeRows<A, rows> &x, int64_t expert,
                                              int64_t col) {
    constexpr int n = kChunkBytes / sizeof(W);
    const W *w[lines];
    bool aligned = p.x.aligned;
#pragma unroll
    for (int i = 0; i < lines; ++i) {
        const Operand<W> &all = p.w[i / columns];
        w[i] = all.of_group(expert).line(smaller(col + i % columns, p.columns - 1));
        aligned = aligned && all.aligned;
    }
#pragma unroll
    for (int r = 0; r < rows; ++r)
#pragma unroll
        for (int i = 0; i < lines; ++i) sums[r][i] = 0;
    const int chunks = aligned ? (int)(p.depth / n) : 0;
    add_chunks<n, kDecodeLoads<rows> / lines>(sums, x, w, (int)threadIdx.x % kWarp, chunks);
    add_numbers<n>(sums, x, w, chunks, p.depth);
    sum_rows_over_lanes(sums);
}

// ---- kernels

// In a mixture, rows is 1.
template <class A, class W, bool gated, int rows, class Epilogue>
__global__ void __launch_bounds__(kDecodeWarps *kWarp, kDecodeBlocks<rows>)
    decode_product(Decode<A, W> p, Epilogue all) {
    constexpr int columns = kDecodeColumns<gated, rows>, lines = gated ? 2 * columns : columns;
    constexpr int lanes = kWarp / rows; // lanes that have the sums of one row in the end
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const bool mixture = p.routing.ids;
    const unsigned slots = p.slots(), slot = blockIdx.x % slots;
    const int64_t col = ((int64_t)(blockIdx.x / slots) * kDecodeWarps + warp) * columns;
    const int64_t expert = p.expert(slot);
    if (col >= p.columns || expert < 0) return;

    const unsigned token = slot / (unsigned)p.routing.top_k, s = slot - token * p.routing.top_k;
    const float factor = mixture && p.routing.on_input ? *p.routing.weights.at(token, s) : 1;
    float sums[rows][lines];
    warp_products<columns>(
        sums, p, DecodeRows<A, rows>{p.x.line(token), p.x.stride, (int)p.tokens - 1, factor},
        expert, col);

    const int64_t row = mixture ? slot : lane / lanes;
    if (lane % lanes != 0 || row >= (mixture ? slots : p.tokens)) return;
    const Epilogue write = all.of(expert);
    if constexpr (gated) {
        const float gate[] = {sums[0][0], sums[0][1]}, up[] = {sums[0][2], sums[0][3]};
        write(row, col, gate, up);
    } else {
        write(row, col, sums[0]);
    }
}

// A block has one token and two columns. Its shared memory holds the outputs of each warp, and
// their factor.
template <class A, class W>
__global__ void __launch_bounds__(kCombineWarps *kWarp, 1)
    decode_combine(Decode<A, W> p, Bias bias, Matrix<A> y) {
    constexpr int columns = kDecodeColumns<false, 1>;
    const int thread = threadIdx.x, warp = thread / kWarp, warps = blockDim.x / kWarp;
    const unsigned token = blockIdx.x % (unsigned)p.tokens;
    const int64_t col = (int64_t)(blockIdx.x / (unsigned)p.tokens) * columns;
    const int64_t top_k = p.routing.top_k;
    float (*const outputs)[columns + 1] = (float (*)[columns + 1]) shared_memory();

    float sum = 0;
    for (int64_t first = 0; first < top_k; first += warps) {
        const int64_t s = first + warp, slot = token * top_k + s;
        const int64_t expert = s < top_k ? p.expert(slot) : -1;
        float sums[1][columns] = {}, factor = 0;
        if (expert >= 0) {
            warp_products<columns>(sums, p, DecodeRows<A, 1>{p.x.line(slot), 0, 0, 1}, expert, col);
            factor = p.routing.on_input ? 1 : *p.routing.weights.at(token, s);
#pragma unroll
            for (int i = 0; i < columns; ++i)
                sums[0][i] += bias.of(expert).at(smaller(col + i, p.columns - 1));
        }
        if (thread % kWarp == 0) {
#pragma unroll
            for (int i = 0; i < columns; ++i) outputs[warp][i] = sums[0][i];
            outputs[warp][columns] = factor;
        }
        __syncthreads();
        if (thread < columns)
            for (int i = 0; i < warps; ++i) // a slot without an expert adds 0 * 0
                sum = fmaf(outputs[i][columns], outputs[i][thread], sum);
        __syncthreads();
    }
    if (thread < columns && col + thread < p.columns) put(y.at(token, col + thread), sum);
}

// ---- launching

template <bool gated, int rows, class A, class W, class Epilogue>
void launch_decode_product(const Decode<A, W> &p, const Epilogue &epilogue, cudaStream_t stream) {
    constexpr int64_t columns = kDecodeWarps * kDecodeColumns<gated, rows>; // of a block
    launch(decode_product<A, W, gated, rows, Epilogue>, {ceil_div(p.columns, columns) * p.slots()},
           kDecodeWarps * kWarp, 0, stream, p, epilogue);
}

// In a dense layer, `rows` becomes the smallest power of two that is at least the number of tokens.
template <int rows, class A, class W>
void launch_decode(const LayerForward<A> &layer, const Operand<A> &x, const LayerWeights<W> &w,
                   A *h, cudaStream_t stream) {
    const LayerRouting &routing = layer.routing;
    if constexpr (rows < kDecodeTokens)
        if (!routing.ids && layer.tokens > rows)
            return launch_decode<2 * rows>(layer, x, w, h, stream);

    const HiddenEpilogue<A> hidden{layer.act, w.b_gate, w.b_up, rows_of(h, w.f), {}, {}, w.f};
    Decode<A, W> p{layer.tokens, w.experts, routing, x, {w.up, {}}, w.f, w.d};
    if (w.gated) {
        p.w[0] = w.gate, p.w[1] = w.up;
        launch_decode_product<true, rows>(p, hidden, stream);
    } else {
        launch_decode_product<false, rows>(p, hidden, stream);
    }

    p = {layer.tokens, w.experts, routing, operand_of<A>(h, w.f), {w.down, {}}, w.d, w.f};
    if (!routing.ids) {
        launch_decode_product<false, rows>(p, StoreEpilogue<A>{layer.y, w.b_down, w.d, false},
                                           stream);
    } else if constexpr (rows == 1) {
        constexpr int columns = kDecodeColumns<false, 1>;
        const int warps = (int)smaller<int64_t>(routing.top_k, kCombineWarps);
        launch(decode_combine<A, W>, {ceil_div<int64_t>(w.d, columns) * layer.tokens},
               warps * kWarp, warps * (columns + 1) * (int)sizeof(float), stream, p, w.b_down,
               layer.y);
    }
}

// As layer_forward, for at most kDecodeTokens tokens and weights with contiguous rows; layer.saved
// is nullptr.
template <class A, class W>
void decode_forward(const LayerForward<A> &layer, const LayerWeights<W> &w, Arena &arena,
                    cudaStream_t stream) {
    const int64_t rows = layer.tokens * (layer.routing.ids ? layer.routing.top_k : 1);
    const Operand<A> x = contiguous(layer.x, layer.tokens, w.d, arena, stream);
    A *const h = arena.take<A>(rows * w.f);
    if (arena.counts() || rows == 0) return;
    launch_decode<1>(layer, x, w, h, stream);
}

} // namespace ffncore::cuda
