// The rows that the products of a group take from a matrix of tokens m [tokens, cols]:
//
//   row i = factors[i] * m[tokens[i]]      tokens == nullptr: m[i]; factors == nullptr: 1
//
// A row with a factor is rounded to the type of m, as if the caller had multiplied. Rows that lie
// as a product needs them are read in place. Other rows are gathered by the tasks that multiply
// them, into the scratch memory of the thread: as rows, as pairs of bfloat16, or as a panel
// [k][rows]. So a mixture of experts needs no array that holds all rows in the order of their
// experts.
#pragma once
#include <algorithm>
#include <cstring>

#include "../arrays/array.h"
#include "../arrays/ranges.h"

namespace ffncore {

template <class T> struct TokenRows {
    Input m;
    const int32_t *tokens = nullptr;
    const T *factors = nullptr;

    const char *at(int64_t i, int64_t col = 0) const { return m.at(tokens ? tokens[i] : i, col); }
    TokenRows from(int64_t i) const {
        if (!tokens) return {m.from(i), nullptr, factors ? factors + i : nullptr};
        return {m, tokens + i, factors ? factors + i : nullptr};
    }
    bool in_order() const { return !tokens && !factors; }

    // Copies some columns of some rows to `to` [rows][ld].
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

    // The same for whole rows of bfloat16, to [rows][ld pairs]. A row of odd length is followed by
    // +0.
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

    // Copies the first `cols` columns of some rows, transposed, to `to` [cols][ld], with zeros from
    // the last row to ld. `pack` is Access::pack for the type of m, or Pairs::pack, for which a
    // step is `terms` columns.
    template <class Pack>
    void panel(const Kernels<T> &kernels, const Pack &pack, int64_t terms, TokenRange rows,
               int64_t cols, T *to, int64_t ld) const {
        const int64_t n = rows.count;
        if (in_order()) return pack(at(rows.first), m.row, m.col, n, cols, to, ld, ld);
        // Some columns of all rows at a time, in L1: 64 rows x 64 columns of float are 16 KiB.
        constexpr int64_t kRows = 64;
        const Access<T> &of = kernels.of[m.type];
        const int64_t bytes = m.bytes();
        alignas(64) T copied[kRows * kPart]; // holds elements of m's type, as `pack` reads them
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
    // Multiplies a row in place, and rounds it to the type of m.
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
