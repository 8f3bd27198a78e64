// Scratch memory, reused between calls. 64-byte aligned; from 2 MiB on, aligned to 2 MiB and
// advised to huge pages (on 4 KiB pages read bandwidth drops). A call takes one lease; concurrent
// calls take different buffers. Freed by clear_workspace().
#pragma once
#include <cstddef>

namespace ffncore {

class Lease {
  public:
    explicit Lease(size_t bytes); // data() == nullptr: out of memory
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
