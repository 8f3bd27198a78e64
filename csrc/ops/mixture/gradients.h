// Where the backward pass of a mixture stores the gradients of its experts.
//
//   at(name, segment) (+)= the sum over the rows of the segment
//
// The segments of an expert come in order, and each is a part of the sum over its rows. A gradient
// of T takes them one by one. A gradient of 16 bits is rounded once: where the rows of the expert
// fill several batches (Segment::apart), they are added up in GradientSums and stored after the
// last one. Later partial sums of gradients of any type are kept there, too. The gradients of
// experts that no token chose become zero, or stay as they are where gradients are accumulated.
#pragma once
#include <array>
#include <cstring>

#include "../product/gradient_sums.h"
#include "batches.h"
#include "mixture.h"

namespace ffncore {

enum GradientName { kGate, kUp, kDown, kBiasGate, kBiasUp, kBiasDown, kGradients };

// Writes zeros to a matrix of any strides.
inline void zero_elements(const Output &m, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; ++i) {
        if (m.col == 1) std::memset(m.at(i), 0, cols * m.bytes());
        for (int64_t j = 0; m.col != 1 && j < cols; ++j) std::memset(m.at(i, j), 0, m.bytes());
    }
}

// Writes contiguous zeros past the caches. With few tokens, most gradients of a large mixture are
// zeros.
template <class T> void stream_zeros(const Kernels<T> &kernels, char *to, int64_t bytes) {
    constexpr int64_t kLine = 64;
    alignas(kLine) static constexpr char kZeros[4096] = {};
    const int64_t head = std::min(bytes, -(int64_t)(uintptr_t)to & (kLine - 1));
    std::memset(to, 0, head);
    for (to += head, bytes -= head; bytes >= kLine;) {
        const int64_t n = std::min<int64_t>(bytes / kLine * kLine, sizeof kZeros);
        kernels.stream(kZeros, n, to);
        to += n, bytes -= n;
    }
    std::memset(to, 0, bytes);
}

template <class T> class ExpertGradients {
  public:
    explicit ExpertGradients(const MoeBackward<T> &moe)
        : accumulate_(moe.accumulate), all_{{{&moe.grad_gate, moe.mixture.f, moe.mixture.d},
                                             {&moe.grad_up, moe.mixture.f, moe.mixture.d},
                                             {&moe.grad_down, moe.mixture.d, moe.mixture.f},
                                             {&moe.grad_b_gate, moe.mixture.f, 1},
                                             {&moe.grad_b_up, moe.mixture.f, 1},
                                             {&moe.grad_b_down, moe.mixture.d, 1}}} {}

    bool needs(GradientName name) const { return all_[name].gradient->first.data; }
    bool narrow() const {
        for (const One &one : all_)
            if (one.narrow()) return true;
        return false;
    }

    // Takes memory for the sums that are kept outside the gradients: if some segments are apart, or
    // some experts have several partial sums.
    void take(Arena &arena, bool apart, bool long_sums) {
        for (One &one : all_)
            if (one.gradient->first.data)
                one.sums.take(arena, one.rows, one.cols, apart && one.narrow(), long_sums);
    }

    Output at(GradientName name, const Segment &part) const {
        const One &one = all_[name];
        return one.sums_of(part).target(one.gradient->of(part.expert), part.before);
    }
    // Whether the segment is added to the numbers that are there, or replaces them.
    bool adds(GradientName name, const Segment &part) const {
        return all_[name].sums_of(part).adds(part.before, accumulate_);
    }

    // Adds to the current phase the jobs that add the sums kept outside to the gradients, where a
    // segment ends such a sum.
    void put(const Build<T> &build, const Segment &part) const {
        for (const One &one : all_)
            one.sums_of(part).put(build, one.gradient->of(part.expert), one.rows, part.end(),
                                  part.last, accumulate_);
    }

    // Adds to the current phase the jobs that write zeros for experts that no token chose.
    void zero(const Build<T> &build, const std::vector<int64_t> &experts) const {
        if (accumulate_ || experts.empty()) return;
        constexpr int64_t kRows = 64; // per task
        for (const One &one : all_) {
            if (!one.gradient->first.data) continue;
            const int64_t parts = ceil_div(one.rows, kRows), count = (int64_t)experts.size();
            const Output &first = one.gradient->first;
            const bool streams = first.col == 1 && first.row == one.cols &&
                                 count * one.rows * one.cols * first.bytes() > build.call.l2;
            build.schedule.job(parts * count, [=, k = &build.call.kernels,
                                               experts = experts.data()](int64_t task, int) {
                const int64_t r = task % parts * kRows, n = std::min(kRows, one.rows - r);
                const Output to = one.gradient->of(experts[task / parts]).from(r);
                if (!streams) return zero_elements(to, n, one.cols);
                stream_zeros(*k, to.data, n * one.cols * to.bytes());
                k->drain();
            });
        }
    }

  private:
    struct One {
        const ExpertGradient *gradient;
        int64_t rows, cols;
        GradientSums<T> sums{};
        // Only segments with a batch of their own use these sums.
        GradientSums<T> sums_of(const Segment &part) const {
            return part.apart ? sums : GradientSums<T>{};
        }
        bool narrow() const { return gradient->first.data && !gradient->first.template holds<T>(); }
    };
    const bool accumulate_;
    std::array<One, kGradients> all_;
};

} // namespace ffncore
