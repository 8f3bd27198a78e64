// The rows that a group's products take from a matrix of tokens [tokens, cols]: row i is that of
// token tokens[i], or of token i, times a factor of its own where there are factors (rounded to the
// matrix's type, as if the caller had multiplied).
//
// Rows that lie as a product wants them are read in place. Others are gathered by the tasks that
// multiply them, into the thread's scratch: as rows, as pairs of bfloat16, or as a panel [k][rows].
// So a mixture of experts keeps no array of the rows in the experts' order.
#pragma once
#include <algorithm>
#include <cstring>

#include "../arrays/array.h"
#include "../arrays/ranges.h"

namespace ffncore {

template <class T> struct TokenRows {
    Input m;
    const int32_t *tokens = nullptr; // nullptr: 0, 1, 2, ...
    const T *factors = nullptr;      // nullptr: 1

    const char *at(int64_t i, int64_t col = 0) const { return m.at(tokens ? tokens[i] : i, col); }
    TokenRows from(int64_t i) const {
        if (!tokens) return {m.from(i), nullptr, factors ? factors + i : nullptr};
        return {m, tokens + i, factors ? factors + i : nullptr};
    }
    bool in_order() const { return !tokens && !factors; }

    // Some columns of some rows -> to [rows][ld]
    void copy(const Kernels<T> &kernels, TokenRange rows, ColumnRange cols, T *to,
              int64_t ld) const {
        const Access<T> &of = kernels.of[m.type];
        const int64_t n = cols.count;
        if (in_order())
            return of.pack(at(rows.first, cols.first), m.col, m.row, n, rows.count, to, ld, n);
        for (int64_t i = rows.first; i < rows.end(); ++i, to += ld) {
            const char *row = at(i, cols.first);
            if (m.holds<T>() && m.col == 1)
                std::memcpy(to, row, n * sizeof(T));
            else
                of.pack(row, m.col, 0, n, 1, to, ld, n);
            if (factors) multiply(kernels, factors + i, n, to);
        }
    }

    // The same of bfloat16 -> to [n][ld pairs]; an odd row has +0 behind it.
    void copy_pairs(const Kernels<T> &kernels, TokenRange rows, int64_t cols, T *to,
                    int64_t ld) const {
        for (int64_t i = rows.first; i < rows.end(); ++i, to += ld) {
            const char *row = at(i);
            Bf16 *out = (Bf16 *)to;
            if (m.col == 1) std::memcpy(out, row, cols * sizeof *out);
            for (int64_t c = 0; m.col != 1 && c < cols; ++c)
                out[c] = ((const Bf16 *)row)[c * m.col];
            const Access<T> &of = kernels.of[kBfloat16];
            for (int64_t c = 0; factors && c < cols; c += kPart) {
                const int64_t some = std::min(kPart, cols - c);
                T numbers[kPart];
                of.pack(out + c, 1, 0, some, 1, numbers, some, some);
                kernels.scale(numbers, some, factors + i, 1, some, numbers, some);
                of.store(numbers, some, 1, some, nullptr, 0, 0, out + c, cols, 1, false);
            }
            if (cols % 2) out[cols] = {};
        }
    }

    // The first columns of some rows -> to [cols][ld]; zero from the last row to ld. pack: Access's
    // of m's type, or that of pairs, whose steps are `terms` columns.
    template <class Pack>
    void panel(const Kernels<T> &kernels, const Pack &pack, int64_t terms, TokenRange rows,
               int64_t cols, T *to, int64_t ld) const {
        const int64_t n = rows.count;
        if (in_order()) return pack(at(rows.first), m.row, m.col, n, cols, to, ld, ld);
        // Some columns of all rows at a time, in L1: 64 rows x 64 columns of float are 16 KiB.
        constexpr int64_t kRows = 64;
        const Access<T> &of = kernels.of[m.type];
        const int64_t bytes = m.bytes();
        alignas(64) T copied[kRows * kPart]; // of m's type, so that there is one way to pack
        for (int64_t c = 0; c < cols; c += kPart) {
            const int64_t some = std::min(kPart, cols - c);
            for (int64_t i = 0; i < n; ++i) {
                char *out = (char *)copied + i * some * bytes;
                const char *row = at(rows.first + i, c);
                if (m.col == 1 && !factors) {
                    std::memcpy(out, row, some * bytes);
                    continue;
                }
                T numbers[kPart];
                of.pack(row, m.col, 0, some, 1, numbers, some, some);
                if (factors)
                    kernels.scale(numbers, some, factors + rows.first + i, 1, some, numbers, some);
                of.store(numbers, some, 1, some, nullptr, 0, 0, out, some, 1, false);
            }
            pack(copied, some, 1, n, some, to + c / terms * ld, ld, ld);
        }
    }

  private:
    static constexpr int64_t kPart = 64; // columns, an even number
    // In place, rounded to m's type.
    void multiply(const Kernels<T> &kernels, const T *factor, int64_t cols, T *row) const {
        kernels.scale(row, cols, factor, 1, cols, row, cols);
        if (m.holds<T>()) return;
        const Access<T> &of = kernels.of[m.type];
        for (int64_t c = 0; c < cols; c += kPart) {
            const int64_t some = std::min(kPart, cols - c);
            F16 rounded[kPart]; // or Bf16
            of.store(row + c, some, 1, some, nullptr, 0, 0, rounded, some, 1, false);
            of.pack(rounded, 1, 0, some, 1, row + c, some, some);
        }
    }
};

} // namespace ffncore
