// One row of n elements as the kernels need it: contiguous, of T. A row that is so already is used
// in place; any other goes through a buffer of n elements.
#pragma once
#include "array.h"

namespace ffncore {

template <class T, class M> bool in_place(const M &m) {
    return m.col == 1 && m.template holds<T>();
}

template <class T>
const T *read_row(const Kernels<T> &kernels, const Input &m, int64_t t, int64_t n, T *buffer) {
    if (in_place<T>(m)) return reinterpret_cast<const T *>(m.at(t, 0));
    kernels.of[m.type].pack(m.at(t, 0), m.col, 0, n, 1, buffer, n, n);
    return buffer;
}

// Where a row is to be written. write_row() stores what was written to the buffer.
template <class T> T *row_to_write(const Output &m, int64_t t, T *buffer) {
    return in_place<T>(m) ? reinterpret_cast<T *>(m.at(t, 0)) : buffer;
}
template <class T>
void write_row(const Kernels<T> &kernels, const Output &m, int64_t t, int64_t n, const T *buffer) {
    if (in_place<T>(m)) return;
    kernels.of[m.type].store(buffer, n, 1, n, nullptr, 0, 0, m.at(t, 0), 0, m.col, false);
}

} // namespace ffncore
