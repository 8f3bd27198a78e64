// See packing.h for the layout. Packing and unpacking are regions of one phase, all matrices
// together; a task is a piece of a matrix that memory holds in long runs, in its own order.
#include "packing.h"

#include <cstdlib>
#include <cstring>

#include "schedule.h"

namespace ffncore {

std::atomic<int64_t> counted_flops{0};

PackedLayout::PackedLayout(int64_t element, const PackedHeader &h) {
    const int64_t panel = kPanelBytes / element, neurons = h.gated ? panel / 2 : panel;
    bytes = round_up(sizeof(PackedHeader), 64);
    auto part = [&](int64_t elements) {
        const int64_t at = bytes;
        bytes += round_up(elements * element, 64);
        return at;
    };
    up = part(ceil_div(h.f, neurons) * h.d * panel);
    down = part(ceil_div(h.d, panel) * h.f * panel);
    b_gate = h.b_gate ? part(h.f) : 0;
    b_up = h.b_up ? part(h.f) : 0;
    b_down = h.b_down ? part(h.d) : 0;
}

template <class T>
void pack_up_panel(const Kernels<T> &kernels, const Weights<T> &w, int64_t first, int64_t group,
                   int64_t width, int64_t k, int64_t depth, T *dst) {
    auto part = [&](const Matrix<const T> &m, int64_t neuron, int64_t columns, T *to) {
        const int64_t rows = std::clamp<int64_t>(w.f - neuron, 0, columns);
        kernels.pack(m.data + (rows ? neuron : 0) * m.row + k * m.col, m.row, m.col, rows, depth,
                     to, width, columns);
    };
    if (!w.gated) return part(w.up, first, width, dst);
    for (int64_t c = 0, neuron = first; c < width; c += 2 * group, neuron += group) {
        part(w.gate, neuron, group, dst + c);
        part(w.up, neuron, group, dst + c + group);
    }
}

namespace {

// How a matrix [panels of rows] x [depth] is cut into tasks of 256 KiB: rows that are contiguous
// are read 8 KiB at a time, columns across 16 panels, 1 or 2 KiB at a time.
struct Pieces {
    int64_t panels, depth;      // of the matrix
    int64_t some_panels, piece; // of a task
    template <class T>
    Pieces(const Matrix<T> &m, int64_t panels, int64_t depth) : panels(panels), depth(depth) {
        const bool by_rows = std::abs(m.col) <= std::abs(m.row);
        some_panels = by_rows ? 1 : 16;
        piece = (by_rows ? 8192 : 512) / (int64_t)sizeof(T);
    }
    int64_t tasks() const { return ceil_div(panels, some_panels) * ceil_div(depth, piece); }
    // body(panel, first of depth, length)
    template <class Body> void run(int64_t task, const Body &body) const {
        const int64_t across = ceil_div(depth, piece), k = task % across * piece;
        const int64_t first = task / across * some_panels;
        for (int64_t p = first; p < std::min(first + some_panels, panels); ++p)
            body(p, k, std::min(piece, depth - k));
    }
};

// The way back: element (i, k) of m = panel[k][i], i < rows, k < depth. A panel is read as the
// source of another packing, into m.
template <class T>
void copy_out(const Kernels<T> &kernels, const T *panel, int64_t rows, int64_t depth,
              const Matrix<T> &m) {
    if (rows <= 0) return;
    if (m.col == 1) return kernels.pack(panel, kPanel<T>, 1, depth, rows, m.data, m.row, depth);
    if (m.row == 1) return kernels.pack(panel, 1, kPanel<T>, rows, depth, m.data, m.col, rows);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < depth; ++k)
            m.data[i * m.row + k * m.col] = panel[k * kPanel<T> + i];
}

} // namespace

