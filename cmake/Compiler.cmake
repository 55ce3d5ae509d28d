# Enables C++ and finds OpenMP, or ends the configuration with one line that says what to install.

# Ends it so that the next try, in the same build folder, looks for a compiler anew. A message that
# begins with a space is printed as it is, without line breaks.
macro(stop_for_compiler)
  unset(CMAKE_CXX_COMPILER CACHE)
  file(REMOVE "${CMAKE_PLATFORM_INFO_DIR}/CMakeCXXCompiler.cmake")
  message(FATAL_ERROR " fusedopt needs " ${ARGV})
endmacro()

include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  stop_for_compiler("a C++20 compiler, and CMake found none that works: install gcc 11 or later "
                    "(Debian: apt install g++), or name yours with CXX=")
endif()
enable_language(CXX)

if(NOT "cxx_std_20" IN_LIST CMAKE_CXX_COMPILE_FEATURES
   OR (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 11))
  stop_for_compiler("a C++20 compiler, gcc 11 or later, and ${CMAKE_CXX_COMPILER} is "
                    "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}: install a newer one, "
                    "and name it with CXX=")
endif()

find_package(OpenMP COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  stop_for_compiler("OpenMP, and ${CMAKE_CXX_COMPILER} builds nothing with it: gcc has it in "
                    "libgomp (Debian: apt install g++), clang in libomp (apt install libomp-dev)")
endif()
