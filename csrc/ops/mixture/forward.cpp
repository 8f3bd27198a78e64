// The forward pass of a mixture, in two phases for each chunk of tokens:
//
//   up    a task has some hidden units of one expert, for all its rows or some of them. It gathers
//         the rows of x and stores h.
//   down  a task has a strip of columns of y, for all experts. The outputs of the rows stay in the
//         scratch memory of the thread, [rows][strip], and are added up for each token in slot
//         order.
//
// So the weights stream through the cores once for each chunk, h is the only array with a row for
// each (token, slot), and one barrier stands between the phases. Each expert has its tokens as rows
// or as panels, as a dense layer with so many tokens would.
#include "mixture.h"

#include "../layer/panel_epilogues.h"
#include "../product/panels.h"
#include "../product/rows.h"

namespace ffncore {

namespace {

// The layout of a group's h: rows of tokens, or token panels.
template <class T> struct HiddenLayout {
    bool rows, pairs;
    int64_t ld;    // rows: elements from one row to the next
    int64_t width; // panels: tokens of a panel
    int64_t elements;
    HiddenLayout(const Kernels<T> &k, const Weights<T> &w, int64_t tokens)
        : rows(forward_in_rows(k, w, tokens)), pairs(takes_pairs(k, w) && (!rows || w.packed())) {
        const int64_t steps = ceil_div(w.f, pairs ? 2 : 1);
        ld = row_stride<T>(steps);
        // All panels have nearly the same width: two of 3 and 2 vectors are faster than two of 4
        // and 1.
        const int64_t vectors = ceil_div(tokens, k.width);
        width = ceil_div(vectors, ceil_div(vectors, k.vectors)) * k.width;
        elements = rows ? tokens * ld : round_up(tokens, width) * steps;
    }
};

template <class T> struct ChunkGroup : Group {
    HiddenLayout<T> layout;
    int64_t hidden;  // offset of its h
    int64_t earlier; // rows of the expert in earlier chunks
};

template <class T> struct Chunk {
    int64_t token0, tokens;
    Dispatch routes;
    std::vector<T> factors;            // of each row, where the weight is on the input
    std::vector<ChunkGroup<T>> groups; // the groups of routes
};

template <class T> class Forward {
  public:
    Forward(const Call<T> &call, const MoeForward<T> &moe)
        : call_(call), moe_(moe), m_(moe.mixture) {
        const int64_t parts = std::max<int64_t>(ceil_div(m_.tokens, chunk_tokens()), 1);
        std::vector<int64_t> seen(m_.experts.size());
        for (int64_t i = 0; i < parts; ++i) {
            const int64_t t0 = m_.tokens * i / parts, n = m_.tokens * (i + 1) / parts - t0;
            Chunk<T> c{t0, n, {m_.ids, {t0, n}, m_.top_k, (int64_t)m_.experts.size()}, {}, {}};
            if (m_.on_input) c.factors = c.routes.in_rows(m_.factors);
            int64_t hidden = 0;
            for (const Group &g : c.routes.groups) {
                const HiddenLayout<T> layout(call.kernels, m_.experts[g.expert], g.rows);
                c.groups.push_back({g, layout, hidden, seen[g.expert]});
                hidden += round_up(layout.elements, 64);
                seen[g.expert] += g.rows;
            }
            most_hidden_ = std::max(most_hidden_, hidden);
            chunks_.push_back(std::move(c));
        }
        if (moe.saved) saved_offsets_ = m_.saved_offsets(), counts_ = std::move(seen);
    }

    void operator()(const Build<T> &build) const {
        T *h = build.arena.template take<T>(most_hidden_);
        for (const Chunk<T> &chunk : chunks_) {
            build.schedule.phase();
            for (int64_t i : chunk.routes.biggest_first()) up(build, chunk, chunk.groups[i], h);
            build.schedule.phase();
            down(build, chunk, h);
        }
    }

  private:
    static int64_t chunk_tokens() {
        return plan_override.token_chunk > 0 ? plan_override.token_chunk : kMoeChunk;
    }

    void up(const Build<T> &whole, const Chunk<T> &chunk, const ChunkGroup<T> &g, T *all_h) const {
        const Build<T> build{whole.schedule, whole.arena, whole.scratch, whole.call,
                             double(g.rows) / double(chunk.routes.rows())};
        const Weights<T> &w = m_.experts[g.expert];
        const HiddenLayout<T> &layout = g.layout;
        T *h = all_h + g.hidden;
        TokenRows<T> x{m_.x, chunk.routes.tokens.data() + g.first,
                       m_.on_input ? chunk.factors.data() + g.first : nullptr};
        if (g.rows == 1 && !x.factors) x = {m_.x.from(x.tokens[0])}; // one row is read in place
        Preactivations saved;
        if (moe_.saved)
            saved = Preactivations(moe_.saved + saved_offsets_[g.expert] * m_.x.bytes(), m_.x.type,
                                   counts_[g.expert], w.f, w.gated)
                        .from(g.earlier, 0);
        if (layout.rows) {
            const bool whole_row =
                x.m.col == 1 && (!layout.pairs || (x.m.row % 2 == 0 && w.d % 2 == 0));
            if (!x.tokens && !whole_row)
                x.tokens = chunk.routes.tokens.data() + g.first, x.m = m_.x;
            return add_up_rows<T>(build, w, x, g.rows, h, layout.ld, saved, layout.pairs);
        }
        Panels<T> panels(build, layout.pairs, layout.width);
        const int64_t width = panels.width;
        panels.product(walk_of<T>(w.d, g.rows), w.f, {panels.up_rows(w)},
                       {panels.fitted(nullptr, panels.steps(w.d), g.rows)},
                       HiddenEpilogue<T>{panels.k, call_.activation, w, width, layout.pairs,
                                         hidden_panels(panels, w, g.rows, h), saved},
                       x);
    }

    static TokenPanels<T> hidden_panels(const Panels<T> &panels, const Weights<T> &w,
                                        int64_t tokens, const T *h) {
        return panels.fitted(h, panels.steps(w.f), tokens);
    }

    // Computes some columns of the outputs of a group's rows, to out [rows][ld].
    using Part = std::function<void(ColumnRange cols, const Scratch<T> &mine, T *out, int64_t ld)>;

    Part part(const Build<T> &build, const ChunkGroup<T> &g, const T *all_h) const {
        const Weights<T> &w = m_.experts[g.expert];
        const HiddenLayout<T> &layout = g.layout;
        const T *const h = all_h + g.hidden;
        const int64_t n = g.rows;
        if (!layout.rows) {
            Panels<T> panels(build, layout.pairs, layout.width);
            const auto ready = panels.prepare(walk_of<T>(w.f, n), {panels.rows(w.down, {}, w.f)},
                                              {hidden_panels(panels, w, n, h)});
            return [=, width = panels.width,
                    bias = w.b_down](ColumnRange cols, const Scratch<T> &mine, T *out, int64_t ld) {
                const Output to{(char *)(out - cols.first), ld, 1, kOwn<T>};
                const OutputEpilogue<T> write{ready.k, to, bias, width, false};
                each_part(PanelRange{0, ceil_div(n, width)}, ready.together, [&](PanelRange some) {
                    ready({cols.first, cols.count}, some, mine, write);
                });
            };
        }
        const Rows<T> rows(build);
        const StridedRows<T> hidden{h, layout.ld, 1, kBlock / (layout.pairs ? 2 : 1)};
        auto of = [&](const auto &panels) -> Part {
            const auto ready = rows.prepare({.tokens = n, .depth = w.f, .cols = w.d}, {hidden},
                                            std::vector{panels});
            return [=, width = rows.width,
                    bias = w.b_down](ColumnRange cols, const Scratch<T> &mine, T *out, int64_t ld) {
                auto write = [=](const Tile &tile, T *c) {
                    const int64_t col = tile.cols.first;
                    ready.k->of[kOwn<T>].store(
                        c, width, tile.rows.count, tile.cols.count, bias ? bias + col : nullptr, 0,
                        1, out + tile.rows.first * ld + col - cols.first, ld, 1, false);
                };
                const int64_t p = cols.first / width;
                for (int64_t t = 0; t < n; t += ready.together)
                    ready(t, {p, ceil_div(cols.end(), width) - p}, mine, write);
            };
        };
        if (w.coded()) return of(coded_down(w, rows.width));
        return w.packed() ? of(rows.packed(w.packed_down, w, w.f, n, layout.pairs))
                          : of(RawPanels<T>{w, true, rows.width});
    }

    void down(const Build<T> &build, const Chunk<T> &chunk, const T *h) const {
        const Dispatch &routes = chunk.routes;
        const auto parts = std::make_shared<std::vector<std::pair<Part, int64_t>>>();
        for (const ChunkGroup<T> &g : chunk.groups) parts->push_back({part(build, g, h), g.first});
        const int64_t d = m_.d, strip = strip_of(routes.rows()), ld = strip + kGap;
        build.scratch.need({.out = routes.rows() * ld + strip});
        const T *factors = m_.on_input ? nullptr : m_.factors + chunk.token0 * m_.top_k;
        build.schedule.job(
            ceil_div(d, strip),
            [=, k = &call_.kernels, row_of = routes.row_of.data(), y = moe_.y.from(chunk.token0),
             tokens = chunk.tokens, top_k = m_.top_k, rows = routes.rows(),
             buffers = &build.scratch](int64_t task, int thread) {
                const Scratch<T> mine = buffers->at(thread);
                const ColumnRange cols{task * strip, std::min(strip, d - task * strip)};
                for (const auto &[run, first] : *parts) run(cols, mine, mine.out + first * ld, ld);
                T *const sum = mine.out + rows * ld;
                const bool direct = y.template holds<T>() && y.col == 1;
                for (int64_t t = 0; t < tokens; ++t) {
                    const int64_t place = t * top_k;
                    char *const out = y.at(t, cols.first);
                    k->combine(mine.out, ld, row_of + place, factors ? factors + place : nullptr,
                               top_k, cols.count, direct ? (T *)out : sum);
                    if (!direct)
                        k->of[y.type].store(sum, strip, 1, cols.count, nullptr, 0, 0, out, y.row,
                                            y.col, false);
                }
            });
    }

    // The columns of a strip, in whole panels of packed weights. Strips are as wide as possible,
    // because each strip reads all of h, but every thread should have some. The outputs that a
    // thread keeps are written and read once, and need not stay in L2 (256 columns are 5 % faster
    // than 64, which would stay there). Those of all threads together take half of the workspace
    // that a call may hold.
    static constexpr int64_t kGap = 16; // elements between rows, so that they spread over L1's sets
    int64_t strip_of(int64_t rows) const {
        constexpr int64_t kPanel = 32, kStripsPerThread = 4, kBytes = 32 << 20;
        const int64_t all = call_.threads * std::max<int64_t>(rows, 1) * (int64_t)sizeof(T);
        const int64_t room = kBytes / all;
        const int64_t wanted = ceil_div(m_.d, call_.threads * kStripsPerThread);
        return std::max(std::min(round_up(wanted, kPanel), room / kPanel * kPanel), kPanel);
    }

    const Call<T> &call_;
    const MoeForward<T> &moe_;
    const Mixture<T> &m_;
    std::vector<Chunk<T>> chunks_;
    int64_t most_hidden_ = 0;
    std::vector<int64_t> saved_offsets_, counts_;
};

} // namespace

template <class T> std::vector<int64_t> Mixture<T>::counts() const {
    std::vector<int64_t> rows(experts.size());
    for (int64_t i = 0; i < tokens * top_k; ++i)
        if (ids[i] >= 0) ++rows[ids[i]];
    return rows;
}

template <class T> std::vector<int64_t> Mixture<T>::saved_offsets() const {
    std::vector<int64_t> at{0};
    for (int64_t rows : counts()) at.push_back(at.back() + saved_elements(rows, f, gated));
    return at;
}

template <class T> bool moe_forward(const Call<T> &call, const MoeForward<T> &moe) {
    return run_schedule(call, Forward<T>(call, moe));
}

#define FFNCORE_INSTANTIATE(T)                                                                     \
    template struct Mixture<T>;                                                                    \
    template bool moe_forward<T>(const Call<T> &, const MoeForward<T> &);
FFNCORE_INSTANTIATE(float)
FFNCORE_INSTANTIATE(double)

} // namespace ffncore
