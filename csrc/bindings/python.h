// Small helpers over CPython's API, for the code that every step runs.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <optional>
#include <string>
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

// Whether `mapping[key]` is a plain lookup in a dict, whatever its class is called.
inline bool is_plain_dict(PyObject* mapping) {
  return PyDict_Check(mapping) &&
         Py_TYPE(mapping)->tp_as_mapping->mp_subscript == PyDict_Type.tp_as_mapping->mp_subscript;
}

// mapping[key]; null where it is missing.
inline PyObject* find_item(PyObject* mapping, PyObject* key, KeepAlive& keep) {
  if (is_plain_dict(mapping)) {
    PyObject* const item = PyDict_GetItemWithError(mapping, key);
    if (item == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return item == nullptr ? nullptr : keep.share(item);
  }
  PyObject* const item = PyObject_GetItem(mapping, key);
  if (item != nullptr) return keep.steal(item);
  if (!PyErr_ExceptionMatches(PyExc_KeyError)) throw py::error_already_set();
  PyErr_Clear();
  return nullptr;
}

// Whether an option that may be missing is true.
inline bool is_true(PyObject* option) {
  if (option == nullptr) return false;
  const int truth = PyObject_IsTrue(option);
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

// What iterating over an object gives, as a list or tuple; null if it cannot be iterated over.
inline PyObject* to_sequence(PyObject* object, KeepAlive& keep) {
  if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) return keep.share(object);
  PyObject* const list = PySequence_List(object);
  if (list != nullptr) return keep.steal(list);
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
  return nullptr;
}

// Text in UTF-8, whatever is in it.
inline std::string to_utf8(PyObject* text) {
  const py::object bytes = take(PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace"));
  return {PyBytes_AS_STRING(bytes.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

// str(object) or repr(object) for a message, or its class where that raises.
inline std::string describe_with(PyObject* (*function)(PyObject*), PyObject* object) {
  PyObject* const text = function(object);
  if (text != nullptr) return to_utf8(take(text).ptr());
  PyErr_Clear();
  return std::string("an object of class ") + Py_TYPE(object)->tp_name;
}
inline std::string to_string(PyObject* object) { return describe_with(PyObject_Str, object); }
inline std::string repr_of(PyObject* object) { return describe_with(PyObject_Repr, object); }

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
