// Scratch memory, reused between calls. It is aligned to 64 bytes. From 2 MiB on it is aligned to 2
// MiB and on huge pages, as the read bandwidth drops on pages of 4 KiB. A call takes one lease;
// concurrent calls have different buffers. clear_workspace() frees the buffers that no lease holds.
#pragma once
#include <cstddef>

namespace ffncore {

class Lease {
  public:
    explicit Lease(size_t bytes); // data() is nullptr if memory ran out
    ~Lease();
    Lease(const Lease &) = delete;
    Lease &operator=(const Lease &) = delete;
    void *data() const { return data_; }

  private:
    void *data_;
    size_t bytes_;
};

void clear_workspace();

} // namespace ffncore
