// See elementwise.h. Elements are numbered row by row and cut into segments; consecutive segments
// make a run, and a run is a task. Both cuts depend on the number of elements alone, and so does
// the order of xielu's sums: groups of 8 within a segment, the segments of a run, then the runs.
// Strides and threads change no bit. A segment that memory does not hold in one piece goes through
// a buffer.
#include "elementwise.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace ffncore {

namespace {

constexpr int64_t kSegment = 1024;    // 5 buffers of double fit L1
constexpr int64_t kSegmentsARun = 16; // at least: about 10 us of work
constexpr int64_t kMaxRuns = 1024; // 8 tasks a thread on 128 cores; partial sums: 16 KiB of stack

// A matrix whose elements are found by their number. Rows that follow each other are one long row.
template <class T> struct Numbered {
    Matrix<T> m;
    int64_t cols;
    Numbered(const Matrix<T> &matrix, int64_t rows, int64_t all_cols) : m(matrix), cols(all_cols) {
        if (cols == 1) m.col = m.row;
        if (m.row == cols * m.col) cols *= rows;
    }
    Numbered(const Matrix<const T> &matrix, int64_t rows, int64_t all_cols)
        : Numbered(Matrix<T>{const_cast<T *>(matrix.data), matrix.row, matrix.col}, rows,
                   all_cols) {}
};

// Elements [first, first + n) of a matrix as the kernels want them: contiguous. nullptr: absent.
template <class T> class Segment {
  public:
    Segment(const Numbered<T> &all, int64_t first, int64_t n) : all_(all), n_(n) {
        if (!all.m.data) return;
        row_ = first / all.cols;
        col_ = first % all.cols;
        in_place_ = all.m.col == 1 && col_ + n <= all.cols;
        data_ = in_place_ ? all.m.data + row_ * all.m.row + col_ : buffer_;
    }
    const T *read() {
        each([](T &element, T &copy) { copy = element; });
        return data_;
    }
    T *write() { return data_; } // finish() when it is written
    void finish() {
        each([](T &element, T &copy) { element = copy; });
    }

  private:
    // body(element, its place in the buffer), where they are two.
    template <class Body> void each(const Body &body) {
        if (!data_ || in_place_) return;
        int64_t row = row_, col = col_;
        for (int64_t i = 0; i < n_; ++row, col = 0) {
            T *const from = all_.m.data + row * all_.m.row + col * all_.m.col;
            const int64_t piece = std::min(n_ - i, all_.cols - col);
            for (int64_t j = 0; j < piece; ++j) body(from[j * all_.m.col], buffer_[i + j]);
            i += piece;
        }
    }

    const Numbered<T> &all_;
    const int64_t n_;
    int64_t row_ = 0, col_ = 0;
    bool in_place_ = false;
    T *data_ = nullptr;
    T buffer_[kSegment];
};

// Runs body(run, first element, end) over all runs.
template <class T, class Body>
int64_t over_runs(const Call<T> &call, int64_t elements, const Body &body) {
    const int64_t segments = ceil_div(elements, kSegment);
    const int64_t length = std::max(kSegmentsARun, ceil_div(segments, kMaxRuns)) * kSegment;
    const int64_t runs = ceil_div(elements, length);
    Schedule s;
    s.phase();
    s.job(runs, [&](int64_t run, int) {
        body(run, run * length, std::min(elements, (run + 1) * length));
    });
    run_region(s, call.threads);
    return runs;
}

// Where no order has to be kept, the loops follow the result in memory: columns become the rows.
template <class T> void follow_memory(Elementwise<T> &e, Matrix<T> out) {
    if (std::abs(out.row) >= std::abs(out.col)) return;
    std::swap(e.rows, e.cols);
    auto turn = [](auto &...m) { (std::swap(m.row, m.col), ...); };
    turn(e.gate, e.up, e.grad_h, e.h, e.grad_gate, e.grad_up);
}

} // namespace

template <class T> void activation_forward(const Call<T> &call, Elementwise<T> e) {
    follow_memory(e, e.h);
    const Numbered<T> gates(e.gate, e.rows, e.cols), ups(e.up, e.rows, e.cols),
        hs(e.h, e.rows, e.cols);
    over_runs(call, e.rows * e.cols, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += kSegment) {
            const int64_t n = std::min(kSegment, end - first);
            Segment<T> gate(gates, first, n), up(ups, first, n), h(hs, first, n);
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
    const Numbered<T> gates(e.gate, e.rows, e.cols), ups(e.up, e.rows, e.cols),
        grad_hs(e.grad_h, e.rows, e.cols), grad_gates(e.grad_gate, e.rows, e.cols),
        grad_ups(e.grad_up, e.rows, e.cols);
    double sums[kMaxRuns][2];
    const int64_t runs =
        over_runs(call, e.rows * e.cols, [&](int64_t run, int64_t begin, int64_t end) {
            double sum_p = 0, sum_n = 0;
            for (int64_t first = begin; first < end; first += kSegment) {
                const int64_t n = std::min(kSegment, end - first);
                Segment<T> gate(gates, first, n), up(ups, first, n), grad_h(grad_hs, first, n),
                    grad_gate(grad_gates, first, n), grad_up(grad_ups, first, n);
                constexpr int64_t kGroups = kSegment / kXieluGroup;
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
                for (int64_t j = 0; e.xielu && j < ceil_div(n, kXieluGroup); ++j) {
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
