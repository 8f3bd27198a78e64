// Packs, expands and unpacks quantised weights; see coded.h for the layout. A task is a unit.
#include "coded.h"

#include <algorithm>
#include <cstring>

#include "../schedule/schedule.h"

namespace ffncore {

namespace {

// The bits of the codes, and those of `high`, which codes of 5 and 6 bits have.
int64_t low_bits(int64_t bits) { return bits == 5 || bits == 6 ? 4 : bits; }
int64_t step_bytes(int64_t bits) { return kUnit * bits / 8; }

constexpr Element kElementOf[] = {kFloat32, kFloat32, kFloat16, kBfloat16}; // by NumberKind

constexpr int64_t kMostElements = int64_t(1) << 57; // so that bytes fit in 63 bits

int64_t number_bytes(int64_t kind) {
    return kind == kNumberProduct ? 1 : element_bytes(kElementOf[kind]);
}

// Places parts one behind the other.
struct Places {
    int64_t end = 0;
    int64_t take(int64_t bytes) {
        const int64_t at = end;
        end += round_up(bytes, 64);
        return at;
    }
};

// Fills the offsets of a layout whose sizes and kinds are set.
void place(CodedLayout &l, Places &buffer) {
    Places unit;
    const int64_t high = l.bits - low_bits(l.bits);
    unit.take(l.cols * step_bytes(low_bits(l.bits)));
    l.high = high ? unit.take(l.cols * step_bytes(high)) : 0;
    const int64_t groups = ceil_div(l.cols, l.group);
    for (CodedPlane &plane : l.planes) {
        plane.data = plane.factors = 0;
        if (plane.kind == kNoNumber) continue;
        plane.data = unit.take(groups * kUnit * number_bytes(plane.kind));
        if (plane.kind == kNumberProduct)
            plane.factors = unit.take(ceil_div(groups, plane.factor_groups) * kUnit * 2);
    }
    l.unit_bytes = unit.end;
    l.at = buffer.take(ceil_div(l.rows, kUnit) * l.unit_bytes);
}

void place(CodedHeader &h) {
    Places buffer;
    buffer.take(sizeof h);
    for (CodedLayout *l : {&h.gate, &h.up, &h.down})
        if (l->rows) place(*l, buffer);
    const auto bias = [&](int64_t there, int64_t n) { return there ? buffer.take(n * 4) : 0; };
    h.b_gate = bias(h.packed.b_gate, h.packed.f);
    h.b_up = bias(h.packed.b_up, h.packed.f);
    h.b_down = bias(h.packed.b_down, h.packed.d);
    h.bytes = buffer.end;
}

CodedLayout layout_of(const CodedInput &m) {
    CodedLayout l{};
    if (!m.codes) return l;
    l.rows = m.rows, l.cols = m.cols, l.bits = m.bits, l.e4m3 = m.e4m3, l.group = m.group;
    for (int i = 0; i < kPlanes; ++i)
        if (m.numbers[i].data)
            l.planes[i] = {m.numbers[i].kind, 0, 0,
                           std::max<int64_t>(m.numbers[i].factor_groups, 1)};
        else
            l.planes[i] = {kNoNumber, 0, 0, 1};
    if (m.table) std::memcpy(l.table, m.table, sizeof l.table);
    l.center = m.center;
    return l;
}

// The codes of a unit.
void pack_codes(const CodedInput &m, int64_t u, int64_t bits, int shift, char *to) {
    const int64_t rows = std::min<int64_t>(kUnit, m.rows - u * kUnit), bytes = step_bytes(bits);
    const uint8_t *const from = m.codes + u * kUnit * m.cols;
    for (int64_t k = 0; k < m.cols; ++k, to += bytes) {
        uint8_t step[kUnit] = {};
        if (bits == 8) {
            for (int64_t c = 0; c < rows; ++c) step[c] = from[c * m.cols + k];
        } else {
            uint64_t words = 0;
            for (int64_t c = 0; c < rows; ++c) {
                const uint64_t code = from[c * m.cols + k] >> shift & ((1u << bits) - 1);
                words |= code << (bits == 4 ? c % 2 * 32 + c / 2 * 4 : c * bits);
            }
            std::memcpy(step, &words, sizeof words);
        }
        std::memcpy(to, step, size_t(bytes));
    }
}

void pack_numbers(const CodedInput &m, const NumbersInput &n, const CodedPlane &plane, int64_t u,
                  const Kernels<float> &kernels, char *unit) {
    const int64_t rows = std::min<int64_t>(kUnit, m.rows - u * kUnit);
    const int64_t groups = ceil_div(m.cols, m.group), first = u * kUnit;
    const auto put = [&](int64_t kind, const float *numbers, char *to) {
        kernels.of[kElementOf[kind]].store(numbers, kUnit, 1, kUnit, nullptr, 0, 0, to, kUnit, 1,
                                           false);
    };
    for (int64_t g = 0; g < groups; ++g) {
        char *const to = unit + plane.data + g * kUnit * number_bytes(plane.kind);
        float numbers[kUnit] = {};
        for (int64_t c = 0; c < rows; ++c) {
            const int64_t at = (first + c) * n.row + g * n.col;
            if (plane.kind == kNumberProduct)
                to[c] = ((const char *)n.data)[at];
            else
                numbers[c] = ((const float *)n.data)[at];
        }
        if (plane.kind != kNumberProduct) put(plane.kind, numbers, to);
    }
    if (plane.kind != kNumberProduct) return;
    for (int64_t g = 0; g < ceil_div(groups, plane.factor_groups); ++g) {
        float numbers[kUnit] = {};
        for (int64_t c = 0; c < rows; ++c) numbers[c] = n.factors[(first + c) * n.factor_row + g];
        put(kNumberF16, numbers, unit + plane.factors + g * kUnit * 2);
    }
}

} // namespace

CodedHeader coded_header(const PackedHeader &packed, const CodedInput &gate, const CodedInput &up,
                         const CodedInput &down) {
    CodedHeader h{};
    h.packed = packed;
    h.packed.magic = kCodedMagic;
    h.gate = layout_of(gate), h.up = layout_of(up), h.down = layout_of(down);
    place(h);
    return h;
}

bool consistent(const CodedHeader &h) {
    const PackedHeader &p = h.packed;
    const auto fits = [](const CodedLayout &l, int64_t rows, int64_t cols) {
        const bool known = (l.bits >= 1 && l.bits <= 8 && l.bits != 3 && l.bits != 7);
        if (l.rows != rows || l.cols != cols || !known || l.group < 1 || l.group > cols)
            return false;
        for (const CodedPlane &plane : l.planes)
            if (plane.kind < kNoNumber || plane.kind > kNumberProduct || plane.factor_groups < 1)
                return false;
        return l.planes[kScale].kind != kNoNumber;
    };
    if (p.magic != kCodedMagic || p.dtype != kFloat32 || p.d < 1 || p.f < 1) return false;
    if (p.d > kMostElements / p.f || (p.gated ? !fits(h.gate, p.f, p.d) : h.gate.rows != 0))
        return false;
    if (!fits(h.up, p.f, p.d) || !fits(h.down, p.d, p.f)) return false;
    CodedHeader again = h;
    place(again);
    return std::memcmp(&again, &h, sizeof h) == 0;
}

void pack_coded(const CodedHeader &h, const CodedInput (&matrices)[3],
                const float *const (&biases)[3], const Kernels<float> &kernels, int threads,
                char *to) {
    std::memset(to, 0, size_t(h.bytes));
    std::memcpy(to, &h, sizeof h);
    const int64_t places[3] = {h.b_gate, h.b_up, h.b_down};
    for (int i = 0; i < 3; ++i)
        if (places[i])
            std::memcpy(to + places[i], biases[i], size_t(i == 2 ? h.packed.d : h.packed.f) * 4);
    const CodedLayout *const layouts[3] = {&h.gate, &h.up, &h.down};
    Schedule s;
    s.phase();
    for (int i = 0; i < 3; ++i) {
        const CodedLayout &l = *layouts[i];
        const CodedInput &m = matrices[i];
        if (!l.rows) continue;
        s.job(ceil_div(l.rows, kUnit), [&, to](int64_t u, int) {
            char *const unit = to + l.at + u * l.unit_bytes;
            const int64_t low = low_bits(l.bits), high = l.bits - low;
            pack_codes(m, u, low, 0, unit);
            if (high) pack_codes(m, u, high, 4, unit + l.high);
            for (int j = 0; j < kPlanes; ++j)
                if (l.planes[j].kind != kNoNumber)
                    pack_numbers(m, m.numbers[j], l.planes[j], u, kernels, unit);
        });
    }
    run_region(s, threads);
}

template <class T> Weights<T> coded_view(const char *packed) {
    const CodedHeader &h = *(const CodedHeader *)packed;
    Weights<T> w;
    w.d = h.packed.d;
    w.f = h.packed.f;
    w.gated = h.packed.gated;
    const auto bias = [&](int64_t at) { return at ? (const T *)(packed + at) : nullptr; };
    w.b_gate = bias(h.b_gate), w.b_up = bias(h.b_up), w.b_down = bias(h.b_down);
    const auto matrix = [&](const CodedLayout &l) { return Coded{&l, packed + l.at, 0}; };
    if (w.gated) w.coded_gate = matrix(h.gate);
    w.coded_up = matrix(h.up), w.coded_down = matrix(h.down);
    return w;
}
template Weights<float> coded_view<float>(const char *);
template Weights<double> coded_view<double>(const char *);

ExpandArgs expand_args(const Coded &m, int64_t u, Steps steps) {
    const CodedLayout &l = *m.layout;
    const char *const unit = m.units + u * l.unit_bytes;
    const int64_t low = low_bits(l.bits), k = m.first + steps.first;
    ExpandArgs a{};
    a.codes = unit + k * step_bytes(low);
    a.high = unit + l.high + k * step_bytes(l.bits - low);
    a.bits = int(l.bits);
    a.e4m3 = l.e4m3 != 0;
    a.table = l.table;
    a.center = l.center;
    ExpandNumbers *const numbers[kPlanes] = {&a.scale, &a.zero, &a.offset};
    for (int i = 0; i < kPlanes; ++i) {
        const CodedPlane &p = l.planes[i];
        *numbers[i] = {int(p.kind), unit + p.data, unit + p.factors, p.factor_groups};
    }
    a.group = l.group;
    a.first = k;
    a.steps = steps.count;
    return a;
}

void expand(const Kernels<float> &kernels, const Coded &m, int64_t u, int64_t lane, int64_t vectors,
            Steps steps, float *dst, int64_t ld) {
    ExpandArgs a = expand_args(m, u, steps);
    a.lane = int(lane);
    a.vectors = int(vectors);
    a.dst = dst;
    a.ld = ld;
    kernels.expand(a);
}

void unpack_coded(const char *packed, const Output (&matrices)[3], const Output (&biases)[3],
                  const Kernels<float> &kernels, int threads) {
    const Weights<float> w = coded_view<float>(packed);
    const float *const from[3] = {w.b_gate, w.b_up, w.b_down};
    for (int i = 0; i < 3; ++i)
        if (biases[i].data)
            kernels.of[biases[i].type].store(from[i], 0, 1, i == 2 ? w.d : w.f, nullptr, 0, 0,
                                             biases[i].data, 0, biases[i].row, false);
    const Coded *const coded[3] = {&w.coded_gate, &w.coded_up, &w.coded_down};
    Schedule s;
    s.phase();
    for (int i = 0; i < 3; ++i) {
        const Output m = matrices[i];
        if (!m.data) continue;
        const CodedLayout &l = *coded[i]->layout;
        s.job(ceil_div(l.rows, kUnit), [=, &kernels, &l, c = coded[i]](int64_t u, int) {
            constexpr int64_t kSteps = 256; // their numbers are 16 KiB, half of L1
            alignas(64) float numbers[kSteps * kUnit];
            const int64_t first = u * kUnit, rows = std::min<int64_t>(kUnit, l.rows - first);
            each_part(Steps{0, l.cols}, kSteps, [&](Steps some) {
                expand(kernels, *c, u, 0, kUnit / kernels.width, some, numbers, kUnit);
                kernels.of[m.type].store(numbers, kUnit, some.count, rows, nullptr, 0, 0,
                                         m.at(first, some.first), m.col, m.row, false);
            });
        });
    }
    run_region(s, threads);
}

} // namespace ffncore
