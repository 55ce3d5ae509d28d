#include "bindings/exceptions.h"

namespace fusedopt {
namespace {

PyObject* exception_type(Refusal::Kind kind) {
  switch (kind) {
    case Refusal::kValue: return PyExc_ValueError;
    case Refusal::kType: return PyExc_TypeError;
    case Refusal::kKey: return PyExc_KeyError;
    case Refusal::kNotImplemented: return PyExc_NotImplementedError;
    case Refusal::kAssertion: return PyExc_AssertionError;
    case Refusal::kRuntime: break;
  }
  return PyExc_RuntimeError;
}

}  // namespace

void add_note(const py::error_already_set& error, const std::string& location) {
  if (location.empty() || !error.matches(PyExc_Exception)) return;
  try {
    const py::object value = error.value();
    const py::str note("in " + location);
    if (py::hasattr(value, "add_note")) {
      value.attr("add_note")(note);
    } else {
      py::list notes = py::getattr(value, "__notes__", py::list());
      notes.append(note);
      value.attr("__notes__") = notes;
    }
  } catch (const py::error_already_set&) {  // an exception that takes none goes on as it is
  }
}

void set_error(const Refusal& refusal, const std::string& location) {
  const std::string text = (location.empty() ? "" : location + ": ") + refusal.what();
  const auto size = static_cast<Py_ssize_t>(text.size());
  // Not as a string of C, which ends at a NUL.
  const py::object message = take(PyUnicode_DecodeUTF8(text.data(), size, "backslashreplace"));
  PyErr_SetObject(exception_type(refusal.kind), message.ptr());
}

}  // namespace fusedopt
