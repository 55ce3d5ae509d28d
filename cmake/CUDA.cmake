# The CUDA engine, a module of its own: FUSEDOPT_CUDA says whether it is built.

if(NOT FUSEDOPT_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FUSEDOPT_CUDA is '${FUSEDOPT_CUDA}'; it may be AUTO, ON or OFF")
endif()

if(FUSEDOPT_CUDA STREQUAL "OFF")
  return()
endif()

include(CheckLanguage)
# CMake wants to know an architecture before it looks for the compiler; ours are named below.
set(CMAKE_CUDA_ARCHITECTURES OFF)
if(NOT DEFINED CMAKE_CUDA_HOST_COMPILER)
  set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
endif()
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
endif()
if(NOT CMAKE_CUDA_COMPILER OR CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  if(FUSEDOPT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FUSEDOPT_CUDA=ON needs nvcc 12.4 or later; found: "
                        "'${CMAKE_CUDA_COMPILER}' ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
  message(STATUS "No nvcc 12.4 or later: building without CUDA")
  return()
endif()

find_package(CUDAToolkit REQUIRED)

# Machine code for data-centre and consumer GPUs of each generation, as far as the compiler knows
# them, and with it the PTX that it was made from: the tests run that PTX, and other GPUs compile it
# for themselves. Two generations share one, because for the newer the compiler gives the same text.
set(FUSEDOPT_CUDA_ARCHITECTURES 80 90)
set(generate_code "-gencode=arch=compute_80,code=[compute_80,sm_80,sm_90]")
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND FUSEDOPT_CUDA_ARCHITECTURES 100 120)
  list(APPEND generate_code "-gencode=arch=compute_100,code=[compute_100,sm_100,sm_120]")
endif()
list(TRANSFORM FUSEDOPT_CUDA_ARCHITECTURES PREPEND "sm_")
list(JOIN FUSEDOPT_CUDA_ARCHITECTURES ", " cuda_architectures)

# --fmad=false for the same reason as -ffp-contract=off. Division and square root are rounded
# correctly and subnormals kept by default.
add_library(fusedopt_cuda_kernels OBJECT csrc/cuda/kernels.cu csrc/cuda/squares.cu)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  # A CMake that does not know yet that nvcc has C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set_target_properties(fusedopt_cuda_kernels PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON)
target_include_directories(fusedopt_cuda_kernels PRIVATE csrc)
target_compile_options(
  fusedopt_cuda_kernels
  PRIVATE ${generate_code} --threads 0 -Xfatbin=-compress-all --fmad=false
          --expt-relaxed-constexpr
          $<$<BOOL:${FUSEDOPT_WERROR}>:--Werror=all-warnings>)

# The runtime is linked in, so that it does not matter which one torch has loaded.
pybind11_add_module(
  _cuda MODULE NO_EXTRAS
  csrc/bindings/cuda_module.cpp
  csrc/cuda/engine.cpp
  csrc/cuda/launch_memory.cpp
  csrc/cuda/launch_plan.cpp
  csrc/cuda/square_plan.cpp
  $<TARGET_OBJECTS:fusedopt_cuda_kernels>)
target_link_libraries(_cuda PRIVATE fusedopt_core CUDA::cudart_static)
target_compile_definitions(_cuda PRIVATE FUSEDOPT_CUDA_ARCHITECTURES="${cuda_architectures}")
install(TARGETS _cuda LIBRARY DESTINATION fusedopt)
