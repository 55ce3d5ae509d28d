// The module fusedopt._cuda_stand_in: the engine, the functions of the runtime that tests call, and
// what tests want to see and to decide.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <tuple>

#include "bindings/engines.h"
#include "device_memory.h"
#include "graphs.h"
#include "launches.h"
#include "operations.h"
#include "python_calls.h"
#include "recording_engine.h"
#include "runtime.h"

namespace fusedopt::stand_in {
namespace {

py::dict describe(const Elements& elements) {
  return py::dict(
      py::arg("name") = elements.name, py::arg("address") = address_of(elements.address),
      py::arg("host") = address_of(on_host(elements.address)),
      py::arg("element_size") = elements.element_size, py::arg("dims") = elements.dims,
      py::arg("readable") = elements.is_read, py::arg("writable") = elements.is_written);
}

// `written` may be written: a byte for each of the allocation.
py::dict describe(Allocation& allocation) {
  const auto size = static_cast<py::ssize_t>(allocation.size);
  return py::dict(
      py::arg("address") = address_of(allocation.address),
      py::arg("host") = address_of(allocation.host), py::arg("size") = allocation.size,
      py::arg("written") = py::memoryview::from_memory(allocation.written.data(), size, false));
}

py::dict describe(const Launch& launch) {
  py::list elements, memory;
  for (const Elements& each : launch.footprint.elements) elements.append(describe(each));
  for (Allocation* allocation : live_allocations(launch.device)) {
    if (!allocation->is_pinned) memory.append(describe(*allocation));
  }
  return py::dict(
      py::arg("rule") = launch.kernel->rule, py::arg("kind") = launch.kernel->kind,
      py::arg("parameter") = py::bytes(reinterpret_cast<const char*>(launch.parameter.data()),
                                       launch.parameter.size() * sizeof(uint64_t)),
      py::arg("blocks") = launch.blocks, py::arg("threads") = launch.threads,
      py::arg("device") = launch.device, py::arg("elements") = elements, py::arg("memory") = memory,
      py::arg("derives_in") = launch.footprint.derives_in);
}

void set_executor(const py::object& function) {
  if (function.is_none()) {
    executor() = nullptr;
    return;
  }
  // Never destroyed: the last launch may run while the interpreter ends.
  auto& kept = *new py::object(function);
  executor() = [&kept](const Launch& launch) {
    const py::gil_scoped_acquire gil;
    try {
      kept(describe(launch));
    } catch (const py::error_already_set& error) {
      throw std::runtime_error(error.what());
    }
  };
}

// A value, where the device holds it (or 0), and as which type.
using Option = std::tuple<double, Address, std::string>;
using OptionsOfParams = std::pair<std::set<Address>, std::map<std::string, std::vector<Option>>>;

OptionValue to_option(const Option& option) {
  static const std::map<std::string, NumberType> types = {{"float32", NumberType::kFloat32},
                                                          {"float64", NumberType::kFloat64},
                                                          {"int32", NumberType::kInt32},
                                                          {"int64", NumberType::kInt64}};
  const auto& [value, address, type] = option;
  return {.value = value, .source = pointer_to(address), .type = types.at(type)};
}

void leave_options(const std::vector<OptionsOfParams>& groups) {
  left_options().clear();
  for (const auto& [params, options] : groups) {
    LeftOptions& left = left_options().emplace_back();
    for (const Address param : params) left.params.insert(pointer_to(param));
    for (const auto& [name, values] : options) {
      std::transform(values.begin(), values.end(), std::back_inserter(left.options[name]),
                     &to_option);
    }
  }
}

void schedule(const std::string& policy, unsigned seed) {
  static const std::map<std::string, Policy> policies = {
      {"latest", Policy::kLatest}, {"random", Policy::kRandom}, {"at once", Policy::kAtOnce}};
  scheduler().set(policies.at(policy), seed);
}

// Everything that is queued, and the destructors of what nobody holds any more.
void finish() {
  const py::gil_scoped_release release;
  with_lock([] {
    scheduler().run_all();
    destroy_user_objects();
  });
}

std::vector<std::pair<std::string, std::string>> calls() {
  std::vector<std::pair<std::string, std::string>> result;
  for (const CallRecord& each : records().calls) {
    result.emplace_back(each.name, cudaGetErrorName(each.result));
  }
  return result;
}

py::dict live(int device) {
  const auto is_here = [&](const auto* object) { return object->device == device; };
  std::vector<size_t> sizes[2];
  for (const Allocation* each : live_allocations(device)) {
    sizes[each->is_pinned].push_back(each->size);
  }
  const size_t made_streams = streams().count_live(
      [&](const CUstream_st* stream) { return is_here(stream) && !stream->is_default; });
  return py::dict(py::arg("memory") = sizes[false], py::arg("pinned") = sizes[true],
                  py::arg("streams") = made_streams,
                  py::arg("events") = events().count_live(is_here),
                  py::arg("graphs") = graphs().count_live(is_here),
                  py::arg("execs") = execs().count_live(is_here),
                  py::arg("user_objects") = user_objects().count_live(is_here));
}

Allocation& allocation_of(Address address) {
  Allocation* const allocation = find_allocation(pointer_to(address), 1);
  if (allocation == nullptr) throw py::value_error("no allocation has this address");
  return *allocation;
}

}  // namespace
}  // namespace fusedopt::stand_in

PYBIND11_MODULE(_cuda_stand_in, m) {
  using namespace fusedopt::stand_in;
  m.attr("engine") = py::capsule(&recording_engine(), fusedopt::kEngineCapsule);
  define_calls(m);

  m.def("use", [](int device, Address stream) { place_of_steps() = {device, pointer_to(stream)}; });
  m.def("leave_options", &leave_options);
  m.def("schedule", &schedule);
  m.def("finish", &finish);
  m.def("set_executor", &set_executor);
  m.def("launches", [] { return launches_done(); });
  m.def("pending", [] { return scheduler().pending(); });
  m.def("set_device_count", [](int count) { records().device_count = count; });

  m.def("fail", [](const std::string& name, unsigned n, int error) {
    records().failure = {name, n, static_cast<cudaError_t>(error)};
  });
  m.def("forget_captures", [] {
    for (const auto& stream : streams().all()) stream->point = {};
  });
  m.def("calls", &calls);
  m.def("clear_calls", [] { records().calls.clear(); });
  m.def("take_violations", [] { return std::exchange(records().violations, {}); });
  m.def("live", &live);
  m.def("host_address", [](Address address) {
    return address_of(allocation_of(address).host_of(pointer_to(address)));
  });
  // A byte for each of the allocation's, which may be written.
  m.def("written", [](Address address) {
    auto& written = allocation_of(address).written;
    return py::memoryview::from_memory(written.data(), static_cast<py::ssize_t>(written.size()),
                                       false);
  });
}
