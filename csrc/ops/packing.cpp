// See packing.h for the layout.
#include "packing.h"

#include <cstring>

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
    if (!w.gated)
        return part(w.up, first, width, dst);
    for (int64_t c = 0, neuron = first; c < width; c += 2 * group, neuron += group) {
        part(w.gate, neuron, group, dst + c);
        part(w.up, neuron, group, dst + c + group);
    }
}

template <class T>
void pack_weights(const Weights<T> &w, const PackedHeader &header, const Kernels<T> &kernels,
                  char *to) {
    const PackedLayout at(sizeof(T), header);
    std::memcpy(to, &header, sizeof header);
    constexpr int64_t panel = kPanel<T>;
    const int64_t neurons = w.gated ? panel / 2 : panel;
    T *up = (T *)(to + at.up), *down = (T *)(to + at.down);
    for (int64_t p = 0; p < ceil_div(w.f, neurons); ++p)
        pack_up_panel(kernels, w, p * neurons, kGroup<T>, panel, 0, w.d, up + p * w.d * panel);
    for (int64_t p = 0; p < ceil_div(w.d, panel); ++p)
        kernels.pack(w.down.data + p * panel * w.down.row, w.down.row, w.down.col,
                     std::min(panel, w.d - p * panel), w.f, down + p * w.f * panel, panel, panel);
    auto bias = [&](int64_t offset, const T *from, int64_t n) {
        if (offset)
            std::memcpy(to + offset, from, n * sizeof(T));
    };
    bias(at.b_gate, w.b_gate, w.f);
    bias(at.b_up, w.b_up, w.f);
    bias(at.b_down, w.b_down, w.d);
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
                    const Matrix<T> (&biases)[3]) {
    const Weights<T> w = packed_view<T>(packed);
    constexpr int64_t panel = kPanel<T>, group = kGroup<T>;
    const int64_t neurons = w.gated ? panel / 2 : panel;
    for (int upper = 0; upper < 2; ++upper) {
        const Matrix<T> &m = matrices[upper];
        for (int64_t j = 0; m.data && j < w.f; ++j) {
            const int64_t in = j % neurons;
            const int64_t col = w.gated ? in / group * 2 * group + in % group + upper * group : in;
            const T *from = w.packed_up + j / neurons * w.d * panel + col;
            for (int64_t i = 0; i < w.d; ++i)
                m.data[j * m.row + i * m.col] = from[i * panel];
        }
    }
    const Matrix<T> &down = matrices[2];
    for (int64_t o = 0; down.data && o < w.d; ++o)
        for (int64_t j = 0; j < w.f; ++j)
            down.data[o * down.row + j * down.col] =
                w.packed_down[(o / panel * w.f + j) * panel + o % panel];
    const T *from[3] = {w.b_gate, w.b_up, w.b_down};
    for (int i = 0; i < 3; ++i)
        for (int64_t j = 0; biases[i].data && j < (i == 2 ? w.d : w.f); ++j)
            biases[i].data[j * biases[i].row] = from[i][j];
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template void pack_up_panel<T>(const Kernels<T> &, const Weights<T> &, int64_t, int64_t,       \
                                   int64_t, int64_t, int64_t, T *);                                \
    template void pack_weights<T>(const Weights<T> &, const PackedHeader &, const Kernels<T> &,    \
                                  char *);                                                         \
    template Weights<T> packed_view<T>(const char *);                                              \
    template void unpack_weights<T>(const char *, const Matrix<T>(&)[3], const Matrix<T>(&)[3]);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
