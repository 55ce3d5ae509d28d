# FUSEDOPT_SANITIZE=address|undefined|thread|memcheck builds for that sanitizer, or, as it is, for
# valgrind's memcheck; see tests/sanitizers.py.

if(NOT FUSEDOPT_SANITIZE MATCHES "^(OFF|address|undefined|thread|memcheck)$")
  message(FATAL_ERROR "FUSEDOPT_SANITIZE is '${FUSEDOPT_SANITIZE}'; "
                      "it may be OFF, address, undefined, thread or memcheck")
endif()

if(FUSEDOPT_SANITIZE STREQUAL "memcheck")
  target_compile_options(fusedopt_flags INTERFACE -g1)
elseif(FUSEDOPT_SANITIZE)
  set(sanitize ${FUSEDOPT_SANITIZE})
  if(sanitize STREQUAL "undefined")
    # Not part of it by default: a double that is cast to an integer which cannot hold it.
    set(sanitize undefined,float-cast-overflow)
  endif()
  target_compile_options(fusedopt_flags INTERFACE -fsanitize=${sanitize} -fno-sanitize-recover=all
                                                  -fno-omit-frame-pointer -g1 -O1)
  target_link_options(fusedopt_flags INTERFACE -fsanitize=${sanitize})
endif()
