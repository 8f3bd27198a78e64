// How gate and up are saved between the passes, before their activation: one layout for every
// instruction set, and for every way of computing them, so that a backward pass may take another
// way than its forward pass.
#pragma once
#include <algorithm>

#include "sizes.h"

namespace ffncore {

// gate and up before the activation. One layout for every ISA: panels of 64 tokens, [f][64], the
// last panel [f][tokens rounded up to 16]; all of gate, then all of up. up == nullptr: none.
constexpr int64_t kSavedPanel = 64, kSavedGrain = 16;
inline int64_t saved_elements(int64_t tokens, int64_t f, bool gated) {
    return round_up(tokens, kSavedGrain) * f * (gated ? 2 : 1);
}

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

} // namespace ffncore
