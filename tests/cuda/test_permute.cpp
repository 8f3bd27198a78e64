// Tests the way from expert ids to rows and back, on a CPU: counts, permutation, combination, sums
// over rows, and the gradient of routing weights.
#include "../../csrc/cuda/combine.cuh"
#include "../../csrc/cuda/permute.cuh"
#include "support.h"

namespace {

void test_rank() {
    CHECK(rank_of(0b1011, 0).rank == 0 && rank_of(0b1011, 3).rank == 2);
    CHECK(rank_of(0b1011, 1).count == 3 && rank_of(kAllLanes, 31).rank == 31);
}

struct Rows { // the arrays of a permutation, filled with numbers that have to be overwritten
    std::vector<int32_t> counts, offsets, first_tile, slots, place;
    Permutation p;
    Rows(const std::vector<int32_t> &ids, int64_t experts, int64_t height)
        : counts(permutation_counts((int64_t)ids.size(), experts), -7), offsets(experts + 1, -7),
          first_tile(experts + 1, -7), slots(ids.size(), -7), place(ids.size(), -7),
          p{ids.data(),     (int64_t)ids.size(), experts,      height,      counts.data(),
            offsets.data(), first_tile.data(),   slots.data(), place.data()} {
        launch_permutation(p, nullptr);
    }
    Groups groups() const {
        return {p.offsets, p.first_tile, p.experts, p.slots_in, p.tile_height};
    }
};

std::vector<int32_t> random_ids(int64_t slots, int64_t experts, bool some_out) {
    std::vector<int32_t> ids(slots);
    for (int32_t &id : ids) {
        id = (int32_t)(generator() % experts);
        if (some_out && generator() % 4 == 0) id = generator() % 2 ? -1 : (int32_t)experts;
    }
    return ids;
}

void test_permutation() {
    for (int64_t slots : {0, 1, 31, 32, 33, 255, 256, 257, 1000, 9000})
        for (int64_t experts : {1, 3, 33, 300}) {
            const auto ids = random_ids(slots, experts, slots % 2);
            const Rows rows(ids, experts, 128);
            int32_t row = 0, tile = 0;
            for (int64_t e = 0; e < experts; ++e) {
                CHECK(rows.offsets[e] == row && rows.first_tile[e] == tile);
                int32_t count = 0;
                for (int64_t s = 0; s < slots; ++s) {
                    if (ids[s] != e) continue;
                    CHECK(rows.slots[row] == s && rows.place[s] == row);
                    ++row, ++count;
                }
                tile += (count + 127) / 128;
            }
            CHECK(rows.offsets[experts] == row && rows.first_tile[experts] == tile);
            for (int64_t s = 0; s < slots; ++s)
                if (ids[s] < 0 || ids[s] >= experts) CHECK(rows.place[s] == -1);
            for (int64_t r = row; r < slots; ++r) CHECK(rows.slots[r] == -7);
        }
}

// pad: gaps between rows, and before the first; with 0, rows are whole vectors.
template <class T>
void test_combination(int64_t tokens, int64_t top_k, int64_t columns, int64_t pad) {
    const int64_t experts = 5, slots = tokens * top_k;
    const auto ids = random_ids(slots, experts, true);
    const Rows rows(ids, experts, 128);
    const Array<float> weights(tokens, top_k, top_k, 0);
    const Slots s{rows.p.slots, rows.p.place, top_k, {weights.begin(), top_k, 1, 0}};
    std::vector<int32_t> tokens_of(slots, -7);
    std::vector<float> factors(slots, NAN);
    const Groups groups = rows.groups();
    launch(take_slots, {ceil_div<int64_t>(slots, kRowThreads)}, kRowThreads, 0, nullptr, s, groups,
           tokens_of.data(), factors.data());
    const int64_t used = rows.offsets.back();
    for (int64_t r = 0; r < used; ++r) {
        const int32_t slot = rows.slots[r];
        CHECK(tokens_of[r] == slot / top_k &&
              factors[r] == (float)weights.at(slot / top_k, slot % top_k));
    }

    const Array<T> m(std::max<int64_t>(slots, 1), columns, columns + pad, pad);
    const Matrix<const T> rows_m{m.begin(), m.stride, 1, 0};
    Result<T> y(tokens, columns);
    launch(combine_rows<T, T>, {tokens}, kRowThreads, 0, nullptr, rows.place.data(), top_k, rows_m,
           factors.data(), y.matrix(), columns, false);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < columns; ++c) {
            double sum = 0, size = 0;
            for (int64_t j = 0; j < top_k; ++j) {
                const int32_t row = rows.place[t * top_k + j];
                if (row < 0) continue;
                sum += factors[row] * m.at(row, c), size += std::fabs(factors[row] * m.at(row, c));
            }
            CHECK(close<T>(y.at(t, c), sum, size));
        }

