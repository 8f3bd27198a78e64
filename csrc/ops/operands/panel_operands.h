// The operands that give panels: B of a product C = A B (operand.h). Which index is k, the one that
// is summed over, tells them apart:
//
//   TokenPanels     panels of tokens that lie ready: [panel][k][width]
//   PackedPanels    packed weights
//   RawPanels       raw weights, for few tokens: transposed in registers, read in place, or packed
//                   a block at a time
//   MatrixPanels    a matrix with a row for each k: raw weights of the backward pass, x, h
//   UnitPanels      token panels, transposed a block at a time: [k = token][units]
//   PackedAcross    packed weights, transposed a block at a time: k counts their outputs
//   GatheredPanels  rows of tokens, gathered: k counts tokens
#pragma once
#include "../packing/packing.h"
#include "operand.h"
#include "token_rows.h"

namespace ffncore {

template <class T> struct TokenPanels {
    const T *data;
    int64_t depth, width, last, last_width; // the last panel may be narrower
    int64_t first = 0;                      // number of the panel that lies at data
    int64_t ld(int64_t p) const { return p == last ? last_width : width; }
    Panel get(const Kernels<T> &, int64_t p, Steps steps, T *) const { return at(p, steps.first); }
    Panel at(int64_t p, int64_t k) const {
        return {data + (p - first) * width * depth + k * ld(p), ld(p)};
    }
    int64_t line_bytes() const { return width * (int64_t)sizeof(T); }
    int64_t line_step() const { return line_bytes(); }
    const char *line(int64_t p, int64_t k) const {
        return (const char *)(data + ((p - first) * depth + k) * width);
    }
};

// 16-bit elements are widened by the tiles while they compute.
template <class T> struct PackedPanels {
    const char *data;
    Element of;
    int64_t depth, width; // width of a tile: a packed panel, or half of one
    bool leaves = false, pairs = false;
    Element type() const { return of; }
    int64_t terms() const { return pairs ? 2 : 1; } // of a step
    Panel get(const Kernels<T> &, int64_t p, Steps steps, T *) const {
        const int64_t lane = of == kBfloat16 ? 2 : 1; // elements from one column to the next
        return {line(p, steps.first) + p % share() * width * lane * element_bytes(of), kPanel<T>,
                of != kOwn<T>, of != kOwn<T>, leaves};
    }
    int64_t share() const { return kPanel<T> / width; }
    // From one packed panel to the next, in elements; an element is a pair for `pairs`.
    int64_t panel_stride() const {
        return packed_depth(of, depth) * kPanel<T> / (pairs ? terms() : 1);
    }
    // The tiles for several panels.
    const GroupTiles<T> &groups(const Kernels<T> &k) const {
        return pairs ? k.pairs.group : of == kOwn<T> ? k.group : k.of[of].group;
    }
    int64_t line_bytes() const { return packed_step<T>(of) * terms(); }
    int64_t line_step() const { return line_bytes(); }
    const char *line(int64_t p, int64_t k) const {
        return data + (p / share() * packed_depth(of, depth) / terms() + k) * line_step();
    }
};

// Raw weights as panels. Weights whose rows are contiguous in k are transposed in registers.
// Weights whose columns are contiguous (transposed weights of a plain block) are panels already.
// Other weights are packed, a block at a time.
template <class T> struct RawPanels {
    Weights<T> weights; // gate and up of these are read; or down, if `down` is true
    bool down;
    int64_t width;

    bool gated() const { return weights.gated && !down; }
    const Input &last() const { return down ? weights.down : weights.up; }
    int64_t outputs() const { return down ? weights.d : weights.f; }
    Element type() const { return weights.type; }

    // Every tile transposes the panel again. So 16-bit weights for several tiles are transposed and
    // widened once instead, to memory (get).
    bool turns(int64_t tiles) const {
        return last().col == 1 && (!gated() || weights.gate.col == 1) &&
               (tiles == 1 || last().template holds<T>());
    }
    // Vector v of panel p from step k on.
    TurnedArgs<T> turn(int64_t p, int64_t v, int64_t k) const {
        const int64_t half = width / 2;
        const Input &m = gated() && v == 0 ? weights.gate : last();
        const int64_t first = gated() ? p * half : p * width + v * half;
        TurnedArgs<T> t{};
        t.outputs = std::max<int64_t>(outputs() - first, 0);
        t.b = m.at(t.outputs ? first : 0, k);
        t.ldb = m.row;
        return t;
    }

    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        const Input &m = last();
        if (gated()) {
            pack_up_panel(kernels, weights, {p * width / 2, width / 2, width}, steps, to);
            return {to, width};
        }
        const int64_t rows = std::min(width, outputs() - p * width);
        const char *const from = m.at(p * width, steps.first);
        if (m.holds<T>() && m.row == 1 && rows == width) return {from, m.col};
        kernels.of[m.type].pack(from, m.row, m.col, rows, steps.count, to, width, width);
        return {to, width};
    }
};

// How the panels of a matrix are read:
//   kInPlace  where they lie, if they are full (and for 16 bits two vectors wide). This is good for
//             rows that spread over the sets of L2 (see row_stride), or that one tile reads.
//   kSliced   in place, too, but some steps of all panels at a time (Walk::slice)
//   kCopied   copied, a strip at a time
enum class Reading { kInPlace, kSliced, kCopied };

