// The operands of the products (see gemm.h): what gives rows (A), what gives panels (B), and where
// the tiles of a weight gradient go.
//
//   A  WeightRows    gate | up | down, in place; or copied where k is not contiguous in memory
//      StridedRows   any matrix in place: tokens (x, h, dgate), or columns of such a one
//      PanelRows     token panels read across: rows are units, k is tokens
//      TokenColumns  columns of tokens' rows, gathered block by block: k is tokens
//   B  TokenPanels   prepared panels of tokens [panel][k][width]
//      PackedPanels  packed weights
//      RawPanels     raw weights (few tokens): turned in registers, in place, or packed by blocks
//      MatrixPanels  a matrix whose rows are k: raw weights of the backward pass, x, h
//      UnitPanels    token panels turned: [k = token][units], block by block
//      PackedAcross  packed weights whose k is their outputs, turned block by block
//      GatheredPanels  tokens' rows, gathered: k is tokens
//
// Every B has get(). One that is read in memory's order has line(), where panel p, step k begins,
// line_bytes() to be fetched there, and line_step() to the next k; one whose panels hold several
// tiles' columns has share(); one that can be turned in registers has turns() and turn(); one
// whose copies() is true is copied by strips: blocks of panels [p0, p1) side by side, kBlock steps
// each.
#pragma once
#include "packing.h"
#include "token_rows.h"

namespace ffncore {

// Elements from row to row of a copied block: whole lines, which spread over the sets of L1.
constexpr int64_t kCopiedRow = kBlock + 16;

template <class T>
RowTile<T> halves(const T *a0, int64_t n, int64_t row, int64_t step, int64_t block = kBlock) {
    return {a0, a0 + (n + 1) / 2 * row, row, step, block, block * step};
}

template <class T> struct StridedRows {
    const T *data;
    int64_t row, step = 1;
    int64_t block = kBlock;  // steps of a block: half of it where they are pairs
    int64_t first = 0;       // row that lies at data
    int64_t cut = INT64_MAX; // tiles do not cross it
    bool contiguous() const { return step == 1; }
    int64_t tile_rows(int64_t r, int64_t n) const { return r < cut ? std::min(n, cut - r) : n; }
    StridedRows from(int64_t k) const { // the sum's steps from k on
        StridedRows part = *this;
        part.data += k * step;
        return part;
    }
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, int64_t, int64_t, int64_t, int64_t, int64_t, T *) const {}
    RowTile<T> get(int64_t r, int64_t n, int64_t, int64_t k, int64_t, int64_t, const T *) const {
        return halves(data + (r - first) * row + k * step, n, row, step, block);
    }
};

// Rows of a weight matrix. With `second` a unit is a row of each. They are read in place where they
// hold T and k is contiguous in memory; else copied, to rows or (k not contiguous) to tiles.
template <class T> struct WeightRows {
    Input first, second;       // element (r, k)
    int64_t paired = 0;        // copied to pairs of bfloat16 (Walk::pairs): a row's length; else 0
    int64_t second_offset = 0; // of the second matrix's copy: copy_size of a strip

    // Elements of a copied block of `units` rows: as tiles, or as rows of as many.
    static int64_t copy_size(int64_t units, int64_t tile, bool as_tiles) {
        return ceil_div(units, tile) * (as_tiles ? kTileStride : tile) * kCopiedRow;
    }
    bool pair() const { return second.data != nullptr; }
    bool contiguous() const { return false; }
    int64_t tile_rows(int64_t, int64_t n) const { return n; }
    bool by_rows() const { return !paired && first.col == 1 && (!second.data || second.col == 1); }
    bool copies() const {
        return !by_rows() || !first.holds<T>() || // one tile, one stride
               (second.data && second.row != first.row);
    }

    void prepare(const Kernels<T> &kernels, int64_t r0, int64_t r1, int64_t k, int64_t depth,
                 int64_t tile, T *to) const {
        if (!copies()) return;
        auto copy = [&](const Input &m, T *out) {
            if (!m.data) return;
            const Access<T> &of = kernels.of[m.type];
            if (paired)
                kernels.pairs.pack_tiles(m.at(r0, 2 * k), m.row, m.col, r1 - r0,
                                         std::min(2 * depth, paired - 2 * k), out, tile);
            else if (by_rows())
                of.pack(m.at(r0, k), 1, m.row, depth, r1 - r0, out, kCopiedRow, depth);
            else
                of.pack_tiles(m.at(r0, k), m.row, m.col, r1 - r0, depth, out, tile);
        };
        copy(first, to);
        copy(second, to + second_offset);
    }

    RowTile<T> get(int64_t r, int64_t n, int64_t r0, int64_t k, int64_t depth, int64_t tile,
                   const T *copied) const {
        if (!copies()) {
            RowTile<T> t = halves((const T *)first.at(r, k), n, first.row, (int64_t)1);
            if (second.data) t.a1 = (const T *)second.at(r, k);
            return t;
        }
        const int64_t at =
            by_rows() ? (r - r0) * kCopiedRow : (r - r0) / tile * (depth * kTileStride + kTileGap);
        RowTile<T> t = by_rows() ? halves(copied + at, n, kCopiedRow, (int64_t)1)
                                 : halves(copied + at, n, (int64_t)1, (int64_t)kTileStride);
        if (second.data) t.a1 = copied + at + second_offset;
        return t;
    }
};

