// Rows with a factor each, the routing weights of a mixture of experts:
//
//   scale       to[r][c] = factors[r] * from[r][c]
//   combine     sum[c] = the sum over i, in order, of factors[i] * rows[index[i]][c]
//   dot_groups  sums[r][g] = the sum of a[r][c] * b[r][c] over the 8 columns of group g
//
// combine is one chain of fma for each column. It begins with a product, so that a single row with
// factor 1 comes out unchanged. dot_groups adds products in the order of xielu's sums (GroupSums),
// with +0 beyond the last column. Nothing outside rows x cols is touched.
#pragma once

namespace ffncore {
namespace {

template <class F>
void scale(const typename F::T *from, int64_t ld, const typename F::T *factors, int64_t rows,
           int64_t cols, typename F::T *to, int64_t ld_to) {
    for (int64_t r = 0; r < rows; ++r, from += ld, to += ld_to) {
        const auto factor = F::set1(factors[r]);
        for_each_vector<F, true>(cols, [&](auto lanes, int64_t c) {
            lanes.store(to + c, F::mul(factor, lanes.load(from + c)));
        });
    }
}

template <class F>
void combine(const typename F::T *rows, int64_t ld, const int32_t *index,
             const typename F::T *factors, int64_t n, int64_t cols, typename F::T *sum) {
    for_each_vector<F, true>(cols, [&](auto lanes, int64_t c) {
        auto total = F::zero();
        bool first = true;
        for (int64_t i = 0; i < n; ++i) {
            if (index[i] < 0) continue;
            const auto row = lanes.load(rows + index[i] * ld + c);
            if (!factors)
                total = first ? row : F::add(total, row);
            else
                total = first ? F::mul(F::set1(factors[i]), row)
                              : F::fma(F::set1(factors[i]), row, total);
            first = false;
        }
        lanes.store(sum + c, total);
    });
}

template <class F>
void dot_groups(const typename F::T *a, int64_t lda, const typename F::T *b, int64_t ldb,
                int64_t rows, int64_t cols, typename F::T *sums, int64_t ld) {
    using T = typename F::T;
    for (int64_t r = 0; r < rows; ++r, a += lda, b += ldb, sums += ld) {
        for (int64_t c = 0; c < cols; c += GroupSums<T>::kLanes) {
            T products[GroupSums<T>::kLanes];
            const int64_t have = smaller(cols - c, GroupSums<T>::kLanes);
            for (int64_t i = 0; i < GroupSums<T>::kLanes; i += F::W) {
                const int64_t n = have - i < 0 ? 0 : smaller(have - i, F::W);
                F::store(products + i, F::mul(F::load_n(a + c + i, n), F::load_n(b + c + i, n)));
            }
            for (int64_t g = 0; g * kSumGroup < have; ++g)
                sums[c / kSumGroup + g] = GroupSums<T>::tree(products + g * kSumGroup);
        }
    }
}

} // namespace
} // namespace ffncore
