// The sums for the gradients of xielu's two parameters, p and n (ActBackwardArgs). The kernels give
// a sum for each group of 8 tokens of a hidden unit. Here these are added to one number each, in
// double: for each unit over its groups in order, then over the units in runs of 64. Neither order
// depends on the plan.
#pragma once
#include "panel_epilogues.h"

namespace ffncore {

template <class T> struct XieluSums {
    T *p, *n;              // sums of the groups, [units of a chunk][ld]
    double *sum_p, *sum_n; // sums of the units, [f]
    int64_t ld;
    void take(Arena &arena, int64_t f, int64_t units, int64_t tokens) {
        ld = ceil_div(tokens, kSumGroup);
        p = arena.take<T>(units * ld);
        n = arena.take<T>(units * ld);
        sum_p = arena.take<double>(f);
        sum_n = arena.take<double>(f);
    }
    // Adds a job for the sums of the groups, from dh and the preactivations in the saved layout.
    void add_groups(const Build<T> &build, int64_t units, int64_t tokens,
                    const ReadPreactivations &pre, const Preactivations &dh) const {
        constexpr int64_t kUnits = 16; // per task
        build.schedule.job(
            ceil_div(units, kUnits),
            [=, *this, k = &build.call.kernels, act = build.call.activation](int64_t task, int) {
                const int64_t unit = task * kUnits;
                pre.each_panel(0, tokens, [&](int64_t first, int64_t n) {
                    dh.each_panel(first, n, [&](int64_t t, int64_t count) {
                        const int64_t to = unit * ld + t / kSumGroup;
                        const int64_t rows = std::min(kUnits, units - unit);
                        alignas(64) T copy[2 * kUnits * kSavedPanel];
                        const SavedTile<T> saved(*k, pre, {t, count}, {unit, rows}, copy);
                        ActBackwardArgs<T> a{};
                        a.rows = rows;
                        a.cols = count;
                        a.dh = (const T *)(dh.up + dh.at(t, unit));
                        a.ld_dh = dh.width(t);
                        a.gate = saved.gate;
                        a.up = saved.up;
                        a.ld_pre = saved.ld;
                        a.xielu_p = p + to;
                        a.xielu_n = this->n + to;
                        a.ld_xielu = ld;
                        k->act_backward(act, a);
                    });
                });
            });
    }
    void add_chunk(Schedule &s, UnitRange units, int64_t tokens, bool first) const {
        s.job(1, [=, *this](int64_t, int) {
            const int64_t groups = ceil_div(tokens, kSumGroup);
            for (int64_t j = 0; j < units.count; ++j) {
                const int64_t unit = units.first + j;
                double a = first ? 0 : sum_p[unit], b = first ? 0 : sum_n[unit];
                for (int64_t i = 0; i < groups; ++i) {
                    a += p[j * ld + i];
                    b += n[j * ld + i];
                }
                sum_p[unit] = a;
                sum_n[unit] = b;
            }
        });
    }
    void finish(Schedule &s, int64_t f, double *out) const {
        s.phase();
        s.job(1, [=, *this](int64_t, int) {
            out[0] = out[1] = 0;
            total(f, out);
        });
    }
    void total(int64_t f, double *out) const {
        for (int64_t j = 0; j < f; j += 64) {
            double a = 0, b = 0;
            for (int64_t i = j; i < std::min(j + 64, f); ++i) {
                a += sum_p[i];
                b += sum_n[i];
            }
            out[0] += a;
            out[1] += b;
        }
    }
};

} // namespace ffncore
