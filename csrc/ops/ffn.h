// The dense FFN, forward and backward, as schedules over groups (a dense layer is a mixture with
// one expert). A group is the weights of one expert and the tokens that go through it.
//
//   ffn_rows.cpp             forward with tokens as rows: packed weights, or few tokens
//   ffn_panels.cpp           forward with tokens as panels: raw weights read in place
//   ffn_backward_rows.cpp    backward with tokens as rows: packed weights, or few tokens
//   ffn_backward_panels.cpp  backward with tokens as panels
#pragma once
#include <utility>
#include <vector>

#include "../core/workspace.h"
#include "packing.h"
#include "plan.h"
#include "schedule.h"
#include "token_rows.h"

namespace ffncore {

// gate and up before the activation. One layout for every ISA: panels of 64 tokens, [f][64], the
// last panel [f][tokens rounded up to 16]; all of gate, then all of up. up == nullptr: none.
constexpr int64_t kSavedPanel = 64, kSavedGrain = 16;
int64_t saved_elements(int64_t tokens, int64_t f, bool gated);

// Their type is that of x: in 16 bits the backward pass begins with rounded numbers.
template <class Byte> struct SavedPanels {
    Byte *gate = nullptr, *up = nullptr;
    Element type = kFloat32;
    int64_t tokens = 0, f = 0;
    int64_t token0 = 0, unit0 = 0; // where what is looked at begins

    SavedPanels() = default;
    SavedPanels(Byte *saved, Element type, int64_t tokens, int64_t f, bool gated)
        : gate(gated ? saved : nullptr), up(saved), type(type), tokens(tokens), f(f) {
        if (saved && gated) up += saved_elements(tokens, f, false) * element_bytes(type);
    }
    SavedPanels from(int64_t token, int64_t unit) const {
        SavedPanels part = *this;
        part.token0 += token;
        part.unit0 += unit;
        return part;
    }
    // Distance of two units of the token's panel, and bytes to where the token's value of a unit
    // lies.
    int64_t width(int64_t token) const {
        const int64_t first = (token0 + token) / kSavedPanel * kSavedPanel;
        return std::min(kSavedPanel, round_up(tokens - first, kSavedGrain));
    }
    int64_t at(int64_t token, int64_t unit) const {
        const int64_t t = token0 + token;
        return (t / kSavedPanel * kSavedPanel * f + (unit0 + unit) * width(token) +
                t % kSavedPanel) *
               element_bytes(type);
    }
    // body(first, count): the tokens of [token, token + n), panel by panel.
    template <class Body> void each_panel(int64_t token, int64_t n, const Body &body) const {
        for (int64_t t = token, end = token + n; t < end;) {
            const int64_t count = std::min(end - t, kSavedPanel - (token0 + t) % kSavedPanel);
            body(t, count);
            t += count;
        }
    }
};

using Preactivations = SavedPanels<char>;           // to be written
using ReadPreactivations = SavedPanels<const char>; // to be read

template <class T> struct ForwardGroup {
    Weights<T> weights;
    int64_t tokens;
    Input x;
    Output y;
    char *saved; // or nullptr
};

// Gradients with data == nullptr are not needed, and cost nothing.
template <class T> struct BackwardGroup {
    Weights<T> weights;
    int64_t tokens;
    Input x, grad_y;
    const char *saved; // or nullptr: recompute
    bool accumulate;
    Output grad_x, grad_gate, grad_up, grad_down;
    Output grad_b_gate, grad_b_up, grad_b_down; // vectors: stride in row
    bool xielu;           // the sums behind the gradients of xielu's parameters are needed
    double xielu_sums[2]; // receives them
};

// What a backward pass has to compute, from what is asked for.
template <class T> struct Needs {
    bool gate, up, down, x; // gradients
    bool b_gate, b_up, b_down, xielu;
    bool dh;            // dgate or dup
    bool h;             // for dW_down
    bool preactivation; // gate and up
    explicit Needs(const BackwardGroup<T> &g)
        : gate(g.grad_gate.data), up(g.grad_up.data), down(g.grad_down.data), x(g.grad_x.data),
          b_gate(g.grad_b_gate.data), b_up(g.grad_b_up.data), b_down(g.grad_b_down.data),
          xielu(g.xielu), dh(gate || up || x || b_gate || b_up || xielu), h(down),
          preactivation(dh || h) {}
};

template <class T> struct Call {
    const Kernels<T> &kernels;
    ActivationParams activation;
    int threads;
    int64_t l2;
};

// bfloat16's arithmetic has no subnormals.
template <class T> bool flushes(const Kernels<T> &kernels) { return kernels.round != nullptr; }

// Whether there is an instruction that takes pairs of bfloat16. The forward pass through packed
// weights goes by it, and so does all that has tokens as panels.
template <class T> bool takes_pairs(const Kernels<T> &kernels, const Weights<T> &w) {
    return w.type == kBfloat16 && kernels.pairs.pack;
}

// Whether the forward pass has tokens as rows. Raw weights of 16 bits are widened either way: to
// turn them as well costs as much as a quarter of a vector of tokens, so that panels are better
// only where their last vector of tokens is nearly full. With many tokens the difference is small.
template <class T>
bool forward_in_rows(const Kernels<T> &kernels, const Weights<T> &w, int64_t tokens) {
    constexpr int64_t kMany = 256;
    const int64_t idle = round_up(tokens, kernels.width) - tokens;
    const bool better = tokens <= kernels.max_rows[2] || 4 * idle > kernels.width;
    const bool widened = w.type != kOwn<T> && !takes_pairs(kernels, w);
    return tokens_in_rows(tokens, w.packed(), widened && better && tokens <= kMany);
}

// Hands out parts of one buffer; with base == nullptr it only adds up.
class Arena {
  public:
    explicit Arena(char *base = nullptr) : base_(base) {}
    template <class T> T *take(int64_t elements) {
        const int64_t at = used_;
        used_ += round_up(elements * (int64_t)sizeof(T), 64);
        return base_ ? (T *)(base_ + at) : nullptr;
    }
    int64_t used() const { return used_; }

