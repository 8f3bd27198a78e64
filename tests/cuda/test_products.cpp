// Tests the products of the CUDA kernels on a CPU (cuda_emulator.h): where threads, tiles and
// numbers lie, and products against loops in double. Prints differences, and then returns 1.
#include <set>

#include "../../csrc/cuda/product.cuh"
#include "../../csrc/cuda/simt_tile.cuh"
#include "../../csrc/cuda/tensor_tile.cuh"
#include "support.h"

namespace {

// ---- where things lie

template <int chunks> void test_swizzle(int rows) {
    std::set<int> places;
    for (int row = 0; row < rows; ++row)
        for (int chunk = 0; chunk < chunks; ++chunk) places.insert(swizzled<chunks>(row, chunk));
    CHECK((int)places.size() == rows * chunks && *places.rbegin() == rows * chunks - 1);
    for (int row = 0; row < rows; row += 8)
        for (int chunk = 0; chunk < chunks; ++chunk) { // the reads of one phase of ldmatrix
            std::set<int> banks;
            for (int i = 0; i < 8; ++i) banks.insert(swizzled<chunks>(row + i, chunk) % 8);
            CHECK(banks.size() == 8);
        }
}

// Each sum has a place of its own. Numbers that half a warp writes after mma.sync, or a quarter of
// a warp reads, are in different banks.
void test_staged() {
    std::set<int> places;
    for (int row = 0; row < 128; ++row)
        for (int col = 0; col < 128; ++col) places.insert(staged(row, col));
    CHECK(places.size() == 128 * 128 && *places.rbegin() == 128 * 128 - 1);
    for (int half = 0; half < 2; ++half) {
        std::set<int> banks;
        for (int lane = half * 16; lane < half * 16 + 16; ++lane)
            for (int i = 0; i < 2; ++i) {
                const Place at = place_in_c(lane, i);
                banks.insert(staged(at.row, at.col) % 32);
            }
        CHECK(banks.size() == 32);
    }
    for (int row = 0; row < 4; ++row)
        for (int i = 0; i < 8; ++i) CHECK(staged(row, 8 * i) % 8 == 0);
}

void test_fragments() {
    std::set<std::pair<int, int>> a, b, c;
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const Place in_a = place_in_a(lane, i), in_c = place_in_c(lane, i);
            a.insert({in_a.row, in_a.col}), a.insert({in_a.row, in_a.col + 1});
            c.insert({in_c.row, in_c.col});
        }
        for (int i = 0; i < 2; ++i) {
            const Place in_b = place_in_b(lane, i);
            b.insert({in_b.row, in_b.col}), b.insert({in_b.row + 1, in_b.col});
        }
    }
    CHECK(a.size() == 16 * 16 && b.size() == 16 * 8 && c.size() == 16 * 8);
}

template <class Tile> void test_tile_covers() {
    std::set<std::pair<int, int>> places;
    if constexpr (requires { Tile::kStages; }) {
        for (int warp = 0; warp < Tile::kThreads / kWarp; ++warp)
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 8; ++j)
                    places.insert(
                        {Tile::fragment_row(warp, i) / 16, Tile::fragment_column(warp, j) / 8});
        CHECK(places.size() == 8 * 16);
    } else {
        for (int thread = 0; thread < Tile::kThreads; ++thread)
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 2; ++j)
                    places.insert(
                        {Tile::thread_row(thread, i) / 4, Tile::thread_column(thread, j) / 4});
        CHECK(places.size() == 32 * 32);
    }
}

void test_raster() {
    for (int64_t tiles_m : {1, 2, 7, 8, 9, 16, 21})
        for (int64_t tiles_n : {1, 3, 8}) {
            std::set<std::pair<int64_t, int64_t>> tiles;
            for (int64_t b = 0; b < tiles_m * tiles_n; ++b) {
                const TileAt at = raster(b, tiles_m, tiles_n);
                CHECK(at.m >= 0 && at.m < tiles_m && at.n >= 0 && at.n < tiles_n);
                tiles.insert({at.m, at.n});
            }
            CHECK((int64_t)tiles.size() == tiles_m * tiles_n);
        }
}

