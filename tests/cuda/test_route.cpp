// Tests routing and its backward pass, on a CPU, against plain loops in double: every score
// function and option, ties, NaN and infinity, given experts, strides. Outputs begin as NaN and ids
// as -7, which must not change between their elements.
#include <numeric>

#include "../../csrc/cuda/route.cuh"
#include "support.h"

namespace {

using Row = std::vector<double>;
using Ids = std::vector<int32_t>;
constexpr double kInfinity = INFINITY;
constexpr int kScoreFunctions = 4;

// A matrix with gaps between rows or between columns, or transposed.
enum Layout { kRows, kGaps, kColumns, kLayouts };
template <class T> struct Strided {
    int64_t rows, cols, row, col;
    T poison;
    std::vector<T> data;
    Strided(int64_t rows, int64_t cols, int layout, T poison)
        : rows(rows), cols(cols),
          row(layout == kColumns ? 1 : (layout == kGaps ? 2 : 1) * cols + 3),
          col(layout == kColumns ? rows + 2
              : layout == kGaps  ? 2
                                 : 1),
          poison(poison), data(rows * row + cols * col + 1, poison) {}
    T &at(int64_t r, int64_t c) { return data[r * row + c * col]; }
    Matrix<T> matrix() { return {data.data(), row, col, 0}; }
    Matrix<const T> read() { return {data.data(), row, col, 0}; }
    // Whether only the elements were written.
    bool gaps_stay() {
        std::vector<T> rest = data;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < cols; ++c) rest[r * row + c * col] = poison;
        return std::all_of(rest.begin(), rest.end(),
                           [&](T x) { return x == poison || (x != x && poison != poison); });
    }
};

bool near(double x, double expected, double size) {
    if (expected != expected) return x != x;
    return x == expected || std::fabs(x - expected) <= 4e-6 * size;
}

// ---- the reference

Row softmax(const Row &z) {
    double largest = -kInfinity, sum = 0;
    for (double x : z) largest = std::fmax(largest, x);
    Row s;
    for (double x : z) s.push_back(std::exp(x - largest));
    for (double x : s) sum += x;
    for (double &x : s) x /= sum;
    return s;
}

double softplus(double z) { return std::fmax(z, 0) + std::log1p(std::exp(-std::fabs(z))); }

Row scores_of(int fn, const Row &z) {
    if (fn == kScoreSoftmax) return softmax(z);
    Row s = z;
    for (double &x : s) {
        if (fn == kScoreSigmoid) x = 1 / (1 + std::exp(-x));
        if (fn == kScoreSqrtSoftplus && x == x) x = std::sqrt(softplus(x));
    }
    return s;
}

// The positions of the `count` largest values, falling; NaN comes first, ties in their order.
Ids first_of(const Row &values, int count) {
    Ids order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return values[a] > values[b] || (values[a] != values[a] && values[b] == values[b]);
    });
    order.resize(count);
    return order;
}

Ids choice(const RouteParams &p, const Row &z, const Row &bias) {
    Row v = p.select_on_logits ? z : scores_of(p.score_fn, z);
    for (size_t i = 0; i < bias.size(); ++i) v[i] += bias[i];
    if (p.top_groups < p.groups) {
        const int size = p.experts / p.groups;
        Row best;
        for (int g = 0; g < p.groups; ++g) {
            const Row group(v.begin() + g * size, v.begin() + (g + 1) * size);
            const Ids two = first_of(group, p.group_max ? 1 : 2);
            best.push_back(p.group_max ? group[two[0]] : group[two[0]] + group[two[1]]);
        }
        const Ids kept = first_of(best, p.top_groups);
        for (int i = 0; i < p.experts; ++i)
            if (std::find(kept.begin(), kept.end(), i / size) == kept.end()) v[i] = p.group_mask;
    }
    return first_of(v, p.k);
}

Row weights_of(const RouteParams &p, const Row &z, const Ids &ids) {
    const auto real = [&](int id) { return id >= 0 && id < p.experts; };
    Row picked, w;
    const Row s = scores_of(p.score_fn, z);
    for (int id : ids)
        if (real(id)) picked.push_back(s[id]);
    double divisor = 1;
    if (p.score_fn == kScoreSoftmaxTopk)
        picked = softmax(picked);
    else if (p.normalize) {
        divisor = std::accumulate(picked.begin(), picked.end(), (double)p.eps);
        if (divisor < p.min) divisor = p.min;
    }
    for (size_t j = 0, next = 0; j < ids.size(); ++j)
        w.push_back(real(ids[j]) ? p.factor * picked[next++] / divisor : 0);
    return w;
}