  private:
    char *base_;
    int64_t used_ = 0;
};

// Every thread's Scratch. Grows to the largest product's needs while a schedule is built; the
// jobs look their part up when they run. Sizes in elements.
template <class T> struct ScratchSet {
    int64_t a = 0, b = 0, sums = 0, partial = 0, out = 0;
    int64_t tile = kMaxRows * kMaxVectors * 64 / (int64_t)sizeof(T);
    T *base = nullptr;
    void need(int64_t copied, int64_t packed, int64_t running, int64_t combined = 0) {
        a = std::max(a, round_up(copied, 64)); // whole cache lines
        b = std::max(b, round_up(packed, 64));
        sums = std::max(sums, round_up(running, 64));
        out = std::max(out, round_up(combined, 64));
    }
    // Of a product with several partial sums (Walk::long_sum).
    void need_partial(int64_t running) { partial = std::max(partial, round_up(running, 64)); }
    void take(Arena &arena, int threads) { base = arena.take<T>(threads * each()); }
    Scratch<T> at(int thread) const {
        Scratch<T> mine;
        T *at = base + thread * each();
        mine.tile = std::exchange(at, at + tile);
        mine.a = std::exchange(at, at + a);
        mine.b = std::exchange(at, at + b);
        mine.sums = std::exchange(at, at + sums);
        mine.partial = std::exchange(at, at + partial);
        mine.out = at;
        return mine;
    }

  private:
    int64_t each() const { return tile + a + b + sums + partial + out; }
};

// What a product's running sums are kept in between chunks of hidden units; a second array where
// there are several partial sums of these.
template <class T> Carry<T> take_carry(Arena &arena, bool needed, int64_t elements, int64_t f) {
    Carry<T> carry;
    if (needed) carry.sums = arena.take<T>(elements);
    if (needed && f > kPartialSum) carry.partial = arena.take<T>(elements);
    return carry;
}

// Where a group's phases are added. With an arena that only counts, nothing may run.
template <class T> struct Build {
    Schedule &schedule;
    Arena &arena;
    ScratchSet<T> &scratch;
    const Call<T> &call;
    double share = 1; // of a phase's work that one job is: a group of a mixture has less
};

// Bytes of the groups' buffers, and of these and the threads' scratch.
template <class T, class Add>
std::pair<int64_t, int64_t> count_schedule(const Call<T> &call, const Add &add,
                                           ScratchSet<T> &scratch) {
    Schedule schedule(Schedule::kCount);
    Arena arena;
    add(Build<T>{schedule, arena, scratch, call});
    const int64_t shared = arena.used();
    scratch.take(arena, call.threads);
    return {shared, arena.used()};
}

// A schedule is built twice: to count memory (the groups' buffers, then the threads' scratch), and
// for good. add(build) adds its phases. false: out of memory.
template <class T, class Add> bool run_schedule(const Call<T> &call, const Add &add) {
    ScratchSet<T> scratch;
    const auto [shared, bytes] = count_schedule(call, add, scratch);
    Lease lease(bytes);
    if (!lease.data()) return false;
    Schedule schedule(call.threads, flushes(call.kernels));
    Arena arena((char *)lease.data());
    scratch.base = (T *)((char *)lease.data() + shared);
    add(Build<T>{schedule, arena, scratch, call});
    run_region(schedule, call.threads);
    return true;
}
template <class T, class Add> int64_t count_workspace(const Call<T> &call, const Add &add) {
    ScratchSet<T> scratch;
    return count_schedule(call, add, scratch).second;
}

// Cuts [rows] x [panels] into tasks; rows are cut between tiles of `quantum` rows.
struct Grid {
    int64_t rows, quantum, row_tasks, panels, panel_tasks;
    // At least kTasksPerThread tasks a thread where there is that much work, and a multiple of the
    // threads, so that equal cores end together; at most `together` panels a task. A job that is a
    // share of its phase has its share of these tasks.
    Grid(int64_t rows, int64_t quantum, int64_t panels, int64_t together, int threads,
         double share = 1);
    int64_t tasks() const { return row_tasks * panel_tasks; }
    int64_t row(int64_t i) const { // first row of row task i
        const int64_t tiles = ceil_div(rows, quantum);
        return std::min(rows, tiles * i / row_tasks * quantum);
    }
    int64_t panel(int64_t i) const { return panels * i / panel_tasks; }
    template <class Run> void run(int64_t task, const Run &body) const {
        const int64_t r = task % row_tasks, p = task / row_tasks;
        body(row(r), row(r + 1), panel(p), panel(p + 1));
    }
};

// How a product's task uses L2. Few panels: they stay, and the rows stream past. Many: a strip of
// rows stays, block by block, and the panels pass by.
template <class T> struct Blocking {
    int64_t together; // panels a task
    int64_t strip;    // units a strip
    bool rows_stay;
    // Tiles of `tile` units of `unit` rows each.
    Blocking(int64_t depth, int64_t width, int64_t panels, int64_t tile, int64_t unit, bool copied,
             int64_t l2);
};

template <class T> int64_t workspace_forward(const Call<T> &, const std::vector<ForwardGroup<T>> &);
template <class T> int64_t workspace_backward(const Call<T> &, std::vector<BackwardGroup<T>> &);

// false: out of memory.
template <class T>
bool ffn_forward(const Call<T> &call, const std::vector<ForwardGroup<T>> &groups);
template <class T> bool ffn_backward(const Call<T> &call, std::vector<BackwardGroup<T>> &groups);

// Each adds one group's phases.
template <class T> void add_forward_rows(const Build<T> &build, const ForwardGroup<T> &group);
template <class T> void add_forward_panels(const Build<T> &build, const ForwardGroup<T> &group);
template <class T>
void add_backward_rows(const Build<T> &build, BackwardGroup<T> &group, const Plan &plan);
template <class T>
void add_backward_panels(const Build<T> &build, BackwardGroup<T> &group, const Plan &plan);

// Adds to the current phase what turns x [tokens, d] into gate and up of `part`: their activation
// goes into h, they themselves into `save`, where asked for. pairs: x and h are rows of bfloat16
// (Rows::pairs), and ldh counts pairs.
template <class T>
void add_up_rows(const Build<T> &build, const Weights<T> &part, const TokenRows<T> &x,
                 int64_t tokens, T *h, int64_t ldh, const Preactivations &save, bool pairs = false);

template <class T> PlanRequest forward_request(const Call<T> &call, const ForwardGroup<T> &group);
template <class T> PlanRequest backward_request(const Call<T> &call, const BackwardGroup<T> &group);

} // namespace ffncore
