// The memory of a call: parts of one buffer, each thread's buffers for its products, and the
// running sums that a product keeps between its calls.
#pragma once
#include <algorithm>
#include <utility>

#include "../arrays/sizes.h"

namespace ffncore {

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

// One thread's buffers for a product.
template <class T> struct Scratch {
    T *tile;    // one tile
    T *a;       // a strip's block of A, copied: strip rows x kBlock
    T *b;       // a strip's blocks of B, copied: kBlock x panel width each
    T *sums;    // running sums of a strip; with slices, those of a block behind them
    T *partial; // of sums with several partial sums: a strip's partial sum at hand
    T *out;     // of a mixture: all rows of some columns of y, before they are combined
};

// The sizes of its parts, in elements; `tile` is the same for all products.
struct ScratchSizes {
    int64_t a = 0, b = 0, sums = 0, partial = 0, out = 0;
};

// Every thread's Scratch. Grows to the largest product's needs while a schedule is built; the
// jobs look their part up when they run.
template <class T> struct ScratchSet : ScratchSizes {
    int64_t tile = kMaxRows * kMaxVectors * 64 / (int64_t)sizeof(T);
    T *base = nullptr;
    void need(const ScratchSizes &sizes) {
        auto grow = [](int64_t &have, int64_t need) { have = std::max(have, round_up(need, 64)); };
        grow(a, sizes.a); // whole cache lines
        grow(b, sizes.b);
        grow(sums, sizes.sums);
        grow(partial, sizes.partial);
        grow(out, sizes.out);
    }
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

// The running sums of a product that comes in several calls, each a chunk of the summed dimension:
// [panel][rows][panel width].
template <class T> struct Carry {
    T *sums = nullptr;    // nullptr: one call is the whole sum
    T *partial = nullptr; // the partial sum at hand, from the second one on
};

// What a product's running sums are kept in between chunks of hidden units; a second array where
// there are several partial sums of these.
template <class T> Carry<T> take_carry(Arena &arena, bool needed, int64_t elements, int64_t f) {
    Carry<T> carry;
    if (needed) carry.sums = arena.take<T>(elements);
    if (needed && f > kPartialSum) carry.partial = arena.take<T>(elements);
    return carry;
}

} // namespace ffncore