// Token panels [token panel][rows][width] read across: k is tokens. Tiles do not cross `cut`.
template <class T> struct PanelRows {
    const T *data;
    int64_t rows, width, cut;
    PanelRows from(int64_t k) const { // the sum's steps from k on: whole panels
        return {data + k * rows, rows, width, cut};
    }
    bool pair() const { return false; }
    bool contiguous() const { return false; } // not over a whole block
    bool copies() const { return false; }
    void prepare(const Kernels<T> &, int64_t, int64_t, int64_t, int64_t, int64_t, T *) const {}
    int64_t tile_rows(int64_t r, int64_t n) const { return r < cut ? std::min(n, cut - r) : n; }
    RowTile<T> get(int64_t r, int64_t n, int64_t, int64_t k, int64_t, int64_t, const T *) const {
        const T *a0 = data + (k / width * rows + r) * width;
        return {a0, a0 + (n + 1) / 2 * width, width, 1, width, width * rows};
    }
};

template <class T> struct TokenPanels {
    const T *data;
    int64_t depth, width, last, last_width; // the last panel may be narrower
    int64_t first = 0;                      // panel that lies at data
    int64_t ld(int64_t p) const { return p == last ? last_width : width; }
    Panel get(const Kernels<T> &, int64_t p, int64_t k, int64_t, T *) const {
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
    Panel get(const Kernels<T> &, int64_t p, int64_t k, int64_t, T *) const {
        const int64_t lane = of == kBfloat16 ? 2 : 1; // elements from column to column
        return {line(p, k) + p % share() * width * lane * element_bytes(of), kPanel<T>,
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

    Panel get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const Input &m = last();
        if (gated()) {
            pack_up_panel(kernels, weights, p * width / 2, width / 2, width, k, depth, to);
            return {to, width};
        }
        const int64_t rows = std::min(width, outputs() - p * width);
        if (m.holds<T>() && m.row == 1 && rows == width) return {m.at(p * width, k), m.col};
        kernels.of[m.type].pack(m.at(p * width, k), m.row, m.col, rows, depth, to, width, width);
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
    Panel get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const int64_t have = std::min(width, cols - p * width);
        const bool narrow = !m.holds<T>();
        if (!copies() && m.col == 1 && have == width && (!narrow || width == 2 * kernels.width))
            return {m.at(k, p * width), m.row, narrow};
        if (paired)
            kernels.pairs.pack(m.at(2 * k, p * width), m.col, m.row, have,
                               std::min(2 * depth, paired - 2 * k), to, width, width);
        else
            kernels.of[m.type].pack(m.at(k, p * width), m.col, m.row, have, depth, to, width,
                                    width);
        return {to, width};
    }
    // Some rows of all panels at a time: a row's columns are read together.
    void copy(const Kernels<T> &kernels, int64_t p0, int64_t p1, int64_t k, int64_t depth,
              T *to) const {
        constexpr int64_t kRows = 16;
        for (int64_t i = 0; i < depth; i += kRows)
            for (int64_t p = p0; p < p1; ++p)
                get(kernels, p, k + i, std::min(kRows, depth - i),
                    to + ((p - p0) * kBlock + i) * width);
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
    void copy(const Kernels<T> &kernels, int64_t p0, int64_t p1, int64_t k, int64_t depth,
              T *to) const {
        for (int64_t p = p0; p < p1; ++p) get(kernels, p, k, depth, to + (p - p0) * kBlock * width);
    }
    Panel get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const int64_t first = p * width, have = std::min(width, cols - first);
        const int64_t per_panel = gated ? kPanel<T> / 2 : kPanel<T>;
        const int64_t run = gated ? kGroup<T> : kPanel<T>; // rows side by side
        for (int64_t i = 0; i < depth; i += run) {
            const int64_t in = (k + i) % per_panel;
            const int64_t col = gated ? in / run * 2 * run + (upper ? run : 0) : in;
            const int64_t step = (k + i) / per_panel * packed_depth + first;
            turn(kernels, packed + step * packed_step<T>(type), col, std::min(run, depth - i), have,
                 to + i * width);
        }
        return {to, width};
    }

  private:
    // `rows` columns of a panel from `col` on, `steps` of each: into rows.
    void turn(const Kernels<T> &kernels, const char *panel, int64_t col, int64_t rows,
              int64_t steps, T *to) const {
        const Access<T> &of = kernels.of[type];
        if (type != kBfloat16)
            return of.pack(panel + col * element_bytes(type), kPanel<T>, 1, steps, rows, to, width,
                           width);
        // A pair of steps is moved like one number of 32 bits.
        T pairs[kPanel<T> * kPanel<T> / 2];
        const int64_t half = ceil_div(steps, 2);
        kernels.of[kFloat32].pack(panel + col * 4, kPanel<T>, 1, half, rows, pairs, half, half);
        of.pack(pairs, 1, 2 * half, steps, rows, to, width, width);
    }
};

template <class T> struct UnitPanels {
    const T *data; // [token panel][units][token_width]
    int64_t units, token_width, width;
    Panel get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        const int64_t rows = std::min(width, units - p * width);
        for (int64_t t = 0; t < depth; t += token_width)
            kernels.of[kOwn<T>].pack(data + ((k + t) * units + p * width * token_width),
                                     token_width, 1, rows, std::min(token_width, depth - t),
                                     to + t * width, width, width);
        return {to, width};
    }
};

// Columns of tokens' rows as rows of A: k is the token. A block is copied, [token][ld].
template <class T> struct TokenColumns {
    TokenRows<T> tokens;
    int64_t ld;
    bool pair() const { return false; }
    bool contiguous() const { return false; }
    bool copies() const { return true; }
    int64_t tile_rows(int64_t, int64_t n) const { return n; }
    void prepare(const Kernels<T> &kernels, int64_t r0, int64_t r1, int64_t k, int64_t depth,
                 int64_t, T *to) const {
        tokens.copy(kernels, k, depth, r0, r1 - r0, to, ld);
    }
    RowTile<T> get(int64_t r, int64_t n, int64_t r0, int64_t, int64_t, int64_t,
                   const T *copied) const {
        return halves(copied + r - r0, n, (int64_t)1, ld);
    }
};

// Tokens' rows as panels of B: [k = token][columns].
template <class T> struct GatheredPanels {
    TokenRows<T> tokens;
    int64_t cols, width;
    Panel get(const Kernels<T> &kernels, int64_t p, int64_t k, int64_t depth, T *to) const {
        tokens.copy(kernels, k, depth, p * width, std::min(width, cols - p * width), to, width);
        return {to, width};
    }
};

// Whether a weight gradient goes past the caches: it is written once, in whole lines, and is larger
// than L2. That spares reading what is overwritten. width: of a tile.
inline bool streams(const Output &out, int64_t rows, int64_t cols, int64_t width, int64_t tokens,
                    bool add, int64_t l2) {
    return !add && tokens <= kBlock && width * out.bytes() % 64 == 0 &&
           rows * cols * out.bytes() > l2;
}

// The epilogue of a weight gradient: out, or from row `cut` on second, (+)= tile. Whole tiles of a
// single block are rounded and written by the micro-kernel where they belong.
template <class T> struct GradientTiles {
    const Kernels<T> *k;
    int64_t width; // of a tile
    Output out, second;
    int64_t cut;
    bool add;
    bool one_block; // the sum is a single block of tokens
    bool stream;    // past the caches
    const Output &of(int64_t r) const { return r < cut ? out : second; }
    char *at(int64_t r, int64_t col) const { return of(r).at(r < cut ? r : r - cut, col); }
    bool direct(int64_t r, int64_t cols) const {
        return one_block && of(r).col == 1 && cols == width;
    }
    void operator()(int64_t r, int64_t n, int64_t, int64_t col, int64_t cols, T *c) const {
        k->of[of(r).type].store(c, width, n, cols, nullptr, 0, 0, at(r, col), of(r).row, of(r).col,
                                add);
    }
};

} // namespace ffncore
