// Scratch buffers, see workspace.h. Buffers that no lease holds are in one list. A lease takes the
// smallest buffer that is large enough. If there is none, the largest free buffer is given back to
// the system before a new one is allocated. So there are never more buffers than there were leases
// at the same time, and a sequence of growing requests does not leave smaller buffers behind.
#include "workspace.h"

#include <cstdlib>
#include <mutex>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace ffncore {
namespace {

constexpr size_t kLine = 64;                   // a cache line, an AVX-512 vector
constexpr size_t kSmallStep = size_t(1) << 16; // small requests are rounded, to share buffers
constexpr size_t kHuge = size_t(2) << 20;      // a huge page of x86-64

// The head of a free buffer is written into the buffer itself, so the list needs no other memory.
struct Free {
    Free *next;
    size_t bytes;
};

std::mutex mutex;
Free *free_list = nullptr;

size_t rounded(size_t bytes) {
    const size_t step = bytes < kHuge ? kSmallStep : kHuge;
    return bytes > SIZE_MAX - step ? 0 : bytes == 0 ? step : (bytes + step - 1) / step * step;
}

#if defined(__linux__)
// mmap instead of malloc, so that memory that is given back really leaves the process.
void *allocate(size_t bytes) {
    const size_t extra = bytes < kHuge ? 0 : kHuge; // room for the alignment
    if (bytes > SIZE_MAX - extra) return nullptr;
    void *mapped =
        mmap(nullptr, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    if (extra == 0) return mapped;
    char *const begin = static_cast<char *>(mapped);
    const size_t front = (kHuge - reinterpret_cast<size_t>(begin) % kHuge) % kHuge;
    if (front > 0) munmap(begin, front);
    if (front < extra) munmap(begin + front + bytes, extra - front);
    madvise(begin + front, bytes, MADV_HUGEPAGE); // may fail: a kernel can be without huge pages
    return begin + front;
}

void release(void *data, size_t bytes) { munmap(data, bytes); }

// Without these handlers, a fork while another thread holds the mutex would leave it locked in the
// child.
const int at_fork =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
#else
void *allocate(size_t bytes) { return std::aligned_alloc(bytes < kHuge ? kLine : kHuge, bytes); }

void release(void *data, size_t) { std::free(data); }
#endif

// Takes the smallest buffer of at least `bytes` out of the list; nullptr if there is none.
Free *take(size_t bytes) {
    Free **best = nullptr;
    for (Free **at = &free_list; *at != nullptr; at = &(*at)->next) {
        if ((*at)->bytes >= bytes && (best == nullptr || (*at)->bytes < (*best)->bytes)) best = at;
    }
    if (best == nullptr) return nullptr;
    Free *const found = *best;
    *best = found->next;
    return found;
}

// Takes the largest buffer out of the list; called when all are too small.
Free *take_largest() {
    Free **best = nullptr;
    for (Free **at = &free_list; *at != nullptr; at = &(*at)->next) {
        if (best == nullptr || (*at)->bytes > (*best)->bytes) best = at;
    }
    if (best == nullptr) return nullptr;
    Free *const found = *best;
    *best = found->next;
    return found;
}

} // namespace

Lease::Lease(size_t bytes) : data_(nullptr), bytes_(rounded(bytes)) {
    static_assert(sizeof(Free) <= kLine, "the head fits every buffer");
    if (bytes_ == 0) return;
    Free *surplus = nullptr;
    {
        const std::lock_guard<std::mutex> guard(mutex);
        if (Free *const found = take(bytes_)) {
            bytes_ = found->bytes;
            data_ = found;
            return;
        }
        surplus = take_largest();
    }
    if (surplus != nullptr) release(surplus, surplus->bytes);
    data_ = allocate(bytes_);
}

Lease::~Lease() {
    if (data_ == nullptr) return;
    Free *const head = static_cast<Free *>(data_);
    const std::lock_guard<std::mutex> guard(mutex);
    head->bytes = bytes_;
    head->next = free_list;
    free_list = head;
}

void clear_workspace() {
    Free *list = nullptr;
    {
        const std::lock_guard<std::mutex> guard(mutex);
        list = free_list;
        free_list = nullptr;
    }
    while (list != nullptr) {
        Free *const next = list->next;
        release(list, list->bytes);
        list = next;
    }
}

} // namespace ffncore