template <class T>
void pack_weights(const Weights<T> &w, const PackedHeader &header, const Kernels<T> &kernels,
                  int threads, char *to) {
    const PackedLayout at(sizeof(T), header);
    std::memcpy(to, &header, sizeof header);
    auto bias = [&](int64_t offset, const T *from, int64_t n) {
        if (!offset) return;
        const int64_t bytes = n * (int64_t)sizeof(T);
        std::memcpy(to + offset, from, bytes);
        std::memset(to + offset + bytes, 0, round_up(bytes, 64) - bytes);
    };
    bias(at.b_gate, w.b_gate, w.f);
    bias(at.b_up, w.b_up, w.f);
    bias(at.b_down, w.b_down, w.d);

    constexpr int64_t panel = kPanel<T>;
    const int64_t neurons = w.gated ? panel / 2 : panel;
    T *const up = (T *)(to + at.up), *const down = (T *)(to + at.down);
    const Pieces ups(w.up, ceil_div(w.f, neurons), w.d), downs(w.down, ceil_div(w.d, panel), w.f);
    Schedule s;
    s.phase();
    s.job(ups.tasks(), [&](int64_t task, int) {
        ups.run(task, [&](int64_t p, int64_t k, int64_t n) {
            pack_up_panel(kernels, w, p * neurons, kGroup<T>, panel, k, n,
                          up + (p * w.d + k) * panel);
        });
    });
    s.job(downs.tasks(), [&](int64_t task, int) {
        downs.run(task, [&](int64_t p, int64_t k, int64_t n) {
            const Matrix<const T> &m = w.down;
            kernels.pack(m.data + p * panel * m.row + k * m.col, m.row, m.col,
                         std::min(panel, w.d - p * panel), n, down + (p * w.f + k) * panel, panel,
                         panel);
        });
    });
    run_region(s, threads);
}

template <class T> Weights<T> packed_view(const char *packed) {
    PackedHeader header;
    std::memcpy(&header, packed, sizeof header);
    const PackedLayout at(sizeof(T), header);
    auto part = [&](int64_t offset) { return offset ? (const T *)(packed + offset) : nullptr; };
    Weights<T> w;
    w.d = header.d;
    w.f = header.f;
    w.gated = header.gated;
    w.packed_up = part(at.up);
    w.packed_down = part(at.down);
    w.b_gate = part(at.b_gate);
    w.b_up = part(at.b_up);
    w.b_down = part(at.b_down);
    return w;
}

template <class T>
void unpack_weights(const char *packed, const Matrix<T> (&matrices)[3],
                    const Matrix<T> (&biases)[3], const Kernels<T> &kernels, int threads) {
    const Weights<T> w = packed_view<T>(packed);
    const T *const from[3] = {w.b_gate, w.b_up, w.b_down};
    for (int i = 0; i < 3; ++i)
        for (int64_t j = 0; biases[i].data && j < (i == 2 ? w.d : w.f); ++j)
            biases[i].data[j * biases[i].row] = from[i][j];

    constexpr int64_t panel = kPanel<T>;
    Schedule s;
    s.phase();
    // A panel's columns [offset, offset + group) are rows of the matrix, and so on every `stride`.
    auto add = [&](const Matrix<T> &m, const T *data, int64_t rows, int64_t depth, int64_t group,
                   int64_t stride, int64_t offset) {
        if (!m.data) return;
        const int64_t of_panel = panel / stride * group;
        const Pieces pieces(m, ceil_div(rows, of_panel), depth);
        s.job(pieces.tasks(), [=, &kernels](int64_t task, int) {
            pieces.run(task, [&](int64_t p, int64_t k, int64_t n) {
                for (int64_t c = offset, i = p * of_panel; c < panel; c += stride, i += group)
                    copy_out(kernels, data + (p * depth + k) * panel + c, std::min(group, rows - i),
                             n, {m.data + i * m.row + k * m.col, m.row, m.col});
            });
        });
    };
    constexpr int64_t group = kGroup<T>;
    if (w.gated) {
        add(matrices[0], w.packed_up, w.f, w.d, group, 2 * group, 0);
        add(matrices[1], w.packed_up, w.f, w.d, group, 2 * group, group);
    } else {
        add(matrices[1], w.packed_up, w.f, w.d, panel, panel, 0);
    }
    add(matrices[2], w.packed_down, w.d, w.f, panel, panel, 0);
    run_region(s, threads);
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template void pack_up_panel<T>(const Kernels<T> &, const Weights<T> &, int64_t, int64_t,       \
                                   int64_t, int64_t, int64_t, T *);                                \
    template void pack_weights<T>(const Weights<T> &, const PackedHeader &, const Kernels<T> &,    \
                                  int, char *);                                                    \
    template Weights<T> packed_view<T>(const char *);                                              \
    template void unpack_weights<T>(const char *, const Matrix<T>(&)[3], const Matrix<T>(&)[3],    \
                                    const Kernels<T> &, int);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
