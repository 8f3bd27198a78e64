// See elementwise.h. Rows are cut into segments; a segment whose elements are not contiguous goes
// through a buffer on the stack. A segment is a task's inner loop, so its size is fixed: partial
// sums (xielu) then have one order for any number of threads.
#include "elementwise.h"

namespace ffncore {

namespace {

constexpr int64_t kSegment = 1024;    // 4 buffers of double fit L1
constexpr int64_t kSegmentsATask = 16; // about 10 us of work

template <class T> class Segment {
  public:
    Segment(const Matrix<T> &m, int64_t row, int64_t col) : m_(m), at_(row * m.row + col * m.col) {}
    // The elements to read, contiguous.
    const T *read(int64_t n) {
        if (!m_.data || m_.col == 1)
            return m_.data ? m_.data + at_ : nullptr;
        for (int64_t i = 0; i < n; ++i)
            buffer_[i] = m_.data[at_ + i * m_.col];
        return buffer_;
    }
    T *write() { return !m_.data || m_.col == 1 ? (m_.data ? m_.data + at_ : nullptr) : buffer_; }
    void finish(int64_t n) {
        for (int64_t i = 0; m_.data && m_.col != 1 && i < n; ++i)
            m_.data[at_ + i * m_.col] = buffer_[i];
    }

  private:
    Matrix<T> m_;
    int64_t at_;
    T buffer_[kSegment];
};

template <class T> Matrix<T> mutable_view(const Matrix<const T> &m) {
    return {const_cast<T *>(m.data), m.row, m.col};
}

// Rows that follow each other in every matrix are one long row.
template <class T> void flatten(Elementwise<T> &e) {
    for (const Matrix<T> &m : {mutable_view(e.gate), mutable_view(e.up), mutable_view(e.grad_h),
                               e.h, e.grad_gate, e.grad_up})
        if (m.data && m.row != e.cols * m.col)
            return;
    e.cols *= e.rows;
    e.rows = 1;
}

// Runs body(row, column, n, segment number) over all segments.
template <class T, class Body>
void over_segments(const Call<T> &call, int64_t rows, int64_t cols, const Body &body) {
    const int64_t a_row = ceil_div(cols, kSegment), count = rows * a_row;
    Schedule s;
    s.phase();
    s.job(ceil_div(count, kSegmentsATask), [&](int64_t task, int) {
        const int64_t end = std::min(count, (task + 1) * kSegmentsATask);
        for (int64_t i = task * kSegmentsATask; i < end; ++i) {
            const int64_t col = i % a_row * kSegment;
            body(i / a_row, col, std::min(kSegment, cols - col), i);
        }
    });
    run_region(s, call.threads);
}

} // namespace

template <class T> bool activation_forward(const Call<T> &call, const Elementwise<T> &given) {
    Elementwise<T> e = given;
    flatten(e);
    over_segments(call, e.rows, e.cols, [&](int64_t row, int64_t col, int64_t n, int64_t) {
        Segment<T> gate(mutable_view(e.gate), row, col), up(mutable_view(e.up), row, col),
            h(e.h, row, col);
        ActForwardArgs<T> a{};
        a.rows = 1;
        a.cols = n;
        a.gate = gate.read(n);
        a.up = up.read(n);
        a.h = h.write();
        call.kernels.act_forward(call.activation, a);
        h.finish(n);
    });
    return true;
}

template <class T> bool activation_backward(const Call<T> &call, Elementwise<T> &given) {
    Elementwise<T> e = given;
    flatten(e);
    const int64_t segments = e.rows * ceil_div(e.cols, kSegment);
    std::vector<double> sums(e.xielu ? 2 * segments : 0);
    over_segments(call, e.rows, e.cols, [&](int64_t row, int64_t col, int64_t n, int64_t i) {
        Segment<T> gate(mutable_view(e.gate), row, col), up(mutable_view(e.up), row, col),
            grad_h(mutable_view(e.grad_h), row, col), grad_gate(e.grad_gate, row, col),
            grad_up(e.grad_up, row, col);
        constexpr int64_t kGroups = kSegment / kXieluGroup;
        T p[kGroups], q[kGroups];
        ActBackwardArgs<T> a{};
        a.rows = 1;
        a.cols = n;
        a.dh = grad_h.read(n);
        a.gate = gate.read(n);
        a.up = up.read(n);
        a.dgate = grad_gate.write();
        a.dup = grad_up.write();
        a.xielu_p = e.xielu ? p : nullptr;
        a.xielu_n = e.xielu ? q : nullptr;
        a.ld_xielu = kGroups;
        call.kernels.act_backward(call.activation, a);
        grad_gate.finish(n);
        grad_up.finish(n);
        for (int64_t j = 0; e.xielu && j < ceil_div(n, kXieluGroup); ++j) {
            sums[2 * i] += p[j];
            sums[2 * i + 1] += q[j];
        }
    });
    given.xielu_sums[0] = given.xielu_sums[1] = 0;
    for (size_t i = 0; i < sums.size(); ++i)
        given.xielu_sums[i % 2] += sums[i];
    return true;
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template bool activation_forward<T>(const Call<T> &, const Elementwise<T> &);                  \
    template bool activation_backward<T>(const Call<T> &, Elementwise<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
