// A block of a product of a few tokens and packed weights whose columns are summed over:
//
//   parts [terms][tokens][columns of the strip] = the sums over the units of the block
//   c [tokens][panel width] (+)= parts, term after term
//
// This is how the backward pass reads packed weights: dh sums down over d, dx sums gate and up over
// the hidden units. The packed panels of a block are read one after the other, each in the order of
// memory, so a sum is continued from panel to panel. Gate and up share the cache lines of a panel;
// so both are summed in one pass, and added in their order at the end of the block.
#pragma once
#include "../operands/operand.h"
#include "epilogue.h"
#include "order.h"
#include "walk.h"

namespace ffncore {

template <class T, class A, class B> struct Across {
    const Kernels<T> &kernels;
    const Walk<T> &walk;
    const A *a;
    const B &b;
    const int terms;
    const Block &block;

    void sum(T *parts) const
        requires ReadsAcross<B>
    {
        constexpr int64_t kPanels = 4; // their rows, 16 KiB, stay in L1 for the next tokens
        // Bytes. One stream a thread needs more than several do: 512 bytes ahead take 40 % longer.
        constexpr int64_t kAhead = 4096;
        const auto &kernel = kernels.of[b.type()].across[terms - 1];
        int64_t most = kMaxAcross;
        while (!kernel[most]) --most;
        // Two passes of 4 tokens, the second of which reads L1, take 10 % less time than one of 8
        // that waits for memory at every line.
        constexpr int64_t kOnePass = 6;
        const int64_t tokens = block.rows.count;
        const int64_t passes = std::max<int64_t>(ceil_div(tokens, most), tokens > kOnePass ? 2 : 1);
        const int64_t pass = ceil_div(tokens, passes);
        AcrossArgs<T> t{};
        t.ld = row();
        t.side = block.rows.count * row();
        t.ahead = walk.streams.raw ? kAhead : 0;
        each_part(block.steps, b.units(), [&](Steps units) {
            t.units = units.count;
            t.resumes = units.first > block.steps.first;
            each_part(block.panels, kPanels, [&](PanelRange some) {
                t.panel = b.at(some.first, units.first);
                t.steps = some.count * walk.panel;
                each_part(block.rows, pass, [&](RowRange rows) {
                    for (int i = 0; i < terms; ++i) {
                        const RowTile<T> at = a[i].get(rows, {rows, units, rows.count, nullptr});
                        t.a[i] = at.a0;
                        t.row = at.row;
                    }
                    t.sums = parts + offset(0, rows.first, some.first);
                    kernel[rows.count](t);
                });
            });
        });
    }

    void add(const T *parts, const Tile &tile, T *c) const {
        // Of bfloat16 the even columns come first, and a panel is two vectors wide.
        const bool paired = b.type() == kBfloat16;
        for (int i = 0; i < terms; ++i)
            for (int64_t r = 0; r < tile.rows.count; ++r) {
                const T *from = parts + offset(i, tile.rows.first + r, tile.panel);
                T *to = c + r * walk.panel;
                for (int64_t j = 0; j < walk.panel; ++j) {
                    const T part = from[paired ? j % 2 * kernels.width + j / 2 : j];
                    to[j] = block.add || i > 0 ? to[j] + part : part;
                }
            }
    }

  private:
    int64_t row() const { return block.panels.count * walk.panel; }
    int64_t offset(int term, int64_t row_of_c, int64_t panel) const {
        return (term * block.rows.count + row_of_c - block.rows.first) * row() +
               (panel - block.panels.first) * walk.panel;
    }
};

} // namespace ffncore