void test_scheduler() {
    for (const auto &counts : std::vector<std::vector<int>>{
             {1}, {128}, {129}, {0, 5, 0, 0, 300, 1, 0}, {0, 0, 7}, {127, 128, 129}, {0, 0}}) {
        const Partition parts(counts, 128);
        const Groups groups = parts.groups(128);
        CHECK(groups.tiles() <= groups.most_tiles());
        std::vector<int> seen(groups.rows, -1);
        for (int64_t tile = 0; tile < groups.tiles(); ++tile) {
            const RowTile at = row_tile(groups, tile);
            CHECK(at.begin < at.end && at.end - at.begin <= 128);
            for (int64_t r = at.begin; r < at.end; ++r) {
                CHECK(seen[r] == -1);
                seen[r] = (int)at.group;
            }
        }
        for (int64_t g = 0; g < groups.count; ++g)
            for (int64_t r = groups.begin(g); r < groups.end(g); ++r) CHECK(seen[r] == g);
    }
}

// ---- products

template <class Element> struct OnTensorCores {
    template <bool a, bool b, bool gated> using Tile = TensorTile<Element, a, b, gated>;
};
template <class Weight> struct InFloat {
    template <bool a, bool b, bool gated> using Tile = SimtTile<Weight, a, b, gated>;
};

// Groups of gathered rows of x times the weights of each group, along k or across, with two terms.
template <class Kind, bool b_along_k>
void test_rows(const std::vector<int> &counts, int64_t n, int64_t depth, int64_t pad,
               int64_t offset) {
    using Tile = typename Kind::template Tile<true, b_along_k, false>;
    using A = typename Tile::A;
    using B = typename Tile::B;
    const Partition parts(counts, Tile::kM);
    const int64_t rows = parts.offsets.back(), tokens = 50, groups = (int64_t)counts.size();
    const Array<A> x(tokens, depth, depth + pad, offset), x2(rows, depth, depth + pad, offset);
    const int64_t lines = b_along_k ? n : depth, length = b_along_k ? depth : n;
    const Array<B> w(groups * lines, length, length + pad, offset),
        w2(groups * lines, length, length + pad, offset);
    std::vector<int32_t> gathered(rows);
    for (int32_t &line : gathered) line = (int32_t)(generator() % tokens);
    Result<A> out(rows, n);

    RowProduct<A, B> p{parts.groups(Tile::kM),      2, {x.operand(), x2.operand()},
                       {w.operand(), w2.operand()}, n, depth};
    p.a[0].lines = gathered.data();
    p.b[0].group_stride = p.b[1].group_stride = lines * (length + pad);
    const StoreEpilogue<A> store{out.matrix(), {}, n, false};
    launch(row_product<Tile, StoreEpilogue<A>>, blocks_of<Tile>(p), Tile::kThreads,
           Tile::kSharedBytes, nullptr, p, store);

    int wrong = 0;
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t r = parts.offsets[g]; r < parts.offsets[g + 1]; ++r)
            for (int64_t c = 0; c < n; ++c) {
                double sum = 0, size = 0;
                for (int64_t k = 0; k < depth; ++k) {
                    const int64_t line = g * lines + (b_along_k ? c : k), i = b_along_k ? k : c;
                    const double one = x.at(gathered[r], k) * w.at(line, i);
                    const double two = x2.at(r, k) * w2.at(line, i);
                    sum += one + two, size += std::fabs(one) + std::fabs(two);
                }
                wrong += !close<A>(out.at(r, c), sum, size);
            }
    if (wrong) std::printf("rows: n %d depth %d pad %d: %d\n", (int)n, (int)depth, (int)pad, wrong);
    CHECK(wrong == 0);
}

