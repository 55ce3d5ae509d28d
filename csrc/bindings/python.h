// Small helpers over CPython's API, for the code that every step runs.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <optional>
#include <vector>

namespace fusedopt {

namespace py = pybind11;

// Takes a new reference from a call that returns null with an exception set.
inline py::object take(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// An interned string that lives as long as the process.
inline PyObject* intern(const char* name) {
  return take(PyUnicode_InternFromString(name)).release().ptr();
}

// dict[key], borrowed; null where it is missing.
inline PyObject* find_item(PyObject* dict, PyObject* key) {
  PyObject* item = PyDict_GetItemWithError(dict, key);
  if (item == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return item;
}

// References that are kept until the end of a step, so that no other thread frees a tensor while
// kernels run without the GIL.
class KeepAlive {
 public:
  KeepAlive() = default;
  KeepAlive(const KeepAlive&) = delete;
  KeepAlive& operator=(const KeepAlive&) = delete;
  ~KeepAlive() { clear(); }

  PyObject* steal(PyObject* object) {
    objects_.push_back(object);
    return object;
  }
  PyObject* share(PyObject* object) {
    Py_INCREF(object);
    return steal(object);
  }
  void clear() {
    for (PyObject* object : objects_) Py_DECREF(object);
    objects_.clear();
  }

 private:
  std::vector<PyObject*> objects_;
};

// A thread that asks for the GIL of an interpreter that is ending is ended there, before
// Python 3.14 by unwinding its stack. That would destroy Python objects without the GIL, so it
// waits for the end of the process instead, as from 3.14 on.
[[noreturn]] inline void wait_for_the_end() {
  for (;;) pause();
}

#if defined(__GLIBCXX__)
using ForcedUnwind = abi::__forced_unwind;
#else
struct ForcedUnwind {};  // not one that can be caught
#endif

// Releases the GIL for as long as it lives.
class ReleasedGil {
 public:
  ReleasedGil() : thread_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {  // the unwinding, which has no object that a reference could be bound to
      wait_for_the_end();
    }
  }

 private:
  PyThreadState* thread_;
};

// What a signal handler raises (Ctrl-C) in Python code that is called in the midst of a write: kept
// until all is written.
class Interruption {
 public:
  // Calls f, which may be called again, until it returns.
  template <class F>
  void hold_off(F f) {
    for (int attempt = 1;; ++attempt) {
      try {
        return f();
      } catch (const py::error_already_set& error) {
        if (attempt == kMaxAttempts) throw;
        if (!first_) first_ = error;
      }
    }
  }

  void raise() const {
    if (first_) throw *first_;
  }

 private:
  static constexpr int kMaxAttempts = 100;  // so many signals at one place are no coincidence

  std::optional<py::error_already_set> first_;
};

}  // namespace fusedopt