// ---- options

RouteParams params(int fn, int experts, int k) {
    RouteParams p{};
    p.score_fn = fn, p.experts = experts, p.k = k;
    p.groups = p.top_groups = 1, p.factor = 1;
    return p;
}

// No normalization; division by the sum; with eps; with a min that is not reached; with one that
// is.
constexpr int kNormalizations = 5;
void normalize(RouteParams &p, int which) {
    p.normalize = which > 0;
    p.eps = which == 2 ? 0.3f : 0;
    p.min = which == 3 ? 1e-9f : which == 4 ? 1e3f : 0;
}

// No groups; the sum of two and the largest, each with both masks. Returns false if these groups
// are not possible with so many experts.
constexpr int kGroupings = 5;
bool group(RouteParams &p, int which) {
    if (which == 0) return true;
    p.groups = p.experts % 8 == 0 ? 8 : p.experts % 3 == 0 ? 3 : p.experts;
    p.top_groups = (p.groups + 1) / 2;
    p.group_max = which > 2;
    p.group_mask = which % 2 ? 0 : -INFINITY;
    return p.groups > 1 && (p.group_max || p.groups < p.experts);
}

enum Logits { kNormal, kWild }; // wild: few distinct numbers (ties), NaN and infinity
float draw(Logits kind) {
    if (kind == kNormal) return 2 * std::normal_distribution<float>()(generator);
    const float numbers[] = {0, -0.f, 1, 2, -1, 1, 2, 0, -1, 0, 1, 2};
    const unsigned i = generator() % 400;
    return i == 0 ? NAN : i == 1 ? INFINITY : i < 8 ? -INFINITY : numbers[i % 12];
}

// Different experts for each token, and some slots without one.
Ids some_ids(int experts, int k) {
    Ids ids(experts);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), generator);
    ids.resize(k);
    const int32_t none[] = {-1, -1, experts, -5, INT32_MAX, INT32_MIN};
    for (int32_t &id : ids)
        if (generator() % 4 == 0) id = none[generator() % 6];
    return ids;
}

struct Tokens {
    Strided<float> logits;
    Tokens(const RouteParams &p, int64_t tokens, Logits kind)
        : logits(tokens, p.experts, generator() % kLayouts, NAN) {
        for (int64_t t = 0; t < tokens; ++t)
            for (int i = 0; i < p.experts; ++i) logits.at(t, i) = draw(kind);
    }
    Row row(int64_t t) {
        Row z;
        for (int64_t i = 0; i < logits.cols; ++i) z.push_back(logits.at(t, i));
        return z;
    }
};

// ---- forward

void test_route(const RouteParams &p, int64_t tokens, Logits kind, bool biased, bool given) {
    Tokens in(p, tokens, kind);
    const int64_t step = 1 + generator() % 2; // the stride of bias and log_sum_exp
    std::vector<float> bias(p.experts * step, NAN), log_sum_exp(tokens * step, NAN);
    Row bias_row;
    for (int i = 0; i < p.experts; ++i) {
        bias[i * step] = kind == kWild ? (float)(generator() % 3) : draw(kNormal);
        if (biased) bias_row.push_back(bias[i * step]);
    }
    Strided<int32_t> ids(tokens, p.k, generator() % kLayouts, -7);
    Strided<float> weights(tokens, p.k, generator() % kLayouts, NAN);
    std::vector<Ids> expected;
    for (int64_t t = 0; t < tokens; ++t) {
        expected.push_back(given ? some_ids(p.experts, p.k) : choice(p, in.row(t), bias_row));
        for (int j = 0; given && j < p.k; ++j) ids.at(t, j) = expected[t][j];
    }
    const bool logarithm = generator() % 2;
    launch_route(p,
                 {tokens, in.logits.read(), biased ? bias.data() : nullptr, step, given,
                  ids.matrix(), weights.matrix(), logarithm ? log_sum_exp.data() : nullptr, step},
                 nullptr);

    int wrong = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        const Row z = in.row(t), w = weights_of(p, z, expected[t]);
        for (int j = 0; j < p.k; ++j) {
            wrong += ids.at(t, j) != expected[t][j];
            wrong += !near(weights.at(t, j), w[j], std::fabs(w[j]));
        }
        double sum = NAN;
        if (p.score_fn == kScoreSoftmax && logarithm) {
            const double largest = *std::max_element(z.begin(), z.end());
            sum = 0;
            for (double x : z) sum += std::exp(x - largest);
            sum = largest + std::log(sum);
        }
        if (kind == kNormal) wrong += !near(log_sum_exp[t * step], sum, 1 + std::fabs(sum));
    }
    CHECK(wrong == 0);
    CHECK(ids.gaps_stay() && weights.gaps_stay());
    if (wrong)
        std::printf("    score %d, %d of %d experts, groups %d of %d, mask %g, normalize %d, "
                    "logits %d, bias %d, given %d: %d wrong\n",
                    p.score_fn, p.k, p.experts, p.top_groups, p.groups, p.group_mask, p.normalize,
                    kind, biased, given, wrong);
}

