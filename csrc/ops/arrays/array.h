// A matrix of any strides, the caller's or one of our own, to be read (Input) or written (Output).
#pragma once
#include "sizes.h"

namespace ffncore {

template <class T> constexpr Element kOwn = sizeof(T) == 8 ? kFloat64 : kFloat32;

// A matrix and the way to walk it, the caller's or one of our own: element (i, j) is
// i * row + j * col elements from the first one.
template <class Byte> struct Array {
    Byte *data = nullptr; // nullptr: absent
    int64_t row = 0, col = 0;
    Element type = kFloat32;

    int64_t bytes() const { return element_bytes(type); }
    template <class T> bool holds() const { return type == kOwn<T>; }
    Byte *at(int64_t i, int64_t j = 0) const { return data + (i * row + j * col) * bytes(); }
    // The part from element (i, j) on.
    Array from(int64_t i, int64_t j = 0) const {
        return {data ? at(i, j) : nullptr, row, col, type};
    }
    Array transposed() const { return {data, col, row, type}; }
};
using Input = Array<const char>;
using Output = Array<char>;

template <class T> Input input(const T *data, int64_t row, int64_t col = 1) {
    return {(const char *)data, row, col, kOwn<T>};
}
// The elements of a matrix of T.
template <class T> const T *own(const Input &m) { return (const T *)m.data; }

} // namespace ffncore
