// Packs and unpacks weights; see packing.h for the layout. Each is a region of one phase with all
// matrices in it. A task is a piece of a matrix (Pieces), cut so that memory is read, or for
// unpacking written, in long runs.
#include "packing.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../schedule/schedule.h"

namespace ffncore {

PackedLayout::PackedLayout(const PackedHeader &h) {
    const Element type = (Element)h.dtype;
    const int64_t element = element_bytes(type), number = std::max<int64_t>(element, 4);
    const int64_t panel = kPanelBytes / number, neurons = h.gated ? panel / 2 : panel;
    bytes = round_up(sizeof(PackedHeader), 64);
    auto part = [&](int64_t size) {
        const int64_t at = bytes;
        bytes += round_up(size, 64);
        return at;
    };
    up = part(ceil_div(h.f, neurons) * packed_depth(type, h.d) * panel * element);
    down = part(ceil_div(h.d, panel) * packed_depth(type, h.f) * panel * element);
    b_gate = h.b_gate ? part(h.f * number) : 0;
    b_up = h.b_up ? part(h.f * number) : 0;
    b_down = h.b_down ? part(h.d * number) : 0;
}

template <class T>
void pack_up_panel(const Kernels<T> &kernels, const Weights<T> &w, const UpPanel &panel,
                   Steps steps, T *dst) {
    const auto [first, group, width] = panel;
    auto part = [&, width = width](const Input &m, int64_t neuron, int64_t columns, T *to) {
        const int64_t rows = std::clamp<int64_t>(w.f - neuron, 0, columns);
        kernels.of[m.type].pack(m.at(rows ? neuron : 0, steps.first), m.row, m.col, rows,
                                steps.count, to, width, columns);
    };
    if (!w.gated) return part(w.up, first, width, dst);
    for (int64_t c = 0, neuron = first; c < width; c += 2 * group, neuron += group) {
        part(w.gate, neuron, group, dst + c);
        part(w.up, neuron, group, dst + c + group);
    }
}

namespace {

// How a matrix [panels of rows] x [depth] is cut into tasks of 256 KiB. Contiguous rows are read 8
// KiB at a time; contiguous columns are read across 16 panels, 1 or 2 KiB at a time.
struct Pieces {
    int64_t panels, depth;      // of the matrix
    int64_t some_panels, piece; // of a task: panels, and steps of depth (an even number)
    template <class Byte>
    Pieces(const Array<Byte> &m, int64_t panels, int64_t depth) : panels(panels), depth(depth) {
        const bool by_rows = std::abs(m.col) <= std::abs(m.row);
        some_panels = by_rows ? 1 : 16;
        piece = (by_rows ? 8192 : 512) / m.bytes();
    }
    int64_t tasks() const { return ceil_div(panels, some_panels) * ceil_div(depth, piece); }
    // Calls body(panel, steps) for each panel of the task.
    template <class Body> void run(int64_t task, const Body &body) const {
        const int64_t across = ceil_div(depth, piece), k = task % across * piece;
        const int64_t first = task / across * some_panels;
        for (int64_t p = first; p < std::min(first + some_panels, panels); ++p)
            body(p, Steps{k, std::min(piece, depth - k)});
    }
};

// A panel is packed or read so many steps at a time, as numbers in L1 (16 KiB). The number is even,
// so that no pair is cut.
constexpr int64_t kSteps = 128;

// Converts steps [0, n) of a packed panel to numbers, and calls use(steps, numbers) for some at a
// time.
template <class T, class Use>
void read_panel(const Kernels<T> &kernels, Element type, int64_t n, const char *panel,
                const Use &use) {
    if (type == kOwn<T>) return use(Steps{0, n}, (const T *)panel);
    alignas(64) T numbers[kSteps * kPanel<T>];
    each_part(Steps{0, n}, kSteps, [&](Steps some) {
        kernels.of[type].widen(panel + some.first * packed_step<T>(type), some.count, numbers);
        use(some, numbers);
    });
}

} // namespace

template <class T>
void pack_weights(const Weights<T> &w, const PackedHeader &header, const Kernels<T> &kernels,
                  int threads, char *to) {
    const PackedLayout at(header);
    const Element type = (Element)header.dtype;
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
    const int64_t neurons = w.gated ? panel / 2 : panel, step = packed_step<T>(type);
    char *const up = to + at.up, *const down = to + at.down;
    const Pieces ups(w.up, ceil_div(w.f, neurons), w.d), downs(w.down, ceil_div(w.d, panel), w.f);
    // Writes steps [0, n) of a panel; pack(weights, terms of a step, steps, destination) packs some
    // of them. Where two neighbouring 16-bit elements can be moved as one number of 32 bits, pairs
    // of steps are; a last odd step is moved alone.
    const bool moves = w.type == type && has_pairs(w.gate) && has_pairs(w.up) && has_pairs(w.down);
    Weights<T> pairs = w;
    for (Input *m : {&pairs.gate, &pairs.up, &pairs.down}) *m = pair_view<T>(*m);
    auto write = [&, moves](int64_t n, char *to, const auto &pack) {
        alignas(64) T numbers[kSteps * kPanel<T>], elements[kSteps * kPanel<T>];
        const int64_t whole = moves ? n / 2 * 2 : 0;
        for (int64_t k = 0, steps; k < n; k += steps) {
            steps = std::min(kSteps, (k < whole ? whole : n) - k);
            const bool by_pairs = k < whole;
            by_pairs ? pack(pairs, 2, Steps{k / 2, steps / 2}, numbers)
                     : pack(w, 1, Steps{k, steps}, numbers);
            const auto convert = by_pairs ? kernels.of[type].part : kernels.of[type].narrow;
            if (convert) convert(numbers, steps, elements);
            kernels.stream(convert ? elements : numbers, packed_depth(type, steps) * step,
                           to + k * step);
        }
    };
    // On levels whose vectors hold two groups of 32 bytes, gate and up are packed a vector at a
    // time; split_groups then makes their 32-byte groups alternate (it is its own inverse).
    const int64_t group = kernels.split_groups ? panel / 2 : kGroup<T>;
    Schedule s;
    s.phase();
    s.job(ups.tasks(), [&](int64_t task, int) {
        ups.run(task, [&](int64_t p, Steps piece) {
            write(piece.count, up + (p * packed_depth(type, w.d) + piece.first) * step,
                  [&](const Weights<T> &from, int64_t terms, Steps some, T *to) {
                      pack_up_panel(kernels, from, {p * neurons, group, panel},
                                    {piece.first / terms + some.first, some.count}, to);
                      if (w.gated && kernels.split_groups)
                          kernels.split_groups(to, panel, some.count);
                  });
        });
        kernels.drain();
    });
    s.job(downs.tasks(), [&](int64_t task, int) {
        downs.run(task, [&](int64_t p, Steps piece) {
            write(piece.count, down + (p * packed_depth(type, w.f) + piece.first) * step,
                  [&](const Weights<T> &from, int64_t terms, Steps some, T *to) {
                      const Input &m = from.down;
                      kernels.of[m.type].pack(m.at(p * panel, piece.first / terms + some.first),
                                              m.row, m.col, std::min(panel, w.d - p * panel),
                                              some.count, to, panel, panel);
                  });
        });
        kernels.drain();
    });
    run_region(s, threads);
}

template <class T> Weights<T> packed_view(const char *packed) {
    PackedHeader header;
    std::memcpy(&header, packed, sizeof header);
    const PackedLayout at(header);
    auto bias = [&](int64_t offset) { return offset ? (const T *)(packed + offset) : nullptr; };
    Weights<T> w;
    w.d = header.d;
    w.f = header.f;
    w.gated = header.gated;
    w.type = (Element)header.dtype;
    w.packed_up = packed + at.up;
    w.packed_down = packed + at.down;
    w.b_gate = bias(at.b_gate);
    w.b_up = bias(at.b_up);
    w.b_down = bias(at.b_down);
    return w;
}

template <class T>
void unpack_weights(const char *packed, const Output (&matrices)[3], const Output (&biases)[3],
                    const Kernels<T> &kernels, int threads) {
    const Weights<T> w = packed_view<T>(packed);
    const T *const from[3] = {w.b_gate, w.b_up, w.b_down};
    for (int i = 0; i < 3; ++i) {
        const Output &m = biases[i];
        if (m.data)
            kernels.of[m.type].store(from[i], 0, 1, i == 2 ? w.d : w.f, nullptr, 0, 0, m.data, 0,
                                     m.row, false);
    }

    constexpr int64_t panel = kPanel<T>;
    Schedule s;
    s.phase();
    // The columns of a panel that are rows of the matrix: [offset, offset + group), and again every
    // `stride` columns.
    struct Columns {
        int64_t offset, group, stride;
    };
    auto add = [&](const Output &m, const char *data, int64_t rows, int64_t depth,
                   const Columns &columns) {
        if (!m.data) return;
        const int64_t of_panel = panel / columns.stride * columns.group;
        const Pieces pieces(m, ceil_div(rows, of_panel), depth);
        s.job(pieces.tasks(), [=, &kernels, type = w.type](int64_t task, int) {
            pieces.run(task, [&](int64_t p, Steps piece) {
                const int64_t step = p * packed_depth(type, depth) + piece.first;
                read_panel(kernels, type, piece.count, data + step * packed_step<T>(type),
                           [&](Steps some, const T *numbers) {
                               const auto [offset, group, stride] = columns;
                               for (int64_t c = offset, i = p * of_panel; c < panel && i < rows;
                                    c += stride, i += group)
                                   kernels.of[m.type].store(numbers + c, panel, some.count,
                                                            std::min(group, rows - i), nullptr, 0,
                                                            0, m.at(i, piece.first + some.first),
                                                            m.col, m.row, false);
                           });
            });
        });
    };
    constexpr int64_t group = kGroup<T>;
    if (w.gated) {
        add(matrices[0], w.packed_up, w.f, w.d, {0, group, 2 * group});
        add(matrices[1], w.packed_up, w.f, w.d, {group, group, 2 * group});
    } else {
        add(matrices[1], w.packed_up, w.f, w.d, {0, panel, panel});
    }
    add(matrices[2], w.packed_down, w.d, w.f, {0, panel, panel});
    run_region(s, threads);
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template void pack_up_panel<T>(const Kernels<T> &, const Weights<T> &, const UpPanel &, Steps, \
                                   T *);                                                           \
    template void pack_weights<T>(const Weights<T> &, const PackedHeader &, const Kernels<T> &,    \
                                  int, char *);                                                    \
    template Weights<T> packed_view<T>(const char *);                                              \
    template void unpack_weights<T>(const char *, const Output(&)[3], const Output(&)[3],          \
                                    const Kernels<T> &, int);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
