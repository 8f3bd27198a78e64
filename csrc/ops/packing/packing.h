// Packed weights. There is one layout for every instruction set, so that packed weights stay valid
// when the instruction set changes.
//
// A panel has P columns: 16 for float64, else 32. The parts of a buffer, each aligned to 64 bytes:
//
//   header   PackedHeader
//   up       [panels][d][P]. plain: P hidden units a panel; gated: P / 2 of them, in groups of
//            P / 4 columns: gate, up, gate, up
//   down     [panels][f][P], with P outputs a panel
//   biases   b_gate [f], b_up [f], b_down [d], if present; float32 for 16-bit weights
//
// bfloat16 lies in pairs of k, [panels][d / 2][P][2], as VDPBF16PS reads it. Columns beyond the
// last hidden unit or output are zero, and so are the second half of a last pair and the gaps
// behind the biases. So equal weights make equal bytes.
#pragma once
#include "../arrays/array.h"
#include "../arrays/ranges.h"

namespace ffncore {

template <class T> constexpr int64_t kPanel = kPanelBytes / (int64_t)sizeof(T);
template <class T> constexpr int64_t kGroup = kGroupBytes / (int64_t)sizeof(T);

// A matrix of packed quantised weights (coded.h): its units, read from step `first` on.
struct CodedLayout;
struct Coded {
    const CodedLayout *layout = nullptr;
    const char *units = nullptr;
    int64_t first = 0;
};

// The weights of one expert. Raw weights have gate, up [f, d] and down [d, f]; packed weights have
// the two arrays of panels, or quantised matrices. Biases are contiguous.
template <class T> struct Weights {
    int64_t d = 0, f = 0;
    bool gated = false;
    Element type = kOwn<T>; // of the matrices
    Input gate, up, down;
    const T *b_gate = nullptr, *b_up = nullptr, *b_down = nullptr;
    const char *packed_up = nullptr, *packed_down = nullptr;
    Coded coded_gate, coded_up, coded_down;
    int64_t coded_unit = 0; // the first hidden unit, of quantised weights
    bool coded() const { return coded_up.units != nullptr; }
    bool packed() const { return packed_up != nullptr || coded(); }
};

// The steps of k that a packed panel holds, padding included; and the bytes of one step.
inline int64_t packed_depth(Element type, int64_t depth) {
    return type == kBfloat16 ? round_up(depth, 2) : depth;
}
template <class T> int64_t packed_step(Element type) { return kPanel<T> * element_bytes(type); }

// Whether two neighbouring 16-bit elements of a row can be addressed as one T; and the matrix of
// these pairs.
inline bool has_pairs(const Input &m) {
    return !m.data || (m.bytes() == 2 && m.col == 1 && m.row % 2 == 0);
}
template <class T> Input pair_view(const Input &m) { return {m.data, m.row / 2, 1, kOwn<T>}; }

struct PackedHeader {
    uint64_t magic;
    int64_t dtype, d, f, gated;
    int64_t b_gate, b_up, b_down; // 1: present, 0: absent
};

// Offsets in bytes of the parts of a packed buffer, 0 for an absent one; and its total bytes.
struct PackedLayout {
    explicit PackedLayout(const PackedHeader &header);
    int64_t up, down, b_gate, b_up, b_down, bytes;
};

constexpr uint64_t kPackedMagic = 0x31304b4341504646u; // "FFPACK01"

// The header gives the dtype of the packed matrices: that of the weights, or 16 bits for float32.
template <class T>
void pack_weights(const Weights<T> &weights, const PackedHeader &header, const Kernels<T> &kernels,
                  int threads, char *to);
// Writes the elements back to gate, up, down and their biases (whose stride is `row`), which may
// have any strides. Those with data == nullptr are skipped.
template <class T>
void unpack_weights(const char *packed, const Output (&matrices)[3], const Output (&biases)[3],
                    const Kernels<T> &kernels, int threads);
template <class T> Weights<T> packed_view(const char *packed);

// Hidden units [first, first + units) of an expert. For packed weights, first is a multiple of the
// block.
template <class T> Weights<T> slice_units(Weights<T> w, int64_t first, int64_t units) {
    w.gate = w.gate.from(first);
    w.up = w.up.from(first);
    w.down = w.down.from(0, first);
    if (w.coded()) {
        w.coded_unit += first;
        w.coded_down.first += first;
    } else if (w.packed()) {
        const int64_t panels = first / (w.gated ? kPanel<T> / 2 : kPanel<T>);
        w.packed_up += panels * packed_depth(w.type, w.d) * packed_step<T>(w.type);
        w.packed_down += first * packed_step<T>(w.type);
    }
    w.b_gate = w.b_gate ? w.b_gate + first : nullptr;
    w.b_up = w.b_up ? w.b_up + first : nullptr;
    w.f = units;
    return w;
}

// The columns of a panel of the up phase, which begins with hidden unit `first`. plain: `width`
// hidden units; gated: groups of `group` hidden units, alternately of gate and of up.
struct UpPanel {
    int64_t first, group, width;
};
// Packs some steps of the panel into dst[steps][width].
template <class T>
void pack_up_panel(const Kernels<T> &kernels, const Weights<T> &w, const UpPanel &panel,
                   Steps steps, T *dst);

} // namespace ffncore
