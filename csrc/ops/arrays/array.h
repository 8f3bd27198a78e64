// A matrix of any strides and element type, to be read (Input) or written (Output). It may belong
// to the caller, or lie in the workspace of a call.
#pragma once
#include "sizes.h"

namespace ffncore {

// The element type of an array of T.
template <class T> constexpr Element kOwn = sizeof(T) == 8 ? kFloat64 : kFloat32;

// Element (i, j) lies i * row + j * col elements behind the first one.
template <class Byte> struct Array {
    Byte *data = nullptr; // nullptr: absent
    int64_t row = 0, col = 0;
    Element type = kFloat32;

    int64_t bytes() const { return element_bytes(type); }
    template <class T> bool holds() const { return type == kOwn<T>; }
    Byte *at(int64_t i, int64_t j = 0) const { return data + (i * row + j * col) * bytes(); }
    // The part that begins with element (i, j).
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
// The elements of a matrix that holds T.
template <class T> const T *own(const Input &m) { return (const T *)m.data; }

} // namespace ffncore
