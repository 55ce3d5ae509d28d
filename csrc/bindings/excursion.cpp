#include "bindings/excursion.h"

#include <stdexcept>
#include <utility>

#include "cpu/threads.h"

namespace fusedopt {
namespace {

PyObject* const kKey = intern("_excursion");
PyObject* const kCopyName = intern("copy_");

// What is on the optimizer: the excursion's name and the list of what was saved. Null without one.
py::object current(const py::object& optimizer) {
  const py::object attributes = take(PyObject_GenericGetDict(optimizer.ptr(), nullptr));
  PyObject* const excursion = PyDict_GetItemWithError(attributes.ptr(), kKey);
  if (excursion == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return py::reinterpret_borrow<py::object>(excursion);
}

void set_current(const py::object& optimizer, const py::object& excursion) {
  const py::object attributes = take(PyObject_GenericGetDict(optimizer.ptr(), nullptr));
  if (excursion) {
    if (PyDict_SetItem(attributes.ptr(), kKey, excursion.ptr()) != 0) throw py::error_already_set();
  } else if (PyDict_GetItemWithError(attributes.ptr(), kKey) != nullptr) {
    if (PyDict_DelItem(attributes.ptr(), kKey) != 0) throw py::error_already_set();
  } else if (PyErr_Occurred()) {
    throw py::error_already_set();
  }
}

void refuse_if_active(const py::object& optimizer) {
  if (const py::object active = current(optimizer)) {
    throw std::runtime_error(active.cast<py::tuple>()[0].cast<std::string>() +
                             " is already active");
  }
}

// torch's operations on large tensors would wait for threads that a forked child has not.
class OneThreadIfForked {
 public:
  OneThreadIfForked() {
    if (!cpu::is_forked_process()) return;
    torch_ = py::module_::import("torch");
    threads_ = torch_.attr("get_num_threads")();
    torch_.attr("set_num_threads")(1);
  }
  OneThreadIfForked(const OneThreadIfForked&) = delete;
  OneThreadIfForked& operator=(const OneThreadIfForked&) = delete;
  ~OneThreadIfForked() {
    if (threads_) torch_.attr("set_num_threads")(threads_);
  }

 private:
  py::object torch_, threads_;
};

// torch's inference mode, in which the parameters that it has made may be written, too, and
// autograd takes no notice.
class InferenceMode {
 public:
  InferenceMode() : mode_(py::module_::import("torch._C").attr("_InferenceMode")(true)) {
    mode_.attr("__enter__")();
  }
  InferenceMode(const InferenceMode&) = delete;
  InferenceMode& operator=(const InferenceMode&) = delete;
  ~InferenceMode() { mode_.attr("__exit__")(py::none(), py::none(), py::none()); }

 private:
  py::object mode_;
};

struct Saved {
  py::object param, value;
  Py_ssize_t group_index, param_index;

  explicit Saved(const py::handle& entry) {
    const auto tuple = entry.cast<py::tuple>();
    param = tuple[0];
    value = tuple[1];
    group_index = tuple[2].cast<Py_ssize_t>();
    param_index = tuple[3].cast<Py_ssize_t>();
  }

  // False if the parameter has another shape or dtype now. A subclass of Tensor may run Python code
  // here.
  bool restore() const {
    if (!py::object(param.attr("shape")).equal(value.attr("shape"))) return false;
    if (!py::object(param.attr("dtype")).is(value.attr("dtype"))) return false;
    take(PyObject_CallMethodObjArgs(param.ptr(), kCopyName, value.ptr(), nullptr));
    return true;
  }
};

// The first parameter that did not come back. Its message is made in the end, because that may run
// Python code.
struct Failure {
  Saved saved;
  std::optional<py::error_already_set> error;  // none: it has another shape or dtype

  [[noreturn]] void raise() {
    std::string message = "parameter group " + std::to_string(saved.group_index) + ", parameter " +
                          std::to_string(saved.param_index) + ": cannot be put back: ";
    if (!error) throw std::runtime_error(message + "it has another shape or dtype now");
    message += py::str(error->value()).cast<std::string>();
    py::raise_from(*error, PyExc_RuntimeError, message.c_str());
    throw py::error_already_set();
  }
};

}  // namespace

Excursion::Excursion(py::object optimizer, std::string name, py::object prepare)
    : optimizer_(std::move(optimizer)), name_(std::move(name)), prepare_(std::move(prepare)) {}

void Excursion::enter() {
  refuse_if_active(optimizer_);
  const OneThreadIfForked forked;
  const py::tuple prepared = prepare_();
  const auto saved = py::object(prepared[0]).cast<py::list>();
  const py::object move = prepared[1];
  for (const py::handle entry : saved) Saved{entry};  // raises if it is no such
  // Another thread may have come first while Python code ran, and what was saved is not at home.
  refuse_if_active(optimizer_);
  saved_ = saved;
  set_current(optimizer_, py::make_tuple(name_, saved_));
  try {
    move();
  } catch (const py::error_already_set&) {
    try {
      leave();
    } catch (const py::error_already_set&) {  // what is left says that it is
    }
    throw;
  }
}

void Excursion::leave() {
  const py::object saved = std::exchange(saved_, py::object());
  const py::object active = current(optimizer_);
  if (saved && active && saved.is(active.cast<py::tuple>()[1])) end_excursion(optimizer_);
}

void end_excursion(const py::object& optimizer) {
  const py::object active = current(optimizer);
  if (!active) return;
  const auto saved = py::object(active.cast<py::tuple>()[1]).cast<py::list>();
  py::list left;
  Interruption interruption;
  std::optional<Failure> failure;
  {
    const OneThreadIfForked forked;
    const InferenceMode mode;
    for (const py::handle entry : saved) {
      const Saved one(entry);
      bool fits = false;
      try {
        interruption.hold_off([&] { fits = one.restore(); });
        if (!fits && !failure) failure = Failure{one, {}};
      } catch (const py::error_already_set& error) {
        if (!failure) failure = Failure{one, error};
        left.append(entry);
      }
    }
  }
  if (left.empty()) set_current(optimizer, py::object());
  if (PyList_SetSlice(saved.ptr(), 0, PyList_GET_SIZE(saved.ptr()), left.ptr()) != 0) {
    throw py::error_already_set();
  }
  if (failure) failure->raise();
  interruption.raise();
}

void define_excursion(py::module_& module) {
  py::class_<Excursion>(module, "Excursion", py::module_local(),
                        "Moves an optimizer's parameters for the length of a `with`.")
      .def(py::init<py::object, std::string, py::object>(), py::arg("optimizer"), py::arg("name"),
           py::arg("prepare"))
      .def("__enter__", &Excursion::enter)
      .def("__exit__", [](Excursion& excursion, const py::args&) { excursion.leave(); });
  module.def("end_excursion", &end_excursion, py::arg("optimizer"),
             "Takes the parameters back if an excursion of them could not be left.");
}

}  // namespace fusedopt
