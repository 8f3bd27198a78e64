// Runs code without Python's global lock (the GIL).
//
// A daemon thread that asks for the lock while the interpreter is ending does not get it. CPython
// 3.14 lets such a thread sleep until the process is gone. Earlier versions call pthread_exit,
// which unwinds the thread's stack like an exception. The unwinding must not go on from here: it
// would run destructors of Python objects without the lock, and at the first noexcept function it
// would end the process in std::terminate (pybind11's gil_scoped_release asks for the lock in a
// destructor). So the thread sleeps here, as it does in CPython 3.14.
#pragma once
#include <Python.h>
#include <unistd.h>

namespace {

// Calls call(), which may ask for the lock.
template <class Call> void or_sleep(const Call &call) {
    try {
        call();
    } catch (...) {       // only pthread_exit unwinds through here
        for (;;) pause(); // leaving this handler without rethrowing would end the process
    }
}

// Calls call() without the GIL. It must not throw, and must not touch Python objects.
template <class Call> auto without_gil(const Call &call) {
    PyThreadState *const state = PyEval_SaveThread();
    const auto result = call();
    or_sleep([&] { PyEval_RestoreThread(state); });
    return result;
}

} // namespace