template <class T> struct MatrixPanels {
    Input m; // element (k, column)
    int64_t cols, width;
    Reading reading;
    int64_t paired; // length of the sum, if copied to pairs of bfloat16 (Walk::pairs); else 0
    MatrixPanels(const Input &m, int64_t cols, int64_t width, Reading reading, int64_t paired = 0)
        : m(m), cols(cols), width(width), reading(reading), paired(paired) {}
    Element type() const { return m.type; }
    bool copies() const { return reading == Reading::kCopied; }
    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        const int64_t have = std::min(width, cols - p * width), k = steps.first;
        const bool narrow = !m.holds<T>();
        if (!copies() && m.col == 1 && have == width && (!narrow || width == 2 * kernels.width))
            return {m.at(k, p * width), m.row, narrow};
        if (paired)
            kernels.pairs.pack(m.at(2 * k, p * width), m.col, m.row, have,
                               std::min(2 * steps.count, paired - 2 * k), to, width, width);
        else
            kernels.of[m.type].pack(m.at(k, p * width), m.col, m.row, have, steps.count, to, width,
                                    width);
        return {to, width};
    }
    // Copies some rows of all panels at a time, so that the columns of a row are read together.
    void copy(const Kernels<T> &kernels, PanelRange panels, Steps steps, T *to) const {
        constexpr int64_t kRows = 16;
        each_part(steps, kRows, [&](Steps some) {
            for (int64_t p = panels.first; p < panels.end(); ++p)
                get(kernels, p, some,
                    to + ((p - panels.first) * kBlock + some.first - steps.first) * width);
        });
    }
    int64_t line_bytes() const { return width * m.bytes(); }
    int64_t line_step() const { return m.row * m.bytes(); }
    const char *line(int64_t p, int64_t k) const { return m.at(k, p * width); }
};

// Packed down, packed up, or one side (gate or up) of a packed gated up phase. k counts the rows of
// the raw matrix. The columns are the dimension that the forward pass sums over.
template <class T> struct PackedAcross {
    const char *packed;
    Element of;
    int64_t packed_depth, cols, width; // packed_depth: steps of a packed panel, with padding
    bool gated, upper;                 // upper: of a gated panel the side of up, not of gate
    bool turned;                       // transposed in registers, where the columns are whole
    Element type() const { return of; }
    bool copies() const { return !turned; }
    // Units of a packed panel, and where the columns of panel p begin in the one with unit k.
    int64_t units() const { return gated ? kPanel<T> / 2 : kPanel<T>; }
    const char *at(int64_t p, int64_t k) const {
        return packed + (k / units() * packed_depth + p * width) * packed_step<T>(of);
    }
    void copy(const Kernels<T> &kernels, PanelRange panels, Steps steps, T *to) const {
        for (int64_t p = panels.first; p < panels.end(); ++p)
            get(kernels, p, steps, to + (p - panels.first) * kBlock * width);
    }
    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        const int64_t first = p * width, have = std::min(width, cols - first);
        const int64_t per_panel = units();
        const int64_t run = gated ? kGroup<T> : kPanel<T>; // rows that lie side by side
        each_part(steps, run, [&](Steps some) {
            const int64_t in = some.first % per_panel;
            const int64_t col = gated ? in / run * 2 * run + (upper ? run : 0) : in;
            const int64_t step = some.first / per_panel * packed_depth + first;
            turn(kernels, packed + step * packed_step<T>(of), {col, some.count}, have,
                 to + (some.first - steps.first) * width);
        });
        return {to, width};
    }

  private:
    // Transposes some columns of a packed panel, `steps` numbers of each, into rows.
    void turn(const Kernels<T> &kernels, const char *panel, ColumnRange cols, int64_t steps,
              T *to) const {
        const Access<T> &access = kernels.of[of];
        if (of != kBfloat16)
            return access.pack(panel + cols.first * element_bytes(of), kPanel<T>, 1, steps,
                               cols.count, to, width, width);
        // A pair of steps is moved as one number of 32 bits.
        T pairs[kPanel<T> * kPanel<T> / 2];
        const int64_t half = ceil_div(steps, 2);
        kernels.of[kFloat32].pack(panel + cols.first * 4, kPanel<T>, 1, half, cols.count, pairs,
                                  half, half);
        access.pack(pairs, 1, 2 * half, steps, cols.count, to, width, width);
    }
};

template <class T> struct UnitPanels {
    const T *data; // [token panel][units][token_width]
    int64_t units, token_width, width;
    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        const int64_t rows = std::min(width, units - p * width);
        each_part(steps, token_width, [&](Steps some) {
            kernels.of[kOwn<T>].pack(data + (some.first * units + p * width * token_width),
                                     token_width, 1, rows, some.count,
                                     to + (some.first - steps.first) * width, width, width);
        });
        return {to, width};
    }
};

// Rows of tokens as panels of B: [k = token][columns].
template <class T> struct GatheredPanels {
    TokenRows<T> tokens;
    int64_t cols, width;
    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        tokens.copy(kernels, {steps.first, steps.count},
                    {p * width, std::min(width, cols - p * width)}, to, width);
        return {to, width};
    }
};

// The abilities of these operands (operand.h). Without these lines, a signature that does not fit a
// concept would give no error, and only make the product slow.
static_assert(ReadInOrder<TokenPanels<float>>);
static_assert(ReadInOrder<PackedPanels<float>> && SharesPanels<PackedPanels<float>>);
static_assert(TurnsInRegisters<RawPanels<float>, float>);
static_assert(ReadInOrder<MatrixPanels<float>> && CopiesStrips<MatrixPanels<float>, float>);
static_assert(CopiesStrips<PackedAcross<float>, float> && ReadsAcross<PackedAcross<float>>);
static_assert(HasType<PackedPanels<float>> && HasType<RawPanels<float>> &&
              HasType<MatrixPanels<float>>);

} // namespace ffncore
