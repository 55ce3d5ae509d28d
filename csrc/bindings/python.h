// Small helpers over CPython's API, for the code that every step runs.
#pragma once

#include <pybind11/pybind11.h>

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

}  // namespace fusedopt
