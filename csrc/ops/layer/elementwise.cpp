// The activations alone, see elementwise.h. The elements are numbered row by row and cut into
// segments of 1024. Consecutive segments make a run, and a run is a task. Both cuts depend on the
// number of elements alone, and so does the order of xielu's sums: groups of 8 within a segment,
// the segments of a run, then the runs. Therefore neither strides nor threads change a bit. A
// segment whose elements are not contiguous, or not of T, goes through a buffer.
#include "elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

namespace ffncore {

namespace {

constexpr int64_t kSegment = 1024;    // 5 buffers of double fit in L1
constexpr int64_t kSegmentsARun = 16; // the least: about 10 us of work
constexpr int64_t kMaxRuns = 1024;    // 8 tasks a thread on 128 cores; their sums: 16 KiB of stack

// A matrix whose elements are found by their number. Rows without gaps between them count as one
// long row.
struct Numbered {
    Output m;
    int64_t cols;
    Numbered(const Output &matrix, int64_t rows, int64_t all_cols) : m(matrix), cols(all_cols) {
        if (cols == 1) m.col = m.row;
        if (m.row == cols * m.col) cols *= rows;
    }
    Numbered(const Input &m, int64_t rows, int64_t all_cols)
        : Numbered(Output{const_cast<char *>(m.data), m.row, m.col, m.type}, rows, all_cols) {}
};

// Subnormals of bfloat16 count as zero. The floating-point state sees to that in arithmetic; this
// does it for numbers that are only selected or copied.
template <class T> void flush(T *numbers, int64_t n) {
    constexpr T kLeastNormal = 0x1p-126;
    for (int64_t i = 0; i < n; ++i)
        if (std::abs(numbers[i]) < kLeastNormal) numbers[i] = std::copysign(T(0), numbers[i]);
}

// Elements [first, first + n) of a matrix as the kernels need them: contiguous, of T. read() and
// write() return nullptr for an absent matrix.
template <class T> class Segment {
  public:
    Segment(const Kernels<T> &kernels, const Numbered &all, int64_t first, int64_t n)
        : kernels_(kernels), all_(all), n_(n) {
        if (!all.m.data) return;
        row_ = first / all.cols;
        col_ = first % all.cols;
        in_place_ = all.m.template holds<T>() && all.m.col == 1 && col_ + n <= all.cols;
        data_ = in_place_ ? (T *)all.m.at(row_, col_) : buffer_;
    }
    const T *read() {
        each([&](char *from, T *to, int64_t n) {
            kernels_.of[all_.m.type].pack(from, all_.m.col, 0, n, 1, to, n, n);
            if (flushes(kernels_)) flush(to, n);
        });
        return data_;
    }
    T *write() { return data_; } // call finish() when the numbers are written
    void finish() {
        each([&](char *to, const T *from, int64_t n) {
            kernels_.of[all_.m.type].store(from, n, 1, n, nullptr, 0, 0, to, 0, all_.m.col, false);
        });
    }

  private:
    // Unless the segment is used in place, calls body(element, its place in the buffer, n) for each
    // piece of n elements in one row.
    template <class Body> void each(const Body &body) {
        if (!data_ || in_place_) return;
        int64_t row = row_, col = col_;
        for (int64_t i = 0; i < n_; ++row, col = 0) {
            const int64_t piece = std::min(n_ - i, all_.cols - col);
            body(all_.m.at(row, col), buffer_ + i, piece);
            i += piece;
        }
    }

    const Kernels<T> &kernels_;
    const Numbered &all_;
    const int64_t n_;
    int64_t row_ = 0, col_ = 0;
    bool in_place_ = false;
    T *data_ = nullptr;
    T buffer_[kSegment];
};

// Calls body(run, first element, end) for all runs, as tasks. Returns the number of runs.
template <class T, class Body>
int64_t over_runs(const Call<T> &call, int64_t elements, const Body &body) {
    const int64_t segments = ceil_div(elements, kSegment);
    const int64_t length = std::max(kSegmentsARun, ceil_div(segments, kMaxRuns)) * kSegment;
    const int64_t runs = ceil_div(elements, length);
    Schedule s(0, flushes(call.kernels));
    s.phase();
    s.job(runs, [&](int64_t run, int) {
        body(run, run * length, std::min(elements, (run + 1) * length));
    });
    run_region(s, call.threads);
    return runs;
}

// Where no order of a sum has to be kept, the loops follow the result in memory: if its columns are
// contiguous, rows and columns are exchanged.
template <class T> void follow_memory(Elementwise<T> &e, const Output &out) {
    if (std::abs(out.row) >= std::abs(out.col)) return;
    std::swap(e.rows, e.cols);
    auto turn = [](auto &...m) { (std::swap(m.row, m.col), ...); };
    turn(e.gate, e.up, e.grad_h, e.h, e.grad_gate, e.grad_up);
}

} // namespace

template <class T> void activation_forward(const Call<T> &call, Elementwise<T> e) {
    follow_memory(e, e.h);
    const Numbered gates(e.gate, e.rows, e.cols), ups(e.up, e.rows, e.cols),
        hs(e.h, e.rows, e.cols);
    over_runs(call, e.rows * e.cols, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += kSegment) {
            const int64_t n = std::min(kSegment, end - first);
            const Kernels<T> &k = call.kernels;
            Segment<T> gate(k, gates, first, n), up(k, ups, first, n), h(k, hs, first, n);
            ActForwardArgs<T> a{};
            a.rows = 1;
            a.cols = n;
            a.gate = gate.read();
            a.up = up.read();
            a.h = h.write();
            call.kernels.act_forward(call.activation, a);
            h.finish();
        }
    });
}

