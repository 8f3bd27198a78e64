// The gradients of a mixture's routing weights, from inner products that an epilogue has stored:
//
//   dw[t, s] (+)= the sum of dots[row]  (+ b_down . dy[t], with the weight on the output)
//
// dots [rows][n] are sums of 8 products each: of dh and h where the weight is on the output, of dx
// and x where it is on the input. They are added in double.
#pragma once
#include <algorithm>

#include "../operands/token_rows.h"
#include "../schedule/call.h"

namespace ffncore {

// Adds the job. dy [rows, d] is gathered; bias is b_down [d], or nullptr; places has token * top_k
// + slot for each row; out is dw [tokens, top_k].
template <class T>
void add_factor_gradient(const Build<T> &build, const Input &dots, int64_t n, int64_t rows,
                         const TokenRows<T> &dy, const T *bias, int64_t d, const int32_t *places,
                         int64_t top_k, const Output &out, bool accumulate) {
    constexpr int64_t kRows = 16; // per task
    build.schedule.job(ceil_div(rows, kRows), [=, k = &build.call.kernels](int64_t task, int) {
        const int64_t end = std::min((task + 1) * kRows, rows);
        for (int64_t r = task * kRows; r < end; ++r) {
            double sum = 0;
            const T *const mine = (const T *)dots.at(r);
            for (int64_t i = 0; i < n; ++i) sum += mine[i];
            constexpr int64_t kSome = 64;
            for (int64_t c = 0; bias && c < d; c += kSome) {
                const int64_t cols = std::min(kSome, d - c);
                T row[kSome], some[kSome / kSumGroup];
                dy.copy(*k, {r, 1}, {c, cols}, row, cols);
                k->dot_groups(row, cols, bias + c, cols, 1, cols, some, kSome);
                for (int64_t i = 0; i < ceil_div(cols, kSumGroup); ++i) sum += some[i];
            }
            const T value = T(sum);
            k->of[out.type].store(&value, 1, 1, 1, nullptr, 0, 0,
                                  out.at(places[r] / top_k, places[r] % top_k), 1, 1, accumulate);
        }
    });
}

} // namespace ffncore
