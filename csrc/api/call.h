// How a call runs: which kernels and how many threads it uses, and the line that it prints with
// FFNCORE_VERBOSE=1.
#pragma once
#include <chrono>
#include <optional>
#include <string>

#include "check.h"

namespace ffncore {

// For tests: makes small calls use all threads, too.
void set_threads_always(bool always);

// The kernels of the current instruction set for arrays of this dtype.
template <class T> const Kernels<T> &kernels(int32_t dtype);

// These choose num_threads() threads, or 1 for work that ends before a sleeping thread is awake.
template <class T>
Call<T> call_of(const ffncore_activation &a, const Weights<T> &w, const ffncore_matrix &x,
                int64_t experts = 1);
template <class T>
Call<T> elementwise_call(const ffncore_activation &a, bool gated, const ffncore_matrix &m);
int packing_threads(int64_t bytes);
int routing_threads(int64_t logits);
int norm_threads(int64_t elements);

// The status of a call that has run, or failed because memory ran out.
ffncore_status done(bool ran);
// Computes the gradients of alpha_p and alpha_n from the sums of the kernels (ActBackwardArgs).
void xielu_gradients(const double (&sums)[2], const ffncore_activation &a, bool accumulate,
                     double *grad_p, double *grad_n);

// The line of a call. It is printed when its scope ends, with the time that the scope took.
class Line {
  public:
    Line(const char *op, int32_t dtype, bool gated, int threads, std::string sizes);
    Line(const char *op, int32_t dtype, int threads, const PlanRequest &request);
    Line(const Line &) = delete;
    Line &operator=(const Line &) = delete;
    ~Line();

  private:
    const char *const op_;
    const int32_t dtype_;
    const bool gated_;
    const int threads_;
    const std::string sizes_;
    const std::chrono::steady_clock::time_point start_;
};

} // namespace ffncore
