// What gives panels, B of a product (operand.h):
//
//   TokenPanels     prepared panels of tokens [panel][k][width]
//   PackedPanels    packed weights
//   RawPanels       raw weights (few tokens): turned in registers, in place, or packed by blocks
//   MatrixPanels    a matrix whose rows are k: raw weights of the backward pass, x, h
//   UnitPanels      token panels turned: [k = token][units], block by block
//   PackedAcross    packed weights whose k is their outputs, turned block by block
//   GatheredPanels  tokens' rows, gathered: k is tokens
#pragma once
#include "../packing/packing.h"
#include "operand.h"
#include "token_rows.h"

namespace ffncore {

template <class T> struct TokenPanels {
    const T *data;
    int64_t depth, width, last, last_width; // the last panel may be narrower
    int64_t first = 0;                      // panel that lies at data
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

// Panels of 16-bit elements are widened by the tiles.
template <class T> struct PackedPanels {
    const char *data;
    Element of;
    int64_t depth, width; // width of a tile: a panel, or half of one
    bool leaves = false, pairs = false;
    Element type() const { return of; }
    int64_t terms() const { return pairs ? 2 : 1; } // of a step
    Panel get(const Kernels<T> &, int64_t p, Steps steps, T *) const {
        const int64_t lane = of == kBfloat16 ? 2 : 1; // elements from column to column
        return {line(p, steps.first) + p % share() * width * lane * element_bytes(of), kPanel<T>,
                of != kOwn<T>, of != kOwn<T>, leaves};
    }
    int64_t share() const { return kPanel<T> / width; }
    int64_t line_bytes() const { return packed_step<T>(of) * terms(); }
    int64_t line_step() const { return line_bytes(); }
    const char *line(int64_t p, int64_t k) const {
        return data + (p / share() * packed_depth(of, depth) / terms() + k) * line_step();
    }
};

// Raw weights as panels. Where rows are contiguous in k they are turned in registers; where k
// rows are (transposed weights, plain), the matrix is the panel; else a block is packed.
template <class T> struct RawPanels {
    Weights<T> weights; // the up phase of it; or, with `down`, its down matrix
    bool down;
    int64_t width;

    bool gated() const { return weights.gated && !down; }
    const Input &last() const { return down ? weights.down : weights.up; }
    int64_t outputs() const { return down ? weights.d : weights.f; }
    Element type() const { return weights.type; }

    // For each tile anew; 16 bits are rather turned and widened once, to memory.
    bool turns(int64_t tiles) const {
        return last().col == 1 && (!gated() || weights.gate.col == 1) &&
               (tiles == 1 || last().template holds<T>());
    }
    // Vector v of panel p from block k on.
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

// How a matrix is read: full panels where they lie (of 16 bits: two vectors wide), which is good
// for rows that spread over the sets of L2 (see row_stride), or that are read by one tile; the same
// by slices (Walk::slice); or copied, a strip at a time.
enum class Reading { kInPlace, kSliced, kCopied };

template <class T> struct MatrixPanels {
    Input m; // element (k, column)
    int64_t cols, width;
    Reading reading;
    int64_t paired; // copied to pairs of bfloat16 (Walk::pairs): length of the sum; else 0
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
    // Some rows of all panels at a time: a row's columns are read together.
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

// Packed down, or (gated: one side of) packed up: k counts the rows of the raw matrix, columns are
// what those are summed over in the forward pass.
template <class T> struct PackedAcross {
    const char *packed;
    Element type;
    int64_t packed_depth, cols, width; // steps of a packed panel, padding included
    bool gated, upper;
    bool copies() const { return true; }
    void copy(const Kernels<T> &kernels, PanelRange panels, Steps steps, T *to) const {
        for (int64_t p = panels.first; p < panels.end(); ++p)
            get(kernels, p, steps, to + (p - panels.first) * kBlock * width);
    }
    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        const int64_t first = p * width, have = std::min(width, cols - first);
        const int64_t per_panel = gated ? kPanel<T> / 2 : kPanel<T>;
        const int64_t run = gated ? kGroup<T> : kPanel<T>; // rows side by side
        each_part(steps, run, [&](Steps some) {
            const int64_t in = some.first % per_panel;
            const int64_t col = gated ? in / run * 2 * run + (upper ? run : 0) : in;
            const int64_t step = some.first / per_panel * packed_depth + first;
            turn(kernels, packed + step * packed_step<T>(type), {col, some.count}, have,
                 to + (some.first - steps.first) * width);
        });
        return {to, width};
    }

  private:
    // Columns of a panel, `steps` of each: into rows.
    void turn(const Kernels<T> &kernels, const char *panel, ColumnRange cols, int64_t steps,
              T *to) const {
        const Access<T> &of = kernels.of[type];
        if (type != kBfloat16)
            return of.pack(panel + cols.first * element_bytes(type), kPanel<T>, 1, steps,
                           cols.count, to, width, width);
        // A pair of steps is moved like one number of 32 bits.
        T pairs[kPanel<T> * kPanel<T> / 2];
        const int64_t half = ceil_div(steps, 2);
        kernels.of[kFloat32].pack(panel + cols.first * 4, kPanel<T>, 1, half, cols.count, pairs,
                                  half, half);
        of.pack(pairs, 1, 2 * half, steps, cols.count, to, width, width);
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

// Tokens' rows as panels of B: [k = token][columns].
template <class T> struct GatheredPanels {
    TokenRows<T> tokens;
    int64_t cols, width;
    Panel get(const Kernels<T> &kernels, int64_t p, Steps steps, T *to) const {
        tokens.copy(kernels, {steps.first, steps.count},
                    {p * width, std::min(width, cols - p * width)}, to, width);
        return {to, width};
    }
};

// Their abilities. A signature that no longer fits would lose one without an error, and only be
// slow.
static_assert(ReadInOrder<TokenPanels<float>>);
static_assert(ReadInOrder<PackedPanels<float>> && SharesPanels<PackedPanels<float>>);
static_assert(TurnsInRegisters<RawPanels<float>, float>);
static_assert(ReadInOrder<MatrixPanels<float>> && CopiesStrips<MatrixPanels<float>, float>);
static_assert(CopiesStrips<PackedAcross<float>, float>);
static_assert(HasType<PackedPanels<float>> && HasType<RawPanels<float>> &&
              HasType<MatrixPanels<float>>);

} // namespace ffncore