void test_options(RouteParams p) {
    for (int grouping = 0; grouping < kGroupings; ++grouping) {
        if (!group(p, grouping)) continue;
        for (const bool on_logits : {false, true}) {
            // As in a call: softmax_topk always chooses by the logits.
            p.select_on_logits = on_logits;
            for (const bool biased : {false, true}) {
                normalize(p, generator() % kNormalizations);
                p.factor = generator() % 2 ? 2.5f : 1;
                // Seven tokens take two blocks, the last of which is not full.
                test_route(p, p.k > 64 ? 2 : 7, kNormal, biased, false);
                // A score plus a whole number may tie in float or in double alone.
                test_route(p, p.k > 64 ? 1 : 5, kWild, biased && on_logits, false);
            }
        }
    }
}

void test_forward() {
    for (int fn = 0; fn < kScoreFunctions; ++fn)
        for (int experts : {1, 7, 32, 33, 64, 256}) {
            std::vector<int> counts{1};
            if (experts > 8) counts.push_back(8);
            if (experts > 1) counts.push_back(experts);
            for (int k : counts) {
                test_options(params(fn, experts, k));
                for (int which = 0; which < kNormalizations; ++which) {
                    RouteParams p = params(fn, experts, k);
                    normalize(p, which);
                    test_route(p, 3, kNormal, false, false);
                    test_route(p, 6, kNormal, true, true);
                }
            }
            test_route(params(fn, experts, 1), 0, kNormal, false, false);
        }
    // A block of fewer tokens, and one whose single token needs more than the usual shared memory.
    test_route(params(kScoreSigmoid, 3000, 8), 3, kNormal, true, false);
    test_route(params(kScoreSoftmax, 13000, 4), 2, kNormal, true, false);
    test_route(params(kScoreSoftmaxTopk, 1000, 1000), 1, kNormal, false, false);
}

// ---- pieces

static_assert(comes_before(2, 5, 1, 0) && !comes_before(1, 0, 2, 5));
static_assert(comes_before(1, 0, 1, 5) && !comes_before(1, 5, 1, 0) && !comes_before(1, 0, 1, 0));
static_assert(comes_before(NAN, 9, INFINITY, 0) && !comes_before(INFINITY, 0, NAN, 9));
static_assert(comes_before(NAN, 0, NAN, 1) && !comes_before(NAN, 1, NAN, 0));

// The order of every two candidates is that of a list that is written out.
void test_order() {
    const float values[] = {NAN, INFINITY, 3, 1, 0, -0.f, -2, -INFINITY};
    std::vector<Candidate> all;
    for (float v : values)
        for (int index : {0, 3, 40}) // both zeros are one value, ordered by their indices
            all.push_back({v, std::signbit(v) && v == 0 ? index + 50 : index});
    for (size_t i = 0; i < all.size(); ++i) {
        CHECK(comes_before(before_all(), all[i]) && comes_before(all[i], after_all()));
        for (size_t j = 0; j < all.size(); ++j) CHECK(comes_before(all[i], all[j]) == (i < j));
    }
}

