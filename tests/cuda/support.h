// What the tests of the CUDA kernels share: arrays, groups, and how exact a result has to be.
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/cuda/epilogue.cuh"
#include "../../csrc/cuda/operand.cuh"
#include "../../csrc/cuda/scheduler.cuh"

using namespace ffncore::cuda;

namespace {

int failures = 0;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                            \
            ++failures;                                                                            \
        }                                                                                          \
    } while (0)

struct Partition {
    std::vector<int32_t> offsets{0}, first_tile{0};
    Partition(const std::vector<int> &counts, int height) {
        for (int n : counts) {
            offsets.push_back(offsets.back() + n);
            first_tile.push_back(first_tile.back() + ceil_div(n, height));
        }
    }
    Groups groups(int64_t height) const {
        return {offsets.data(), first_tile.data(), (int64_t)offsets.size() - 1, offsets.back(),
                height};
    }
};

std::mt19937 generator(7);

template <class T> struct Array {
    std::vector<T> data;
    int64_t stride, offset;
    // offset: where it begins, in elements from an aligned address.
    Array(int64_t lines, int64_t length, int64_t stride, int64_t offset)
        : data(offset + lines * stride + 16), stride(stride), offset(offset) {
        std::normal_distribution<float> normal;
        (void)length;
        for (T &x : data) put(&x, normal(generator));
        skip = (16 - (uintptr_t)data.data() % 16) % 16 / sizeof(T);
    }
    int64_t skip = 0;
    const T *begin() const { return data.data() + skip + offset; }
    double at(int64_t line, int64_t i) const { return number(begin()[line * stride + i]); }
    Operand<T> operand() const {
        const bool aligned = (uintptr_t)begin() % 16 == 0 && stride * sizeof(T) % 16 == 0;
        return {begin(), stride, nullptr, 0, aligned};
    }
};

// Outputs begin as NaN.
template <class T> struct Result {
    std::vector<T> data;
    int64_t cols;
    Result(int64_t rows, int64_t cols) : data(rows * cols), cols(cols) {
        for (T &x : data) put(&x, NAN);
    }
    Matrix<T> matrix() { return {data.data(), cols, 1, 0}; }
    double at(int64_t r, int64_t c) const { return number(data[r * cols + c]); }
};

template <class T> constexpr double kEpsilon = sizeof(T) == 4 ? 1e-6 : 0;
template <> constexpr double kEpsilon<Bf16> = 0x1p-8;
template <> constexpr double kEpsilon<F16> = 0x1p-11;

// The matrices [rows, cols] of the experts, one behind the other, with contiguous rows or columns.
template <class W> struct Weight {
    int64_t rows, cols;
    bool by_columns;
    Array<W> data;
    Weight(int64_t experts, int64_t rows, int64_t cols, bool by_columns)
        : rows(rows), cols(cols), by_columns(by_columns),
          data(experts * (by_columns ? cols : rows), by_columns ? rows : cols,
               by_columns ? rows : cols, 0) {}
    double at(int64_t e, int64_t r, int64_t c) const {
        return by_columns ? data.at(e * cols + c, r) : data.at(e * rows + r, c);
    }
    Operand<W> operand() const {
        Operand<W> all = data.operand();
        all.group_stride = rows * cols;
        all.aligned = all.aligned && rows * cols * sizeof(W) % 16 == 0;
        return all;
    }
};

// The memory of a workspace, and some memory behind it that must not be changed.
struct Workspace {
    std::vector<char> memory;
    explicit Workspace(int64_t bytes) : memory(bytes + 512, (char)0xff) {}
    void *begin() { return (void *)(((uintptr_t)memory.data() + 255) / 256 * 256); }
    bool end_stays(int64_t bytes) {
        return std::all_of((char *)begin() + bytes, memory.data() + memory.size(),
                           [](char c) { return c == (char)0xff; });
    }
};

// Allows one rounding of the result, and the error of sums in float, which is a share of `size`,
// the sum of the absolute terms.
template <class T> bool close(double x, double expected, double size) {
    return std::fabs(x - expected) <= kEpsilon<T> * std::fabs(expected) + 1e-6 * size + 1e-30;
}

// The exit status of a test.
int finish() {
    std::printf("%s\n", failures ? "failed" : "all passed");
    return failures != 0;
}

} // namespace
