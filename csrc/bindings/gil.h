// Code that runs without Python's global lock (the GIL).
//
// A daemon thread that asks for the lock while the interpreter ends does not get it. CPython 3.14
// lets such a thread sleep until the process is gone; earlier versions call pthread_exit, which
// unwinds the thread's stack like an exception. Unwinding must not go on from here: it would run
// destructors of Python objects without the lock, and it would end the process in std::terminate
// at the first function that is noexcept (pybind11's gil_scoped_release asks for the lock in a
// destructor). So the thread sleeps here, as it does in CPython 3.14.
#pragma once
#include <Python.h>
#include <unistd.h>

namespace {

inline void take_gil(PyThreadState *state) {
    try {
        PyEval_RestoreThread(state);
    } catch (...) {       // pthread_exit's unwinding, as nothing else is thrown
        for (;;) pause(); // to leave this handler without rethrowing ends the process
    }
}

// call() without the GIL; it must not throw, and must not touch Python objects.
template <class Call> auto without_gil(const Call &call) {
    PyThreadState *const state = PyEval_SaveThread();
    const auto result = call();
    take_gil(state);
    return result;
}

} // namespace
