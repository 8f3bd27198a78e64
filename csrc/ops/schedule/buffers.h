// The memory of a call: the parts of its one buffer (Arena), the buffers of each thread for its
// products (Scratch), and the running sums that a product keeps between its chunks (Carry).
#pragma once
#include <algorithm>
#include <utility>

#include "../arrays/sizes.h"

namespace ffncore {

// Hands out parts of one buffer. With base == nullptr it only counts their bytes.
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
    T *a;       // a block of A of a strip, copied: rows of the strip x kBlock
    T *b;       // a block of B of a strip, copied: kBlock x panel width for each panel
    T *sums;    // running sums of a strip; with slices, followed by the sums of the current block
    T *partial; // the current partial sums of a strip, where a sum has several
    T *out;     // of a mixture: some columns of the outputs of all rows, before they are combined
};

// The sizes of the parts of a Scratch, in elements. `tile` has the same size for all products.
struct ScratchSizes {
    int64_t a = 0, b = 0, sums = 0, partial = 0, out = 0;
};

// The Scratch of every thread. It grows to the needs of the largest product while a schedule is
// built. Jobs ask for their thread's part when they run, because only then the sizes are final.
template <class T> struct ScratchSet : ScratchSizes {
    int64_t tile = kMaxRows * kMaxVectors * 64 / (int64_t)sizeof(T);
    T *base = nullptr;
    void need(const ScratchSizes &sizes) {
        auto grow = [](int64_t &have, int64_t need) { have = std::max(have, round_up(need, 64)); };
        grow(a, sizes.a); // in whole cache lines
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

// The running sums of a product that is computed a chunk of the summed dimension at a time:
// [panel][rows][panel width].
template <class T> struct Carry {
    T *sums = nullptr;    // nullptr: one chunk is the whole sum
    T *partial = nullptr; // the current partial sum, from the second one on
};

// Takes the memory for the running sums over f hidden units; with a second array where such a sum
// has several partial sums.
template <class T> Carry<T> take_carry(Arena &arena, bool needed, int64_t elements, int64_t f) {
    Carry<T> carry;
    if (needed) carry.sums = arena.take<T>(elements);
    if (needed && f > kPartialSum) carry.partial = arena.take<T>(elements);
    return carry;
}

} // namespace ffncore