    Result<T> xw(std::max<int64_t>(slots, 1), columns);
    launch(gather_rows<T>, {slots}, kRowThreads, 0, nullptr, tokens_of.data(), factors.data(),
           groups, rows_m, xw.matrix(), columns);
    for (int64_t r = 0; r < used; ++r)
        for (int64_t c = 0; c < columns; ++c)
            CHECK(xw.at(r, c) == rounded<T>((float)m.at(tokens_of[r], c) * factors[r]));

    for (bool add : {false, true}) {
        Result<float> bias(experts, columns);
        if (add) std::fill(bias.data.begin(), bias.data.end(), 3.f);
        Matrix<float> to = bias.matrix();
        to.group = columns;
        launch_sum_rows(groups, rows_m, tokens_of.data(), factors.data(), to, columns, add,
                        nullptr);
        for (int64_t e = 0; e < experts; ++e)
            for (int64_t c = 0; c < columns; ++c) {
                double sum = add ? 3 : 0, size = sum;
                for (int64_t r = rows.offsets[e]; r < rows.offsets[e + 1]; ++r) {
                    const double one = factors[r] * m.at(tokens_of[r], c);
                    sum += one, size += std::fabs(one);
                }
                CHECK(close<float>(bias.at(e, c), sum, size));
            }
    }
}

void test_factor_gradient() {
    const int64_t tokens = 9, top_k = 3, slots = tokens * top_k, experts = 4, parts = 37, d = 40;
    const auto ids = random_ids(slots, experts, true);
    const Rows rows(ids, experts, 128);
    const Array<float> dots(slots, parts, parts, 0), grad_y(tokens, d, d, 0), b(experts, d, d, 0);
    Result<float> to(tokens, top_k);
    launch(factor_gradient<float>, {ceil_div<int64_t>(slots, 8)}, 8 * kWarp, 0, nullptr,
           rows.place.data(), slots, top_k, Matrix<const float>{dots.begin(), parts, 1, 0}, parts,
           ids.data(), Bias{b.begin(), 1, d, kFloat32},
           Matrix<const float>{grad_y.begin(), d, 1, 0}, d, to.matrix(), false);
    for (int64_t s = 0; s < slots; ++s) {
        double sum = 0, size = 0;
        const int32_t row = rows.place[s];
        for (int64_t i = 0; row >= 0 && i < parts; ++i)
            sum += dots.at(row, i), size += std::fabs(dots.at(row, i));
        for (int64_t c = 0; row >= 0 && c < d; ++c) {
            const double one = grad_y.at(s / top_k, c) * b.at(ids[s], c);
            sum += one, size += std::fabs(one);
        }
        CHECK(close<float>(to.at(s / top_k, s % top_k), sum, size));
    }
}

} // namespace

int main() {
    test_rank();
    test_permutation();
    for (int64_t tokens : {0, 1, 40}) {
        test_combination<float>(tokens, 3, 300, 3);
        test_combination<float>(tokens, 2, 36, 0);
        test_combination<Bf16>(tokens, 1, 7, 1);
        test_combination<F16>(tokens, 8, 64, 0);
        test_combination<Bf16>(tokens, 4, 2056, 0); // more columns than a block takes in one step
    }
    test_factor_gradient();
    return finish();
}
