// How a call runs: with which kernels and on how many threads, and the line that it prints where
// FFNCORE_VERBOSE=1 asks for one.
#pragma once
#include <chrono>
#include <optional>
#include <string>

#include "check.h"

namespace ffncore {

// For tests: a switch that makes small calls use all threads too.
void set_threads_always(bool always);

// Of the current instruction set, for arrays of this dtype.
template <class T> const Kernels<T> &kernels(int32_t dtype);

// num_threads(), or 1 for work that is over before a sleeping thread has woken up.
template <class T>
Call<T> call_of(const ffncore_activation &a, const Weights<T> &w, const ffncore_matrix &x);
template <class T>
Call<T> elementwise_call(const ffncore_activation &a, bool gated, const ffncore_matrix &m);
int packing_threads(int64_t bytes);
int routing_threads(int64_t logits);

// What a run that may lack memory means.
ffncore_status done(bool ran);
// sums are those behind the gradients of alpha_p and alpha_n (see ActBackwardArgs).
void xielu_gradients(const double (&sums)[2], const ffncore_activation &a, bool accumulate,
                     double *grad_p, double *grad_n);

// One line a call, printed with the time of its scope when that ends.
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