// Also where e^z is too small for a float, but its root is not.
void test_sqrt_softplus() {
    int wrong = 0;
    for (double z = -170; z < 200; z += 0.37) {
        const double v = (float)z, root = std::sqrt(softplus(v));
        const double exact = v < -30 ? std::exp(v / 2) : root;
        const Act a = sqrt_softplus((float)z);
        wrong += !near(a.value, exact, exact);
        const double slope = 1 / (1 + std::exp(-v)) / (2 * exact);
        wrong += !near(a.slope, slope, slope);
    }
    CHECK(wrong == 0);
    CHECK(sqrt_softplus(-INFINITY).value == 0 && sqrt_softplus(-INFINITY).slope == 0);
    CHECK(sqrt_softplus(INFINITY).value == INFINITY && sqrt_softplus(INFINITY).slope == 0);
    CHECK(std::isnan(sqrt_softplus(NAN).value) && std::isnan(sqrt_softplus(NAN).slope));
}

// ---- backward

void test_gradient(const RouteParams &p, int64_t tokens, bool no_experts) {
    Tokens in(p, tokens, kNormal);
    Strided<int32_t> ids(tokens, p.k, generator() % kLayouts, -7);
    Strided<float> grad(tokens, p.k, generator() % kLayouts, NAN);
    Strided<float> out(tokens, p.experts, generator() % kLayouts, NAN);
    std::vector<Ids> chosen;
    for (int64_t t = 0; t < tokens; ++t) {
        chosen.push_back(no_experts ? Ids(p.k, -1) : some_ids(p.experts, p.k));
        for (int j = 0; j < p.k; ++j) {
            ids.at(t, j) = chosen[t][j];
            grad.at(t, j) = draw(kNormal);
        }
    }
    launch_route_backward(p, {tokens, in.logits.read(), ids.read(), grad.read(), out.matrix()},
                          nullptr);

    constexpr double kStep = 1e-5;
    int wrong = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        Row z = in.row(t);
        double largest = 0;
        for (int j = 0; j < p.k; ++j) largest = std::fmax(largest, std::fabs(grad.at(t, j)));
        const auto loss = [&] {
            const Row w = weights_of(p, z, chosen[t]);
            double sum = 0;
            for (int j = 0; j < p.k; ++j) sum += w[j] * grad.at(t, j);
            return sum;
        };
        for (int i = 0; i < p.experts; ++i) {
            const double here = z[i];
            z[i] = here + kStep;
            const double above = loss();
            z[i] = here - kStep;
            const double expected = no_experts ? 0 : (above - loss()) / (2 * kStep);
            z[i] = here;
            const bool by_min = p.min > 1 && p.score_fn != kScoreSoftmaxTopk;
            const double size = no_experts ? 0 : p.factor * largest / (by_min ? p.min : 1);
            wrong += !near(out.at(t, i), expected, size);
            // Gradients that must be 0 are exactly 0.
            const auto in_row = std::find(chosen[t].begin(), chosen[t].end(), i);
            const bool shared = p.score_fn == kScoreSoftmax && (!p.normalize || p.eps || p.min > 1);
            wrong += in_row == chosen[t].end() && !shared && out.at(t, i) != 0;
        }
    }
    CHECK(wrong == 0);
    CHECK(out.gaps_stay());
    if (wrong)
        std::printf("    gradient: score %d, %d of %d experts, normalize %d, eps %g, min %g: %d\n",
                    p.score_fn, p.k, p.experts, p.normalize, p.eps, p.min, wrong);
}

void test_backward() {
    for (int fn = 0; fn < kScoreFunctions; ++fn)
        for (int which = 0; which < kNormalizations; ++which)
            for (int experts : {1, 7, 32, 33, 64, 256})
                for (int k : {1, std::min(8, experts), experts}) {
                    RouteParams p = params(fn, experts, k);
                    normalize(p, which);
                    p.factor = 2.5f;
                    test_gradient(p, experts > 64 ? 2 : 6, false);
                    test_gradient(p, 1, true);
                    test_gradient(p, 0, false);
                }
}

} // namespace

int main() {
    test_order();
    test_sqrt_softplus();
    test_forward();
    test_backward();
    return finish();
}
