# What is built for the tests only.

# A stand-in for the CUDA runtime, and the CUDA engine on top of it. It is compiled against CUDA's
# headers, so that its functions are CUDA's, and links nothing of CUDA.
function(add_cuda_stand_in)
  find_package(CUDAToolkit 12.4 QUIET)
  if(NOT CUDAToolkit_FOUND)
    message(STATUS "No headers of CUDA 12.4 or later: building without the stand-in for its runtime")
    return()
  endif()
  set(folder tests/native/cuda_stand_in)
  pybind11_add_module(
    _cuda_stand_in MODULE NO_EXTRAS
    ${folder}/capture.cpp
    ${folder}/device_memory.cpp
    ${folder}/footprint.cpp
    ${folder}/graphs.cpp
    ${folder}/launches.cpp
    ${folder}/module.cpp
    ${folder}/operations.cpp
    ${folder}/python_calls.cpp
    ${folder}/recording_engine.cpp
    ${folder}/runtime.cpp
    ${folder}/streams.cpp
    csrc/bindings/cuda_module.cpp
    csrc/cuda/engine.cpp
    csrc/cuda/launch_memory.cpp
    csrc/cuda/launch_plan.cpp
    csrc/cuda/square_plan.cpp)
  target_include_directories(_cuda_stand_in SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(_cuda_stand_in PRIVATE fusedopt_core fusedopt_kernels_on_host)
  target_compile_definitions(_cuda_stand_in PRIVATE FUSEDOPT_CUDA_ARCHITECTURES="the host")
  target_compile_options(_cuda_stand_in PRIVATE -O1)
  install(TARGETS _cuda_stand_in LIBRARY DESTINATION fusedopt)
endfunction()

if(FUSEDOPT_TESTING)
  add_library(fusedopt_kernels_on_host OBJECT tests/native/kernels_on_host.cpp
                                              tests/native/squares_on_host.cpp)
  target_link_libraries(fusedopt_kernels_on_host PUBLIC fusedopt_flags)
  target_include_directories(fusedopt_kernels_on_host PUBLIC tests/native)
  # What `#pragma unroll` means only nvcc knows.
  # Whole kernels of every rule are one function each, which takes minutes to optimise fully.
  target_compile_options(fusedopt_kernels_on_host PRIVATE -Wno-unknown-pragmas -O1)

  pybind11_add_module(_emulated_cuda MODULE NO_EXTRAS tests/native/emulated_cuda.cpp
                      csrc/cuda/launch_plan.cpp csrc/cuda/square_plan.cpp)
  target_link_libraries(_emulated_cuda PRIVATE fusedopt_core fusedopt_kernels_on_host)
  install(TARGETS _emulated_cuda LIBRARY DESTINATION fusedopt)
  add_cuda_stand_in()
endif()

if(FUSEDOPT_SANITIZE STREQUAL "memcheck")
  add_executable(engine_run tests/native/engine_run.cpp ${isa_objects})
  target_link_libraries(engine_run PRIVATE fusedopt_core fusedopt_cpu)
  install(TARGETS engine_run DESTINATION fusedopt)
elseif(FUSEDOPT_SANITIZE)
  # Faults that the sanitizer has to find, or its silence about everything else means nothing.
  pybind11_add_module(_planted_faults MODULE NO_EXTRAS tests/native/planted_faults.cpp
                      csrc/cpu/threads.cpp)
  target_link_libraries(_planted_faults PRIVATE fusedopt_flags OpenMP::OpenMP_CXX)
  install(TARGETS _planted_faults LIBRARY DESTINATION fusedopt)
endif()
