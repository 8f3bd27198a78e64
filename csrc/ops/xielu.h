// The sums behind the gradients of xielu's two parameters (ActBackwardArgs), on their way from
// groups of 8 tokens to one number each. No order in it depends on the plan.
#pragma once
#include "ffn.h"

namespace ffncore {

// xielu's sums: per unit, over its groups of 8 tokens in order, in double; at the end over units
// in runs of 64. Neither order depends on the plan.
template <class T> struct XieluSums {
    T *p, *n;              // [units of a chunk][ld]
    double *sum_p, *sum_n; // [f]
    int64_t ld;
    void take(Arena &arena, int64_t f, int64_t units, int64_t tokens) {
        ld = ceil_div(tokens, kXieluGroup);
        p = arena.take<T>(units * ld);
        n = arena.take<T>(units * ld);
        sum_p = arena.take<double>(f);
        sum_n = arena.take<double>(f);
    }
    void add_chunk(Schedule &s, int64_t f0, int64_t units, int64_t tokens, bool first) const {
        s.job(1, [=, *this](int64_t, int) {
            const int64_t groups = ceil_div(tokens, kXieluGroup);
            for (int64_t j = 0; j < units; ++j) {
                double a = first ? 0 : sum_p[f0 + j], b = first ? 0 : sum_n[f0 + j];
                for (int64_t i = 0; i < groups; ++i) {
                    a += p[j * ld + i];
                    b += n[j * ld + i];
                }
                sum_p[f0 + j] = a;
                sum_n[f0 + j] = b;
            }
        });
    }
    void finish(Schedule &s, int64_t f, double *out) const {
        s.phase();
        s.job(1, [=, *this](int64_t, int) {
            out[0] = out[1] = 0;
            for (int64_t j = 0; j < f; j += 64) {
                double a = 0, b = 0;
                for (int64_t i = j; i < std::min(j + 64, f); ++i) {
                    a += sum_p[i];
                    b += sum_n[i];
                }
                out[0] += a;
                out[1] += b;
            }
        });
    }
};

} // namespace ffncore
