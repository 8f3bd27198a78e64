// How gate and up are saved between the passes, before the activation:
//
//   [gate | up] panels of 64 tokens, each [f][64]; the last panel is [f][tokens rounded up to 16]
//
// All of gate comes before all of up; a plain block has up alone. The layout is the same for every
// instruction set, and for tokens as rows and as panels, so that a backward pass can have its
// tokens on another side of the products than its forward pass had.
#pragma once
#include <algorithm>

#include "sizes.h"

namespace ffncore {

// 64 tokens are the widest token panel (4 vectors of 16 floats), 16 the widest vector.
constexpr int64_t kSavedPanel = 64, kSavedGrain = 16;
inline int64_t saved_elements(int64_t tokens, int64_t f, bool gated) {
    return round_up(tokens, kSavedGrain) * f * (gated ? 2 : 1);
}

// The elements have the type of x, so that for 16 bits the backward pass begins with rounded
// numbers. up == nullptr: nothing is saved.
template <class Byte> struct SavedPanels {
    Byte *gate = nullptr, *up = nullptr;
    Element type = kFloat32;
    int64_t tokens = 0, f = 0;
    int64_t token0 = 0, unit0 = 0; // the first token and unit of the part that this struct names

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
    // The distance in elements from one unit to the next in the token's panel.
    int64_t width(int64_t token) const {
        const int64_t first = (token0 + token) / kSavedPanel * kSavedPanel;
        return std::min(kSavedPanel, round_up(tokens - first, kSavedGrain));
    }
    // The offset in bytes of the value of this token and unit.
    int64_t at(int64_t token, int64_t unit) const {
        const int64_t t = token0 + token;
        return (t / kSavedPanel * kSavedPanel * f + (unit0 + unit) * width(token) +
                t % kSavedPanel) *
               element_bytes(type);
    }
    // Calls body(first, count) for the tokens [token, token + n), panel by panel.
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

} // namespace ffncore
