// Which rows go through which expert: the choices of some tokens, sorted by expert.
//
//   ids [T, k]  ->  groups of rows; a row is one (token, slot), a group all rows of one expert
//
// This is a counting sort. Rows are ordered by expert, then token, then slot. So the order within a
// group does not depend on the other groups. Experts that no token chose have no group.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "../arrays/ranges.h"

namespace ffncore {

struct Group {
    int64_t expert, first, rows; // rows [first, first + rows) of the dispatch
};

struct Dispatch {
    std::vector<Group> groups;   // experts in rising order
    std::vector<int32_t> tokens; // of each row
    std::vector<int32_t> places; // of each row: token * top_k + slot
    std::vector<int32_t> row_of; // of each place, counted from the first of these tokens; or -1
    int64_t rows() const { return (int64_t)tokens.size(); }

    // Sorts the rows of some tokens. Ids are from -1 (no expert) to experts - 1.
    Dispatch(const int32_t *ids, TokenRange of, int64_t top_k, int64_t experts)
        : row_of(of.count * top_k, -1) {
        const int64_t token0 = of.first, count = of.count;
        const int32_t *const mine = ids + token0 * top_k;
        std::vector<int32_t> next(experts + 1);
        for (int64_t i = 0; i < count * top_k; ++i)
            if (mine[i] >= 0) ++next[mine[i] + 1];
        std::partial_sum(next.begin(), next.end(), next.begin());
        for (int64_t e = 0; e < experts; ++e)
            if (next[e + 1] > next[e]) groups.push_back({e, next[e], next[e + 1] - next[e]});
        tokens.resize(next[experts]);
        places.resize(next[experts]);
        for (int64_t i = 0; i < count * top_k; ++i) {
            if (mine[i] < 0) continue;
            const int32_t row = next[mine[i]]++;
            row_of[i] = row;
            tokens[row] = int32_t(token0 + i / top_k);
            places[row] = int32_t(token0 * top_k + i);
        }
    }

    // The factors of all places, in the order of the rows.
    template <class T> std::vector<T> in_rows(const T *of_places) const {
        std::vector<T> out(places.size());
        for (size_t i = 0; i < out.size(); ++i) out[i] = of_places[places[i]];
        return out;
    }

    // For each row, whether it is the first row of its token.
    std::vector<char> firsts(int64_t count) const {
        std::vector<char> seen(count), first;
        for (int32_t token : tokens) first.push_back(!std::exchange(seen[token], 1));
        return first;
    }

    // The tokens below count that have no row, and the experts below count that have none.
    std::vector<int64_t> idle_tokens(int64_t count) const { return missing(tokens, count); }
    std::vector<int64_t> idle_experts(int64_t count) const {
        std::vector<int32_t> hit;
        for (const Group &g : groups) hit.push_back((int32_t)g.expert);
        return missing(hit, count);
    }

    // The indices of the groups, the group with the most rows first.
    std::vector<int64_t> biggest_first() const {
        std::vector<int64_t> order(groups.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return groups[a].rows > groups[b].rows; });
        return order;
    }

  private:
    static std::vector<int64_t> missing(const std::vector<int32_t> &some, int64_t count) {
        std::vector<char> seen(count);
        for (int32_t i : some) seen[i] = 1;
        std::vector<int64_t> others;
        for (int64_t i = 0; i < count; ++i)
            if (!seen[i]) others.push_back(i);
        return others;
    }
};

} // namespace ffncore