// act(x W_gate^T) * (x W_up^T) for one group.
template <class Kind> void test_gated(int64_t rows, int64_t n, int64_t depth) {
    using Tile = typename Kind::template Tile<true, true, true>;
    using A = typename Tile::A;
    using B = typename Tile::B;
    const Array<A> x(rows, depth, depth, 0);
    const Array<B> gate(n, depth, depth, 0), up(n, depth, depth, 0);
    Result<A> h(rows, n), save_gate(rows, n), save_up(rows, n);
    std::vector<float> bias(n);
    for (int64_t i = 0; i < n; ++i) bias[i] = (float)std::sin((double)i);
    RowProduct<A, B> p{{nullptr, nullptr, 1, rows, Tile::kM}, 1, {x.operand(), {}},
                       {gate.operand(), up.operand()},        n, depth};
    ActivationParams act{};
    act.kind = kSilu;
    act.alpha = act.gate_multiplier = 1;
    const Bias b{bias.data(), 1, 0, kFloat32};
    const HiddenEpilogue<A> hidden{act, b, {}, h.matrix(), save_gate.matrix(), save_up.matrix(), n};
    launch(row_product<Tile, HiddenEpilogue<A>>, blocks_of<Tile>(p), Tile::kThreads,
           Tile::kSharedBytes, nullptr, p, hidden);
    int wrong = 0;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < n; ++c) {
            double g = bias[c], u = 0, size = 1;
            for (int64_t k = 0; k < depth; ++k) {
                g += x.at(r, k) * gate.at(c, k), u += x.at(r, k) * up.at(c, k);
                size += std::fabs(x.at(r, k) * gate.at(c, k)) + std::fabs(x.at(r, k) * up.at(c, k));
            }
            wrong += !close<A>(save_gate.at(r, c), g, size) + !close<A>(save_up.at(r, c), u, size) +
                     !close<A>(h.at(r, c), g / (1 + std::exp(-g)) * u,
                               size * (1 + std::fabs(g)) * (1 + std::fabs(u)));
        }
    CHECK(wrong == 0);
}

// From dy W_down: dgate, dup and h of every row, and the sums of dh h for the gradients of routing
// weights.
template <class Kind> void test_gradient(int64_t rows, int64_t f, int64_t d, bool plain) {
    using Tile = typename Kind::template Tile<true, false, false>;
    using T = typename Tile::A;
    const Array<T> dy(rows, d, d, 0), down(d, f, f + f % 8, 0), gate(rows, f, f, 0),
        up(rows, f, f, 0);
    const Array<float> factors(1, rows, rows, 0);
    const int64_t parts = ceil_div<int64_t>(f, kSumColumns);
    // All parts of a tile are written, so there has to be room for whole tiles.
    Result<float> dots(rows, ceil_div<int64_t>(f, Tile::kN) * (Tile::kN / kSumColumns));
    Result<T> dgate(rows, f), dup(rows, f), h(rows, f);
    ActivationParams act{};
    act.kind = kSilu;
    act.alpha = act.gate_multiplier = 1;
    GradientEpilogue<T, false> e{};
    e.act = act;
    if (!plain) e.gate = {gate.begin(), f, 1, 0}, e.dgate = dgate.matrix();
    e.up = {up.begin(), f, 1, 0};
    e.factors = factors.begin();
    e.dup = dup.matrix(), e.h = h.matrix(), e.dots = dots.matrix();
    e.columns = f;
    RowProduct<T, T> p{
        {nullptr, nullptr, 1, rows, Tile::kM}, 1, {dy.operand(), {}}, {down.operand(), {}}, f, d};
    launch(row_product<Tile, GradientEpilogue<T, false>>, blocks_of<Tile>(p), Tile::kThreads,
           Tile::kSharedBytes, nullptr, p, e);
    int wrong = 0;
    for (int64_t r = 0; r < rows; ++r) {
        const double factor = factors.at(0, r);
        std::vector<double> sums(parts), sizes(parts);
        for (int64_t c = 0; c < f; ++c) {
            double dh = 0, size = 0;
            for (int64_t k = 0; k < d; ++k) {
                dh += dy.at(r, k) * down.at(k, c), size += std::fabs(dy.at(r, k) * down.at(k, c));
            }
            const double v = plain ? up.at(r, c) : gate.at(r, c), u = plain ? 1 : up.at(r, c);
            const double s = 1 / (1 + std::exp(-v)), a = v * s, slope = s * (1 + v * (1 - s));
            size = 8 * size * (1 + std::fabs(u)) * (1 + std::fabs(v));
            const double to_gate = factor * dh * u * slope;
            if (!plain) {
                wrong += !close<T>(dgate.at(r, c), to_gate, size);
                wrong += !close<T>(dup.at(r, c), factor * dh * a, size);
            } else {
                wrong += !close<T>(dup.at(r, c), to_gate, size);
            }
            wrong += !close<T>(h.at(r, c), a * u * factor, size);
            sums[c / kSumColumns] += dh * a * u;
            sizes[c / kSumColumns] += size * std::fabs(a * u);
        }
        for (int64_t i = 0; i < parts; ++i)
            wrong += !close<float>(dots.at(r, i), sums[i], sizes[i]);
    }
    CHECK(wrong == 0);
}