template <class T> void activation_backward(const Call<T> &call, Elementwise<T> &given) {
    Elementwise<T> e = given;
    if (!e.xielu) follow_memory(e, e.grad_up.data ? e.grad_up : e.grad_gate);
    const Numbered gates(e.gate, e.rows, e.cols), ups(e.up, e.rows, e.cols),
        grad_hs(e.grad_h, e.rows, e.cols), grad_gates(e.grad_gate, e.rows, e.cols),
        grad_ups(e.grad_up, e.rows, e.cols);
    double sums[kMaxRuns][2];
    const int64_t runs =
        over_runs(call, e.rows * e.cols, [&](int64_t run, int64_t begin, int64_t end) {
            double sum_p = 0, sum_n = 0;
            for (int64_t first = begin; first < end; first += kSegment) {
                const int64_t n = std::min(kSegment, end - first);
                const Kernels<T> &k = call.kernels;
                Segment<T> gate(k, gates, first, n), up(k, ups, first, n),
                    grad_h(k, grad_hs, first, n), grad_gate(k, grad_gates, first, n),
                    grad_up(k, grad_ups, first, n);
                constexpr int64_t kGroups = kSegment / kSumGroup;
                T p[kGroups], q[kGroups];
                ActBackwardArgs<T> a{};
                a.rows = 1;
                a.cols = n;
                a.dh = grad_h.read();
                a.gate = gate.read();
                a.up = up.read();
                a.dgate = grad_gate.write();
                a.dup = grad_up.write();
                a.xielu_p = e.xielu ? p : nullptr;
                a.xielu_n = e.xielu ? q : nullptr;
                a.ld_xielu = kGroups;
                call.kernels.act_backward(call.activation, a);
                grad_gate.finish();
                grad_up.finish();
                for (int64_t j = 0; e.xielu && j < ceil_div(n, kSumGroup); ++j) {
                    sum_p += p[j];
                    sum_n += q[j];
                }
            }
            sums[run][0] = sum_p;
            sums[run][1] = sum_n;
        });
    given.xielu_sums[0] = given.xielu_sums[1] = 0;
    for (int64_t run = 0; run < runs; ++run)
        for (int i = 0; i < 2; ++i) given.xielu_sums[i] += sums[run][i];
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template void activation_forward<T>(const Call<T> &, Elementwise<T>);                          \
    template void activation_backward<T>(const Call<T> &, Elementwise<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
