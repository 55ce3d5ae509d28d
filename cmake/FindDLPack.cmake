# Finds dlpack/dlpack.h (1.2 or later, with the C exchange table): in the package apache-tvm-ffi,
# which is a build requirement, or else in an installed torch, whose copy is ATen/dlpack.h.
# Defines the target DLPack::DLPack.

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import sys; print(';'.join(p for p in sys.path if p))"
  OUTPUT_VARIABLE python_path
  OUTPUT_STRIP_TRAILING_WHITESPACE)

find_path(DLPack_INCLUDE_DIR dlpack/dlpack.h PATHS ${python_path} PATH_SUFFIXES tvm_ffi/include
                                                                                NO_DEFAULT_PATH)
if(NOT DLPack_INCLUDE_DIR)
  find_path(torch_include_dir ATen/dlpack.h PATHS ${python_path} PATH_SUFFIXES torch/include
                                                                                NO_DEFAULT_PATH)
  if(torch_include_dir)
    set(DLPack_INCLUDE_DIR "${CMAKE_CURRENT_BINARY_DIR}/dlpack_from_torch")
    file(COPY "${torch_include_dir}/ATen/dlpack.h" DESTINATION "${DLPack_INCLUDE_DIR}/dlpack")
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(DLPack REQUIRED_VARS DLPack_INCLUDE_DIR)

if(DLPack_FOUND AND NOT TARGET DLPack::DLPack)
  add_library(DLPack::DLPack INTERFACE IMPORTED)
  target_include_directories(DLPack::DLPack INTERFACE "${DLPack_INCLUDE_DIR}")
endif()