// Sums over the rows of each group, of gathered x times h.
template <class Kind>
void test_sums(const std::vector<int> &counts, int64_t m, int64_t n, bool add) {
    using Tile = typename Kind::template Tile<false, false, false>;
    using T = typename Tile::A;
    const Partition parts(counts, Tile::kM);
    const int64_t rows = parts.offsets.back(), tokens = 50, groups = (int64_t)counts.size();
    const Array<T> x(tokens, m, m + 8, 0), h(std::max<int64_t>(rows, 1), n, n, 0);
    std::vector<int32_t> gathered(rows);
    for (int32_t &line : gathered) line = (int32_t)(generator() % tokens);
    Result<float> out(groups * m, n);
    if (add) std::fill(out.data.begin(), out.data.end(), 2.f);
    SumProduct<T, typename Tile::B> p{parts.groups(Tile::kM), x.operand(), h.operand(), m, n};
    p.a.lines = gathered.data();
    StoreEpilogue<float> store{out.matrix(), {}, n, add};
    store.out.group = m * n;
    launch(sum_product<Tile, StoreEpilogue<float>>, blocks_of<Tile>(p), Tile::kThreads,
           Tile::kSharedBytes, nullptr, p, store);
    int wrong = 0;
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t i = 0; i < m; ++i)
            for (int64_t c = 0; c < n; ++c) {
                double sum = add ? 2 : 0, size = sum;
                for (int64_t r = parts.offsets[g]; r < parts.offsets[g + 1]; ++r) {
                    sum += x.at(gathered[r], i) * h.at(r, c);
                    size += std::fabs(x.at(gathered[r], i) * h.at(r, c));
                }
                wrong += !close<float>(out.at(g * m + i, c), sum, size);
            }
    CHECK(wrong == 0);
}

template <class Kind> void test_products() {
    for (int64_t depth : {1, 8, 31, 32, 33, 100, 161})
        test_rows<Kind, true>({3, 0, 20}, 24, depth, depth % 8 ? 3 : 8, 0);
    for (int64_t n : {1, 7, 8, 63, 65, 128, 129}) {
        test_rows<Kind, true>({5}, n, 40, 0, 0);
        test_rows<Kind, false>({5}, n, 40, n % 8 ? 0 : 8, 0);
    }
    test_rows<Kind, true>({0, 130, 1, 128}, 136, 48, 0, 0);
    test_rows<Kind, false>({0, 130, 1, 128}, 136, 48, 0, 0);
    test_rows<Kind, true>({4}, 9, 0, 8, 0);   // an empty sum
    test_rows<Kind, true>({9}, 17, 24, 8, 3); // unaligned
    test_rows<Kind, false>({9}, 17, 24, 7, 1);
    test_rows<Kind, true>({}, 8, 8, 0, 0);
    for (int64_t n : {1, 31, 64, 65, 130}) test_gated<Kind>(n % 2 ? 3 : 129, n, 40);
    for (int64_t f : {1, 32, 33, 129}) test_gradient<Kind>(f == 33 ? 130 : 5, f, 40, f == 32);
    test_sums<Kind>({0, 1, 40}, 16, 24, false);
    test_sums<Kind>({33, 0, 7}, 129, 130, true);
    test_sums<Kind>({64}, 7, 5, false);
}

} // namespace

int main() {
    test_swizzle<4>(128);
    test_swizzle<16>(32);
    test_fragments();
    test_staged();
    test_tile_covers<TensorTile<Bf16, true, true, false>>();
    test_tile_covers<TensorTile<Bf16, true, true, true>>();
    test_tile_covers<SimtTile<float, true, true, false>>();
    test_raster();
    test_scheduler();
    test_products<OnTensorCores<Bf16>>();
    test_products<OnTensorCores<F16>>();
    test_products<InFloat<float>>();
    return finish();
}
