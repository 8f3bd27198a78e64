// Sorts the slots of all tokens into rows in the order of their experts. No atomics are used, so
// the order is the same in every run.
//
//   ids [T * k]    the expert of each slot; an id outside 0 ... E - 1 is no expert
//   offsets [E + 1], first_tile [E + 1]    where an expert's rows and tiles begin (scheduler.cuh)
//   slots [rows]   the slot of each row, rising within an expert
//   place [T * k]  the row of each slot, or -1
//
// There are four kernels. count_experts: a warp counts the experts of kPart slots. scan_parts: a
// warp for each expert adds up its counts, part by part. scan_experts: one warp adds up the
// experts. place_slots: the warps of the first kernel go through their slots again, 32 at a time;
// lanes with the same expert find each other by __match_any_sync, and are ordered by their lane.
#pragma once
#include "device.cuh"

namespace ffncore::cuda {

// Slots of a warp. With fewer, the array of counts [E][parts] would be larger; with more, the loop
// of a warp would be longer.
constexpr int64_t kPart = 256;

struct Permutation {
    const int32_t *ids;
    int64_t slots_in; // T * k
    int64_t experts;
    int64_t tile_height;
    int32_t *counts; // [experts][parts]; scan_parts turns counts into each part's first row
    int32_t *offsets, *first_tile, *slots, *place;

    __host__ __device__ int64_t parts() const { return ceil_div(slots_in, kPart); }
    __device__ int32_t expert(int64_t slot) const {
        const int32_t id = ids[slot];
        return id >= 0 && id < experts ? id : -1;
    }
};

// The rank of a lane among the lanes with the same expert, and the number of these lanes.
struct Rank {
    int rank, count;
};
__host__ __device__ constexpr Rank rank_of(unsigned same, int lane) {
    Rank r{0, 0};
    for (int i = 0; i < kWarp; ++i) {
        const int one = same >> i & 1;
        r.rank += i < lane ? one : 0;
        r.count += one;
    }
    return r;
}

// Calls body(slot, expert, lanes with the same expert) for the slots of a warp in order. All lanes
// take part in each step.
template <class Body> __device__ __forceinline__ void for_slots(const Permutation &p, Body body) {
    const int64_t first = (int64_t)blockIdx.x * kPart, lane = threadIdx.x;
    for (int64_t i = 0; i < kPart; i += kWarp) {
        const int64_t slot = first + i + lane;
        const int32_t expert = slot < p.slots_in ? p.expert(slot) : -1;
        body(slot, expert, __match_any_sync(kAllLanes, expert));
        __syncwarp();
    }
}

template <int = 0> __global__ void count_experts(Permutation p) {
    int32_t *const mine = p.counts + blockIdx.x;
    const int64_t parts = p.parts();
    for (int64_t e = threadIdx.x; e < p.experts; e += kWarp) mine[e * parts] = 0;
    __syncwarp();
    for_slots(p, [&](int64_t, int32_t expert, unsigned same) {
        const Rank r = rank_of(same, threadIdx.x);
        if (expert >= 0 && r.rank == 0) mine[expert * parts] += r.count;
    });
}

// The sum over this lane and the lanes before it.
__device__ __forceinline__ int32_t scan_lanes(int32_t x) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const int32_t before = __shfl_sync(kAllLanes, x, lane >= step ? lane - step : lane);
        if (lane >= step) x += before;
    }
    return x;
}

// One warp for each expert. The number of rows of expert e goes to offsets[e + 1].
constexpr int kScanWarps = 4; // warps of a block
template <int = 0> __global__ void scan_parts(Permutation p) {
    const int64_t e = (int64_t)blockIdx.x * kScanWarps + threadIdx.x / kWarp, parts = p.parts();
    if (e >= p.experts) return;
    int32_t *const mine = p.counts + e * parts;
    int32_t rows = 0;
    for (int64_t first = 0; first < parts; first += kWarp) {
        const int64_t i = first + threadIdx.x % kWarp;
        const int32_t count = i < parts ? mine[i] : 0, sum = scan_lanes(count);
        if (i < parts) mine[i] = rows + sum - count;
        rows += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
    if (threadIdx.x % kWarp == 0) p.offsets[e + 1] = rows;
}

template <int = 0> __global__ void scan_experts(Permutation p) {
    int32_t row = 0, tile = 0;
    if (threadIdx.x == 0) p.offsets[0] = p.first_tile[0] = 0;
    for (int64_t first = 0; first < p.experts; first += kWarp) {
        const int64_t e = first + threadIdx.x;
        const int32_t rows = e < p.experts ? p.offsets[e + 1] : 0;
        const int32_t last_row = row + scan_lanes(rows);
        const int32_t last_tile =
            tile + scan_lanes((int32_t)ceil_div<int64_t>(rows, p.tile_height));
        if (e < p.experts) p.offsets[e + 1] = last_row, p.first_tile[e + 1] = last_tile;
        row = __shfl_sync(kAllLanes, last_row, kWarp - 1);
        tile = __shfl_sync(kAllLanes, last_tile, kWarp - 1);
    }
}

template <int = 0> __global__ void place_slots(Permutation p) {
    int32_t *const next = p.counts + blockIdx.x;
    const int64_t parts = p.parts();
    for_slots(p, [&](int64_t slot, int32_t expert, unsigned same) {
        const Rank r = rank_of(same, threadIdx.x);
        const int32_t row = expert >= 0 ? p.offsets[expert] + next[expert * parts] + r.rank : -1;
        __syncwarp();
        if (expert >= 0 && r.rank == 0) next[expert * parts] += r.count;
        if (slot >= p.slots_in) return;
        p.place[slot] = row;
        if (row >= 0) p.slots[row] = (int32_t)slot;
    });
}

inline int64_t permutation_counts(int64_t slots, int64_t experts) { // elements of `counts`
    return ceil_div(slots, kPart) * experts;
}

inline void launch_permutation(const Permutation &p, cudaStream_t stream) {
    launch(count_experts<>, {p.parts()}, kWarp, 0, stream, p);
    launch(scan_parts<>, {ceil_div<int64_t>(p.experts, kScanWarps)}, kScanWarps * kWarp, 0, stream,
           p);
    launch(scan_experts<>, {1}, kWarp, 0, stream, p);
    launch(place_slots<>, {p.parts()}, kWarp, 0, stream, p);
}

} // namespace ffncore::cuda
