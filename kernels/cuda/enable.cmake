# Decides whether the CUDA kernels are built for GPUs, and enables the language. Included by the top-level file, because
# a language belongs to the highest folder that uses it. Sets PFT_CUDA_ARCHITECTURES, empty for no.
# PFT_CUDA (environment or -D) says whether:
#   off   never
#   auto  where there is a CUDA compiler and a GPU, for that GPU (the default)
#   all   one fat binary for sm_80 86 90 100 120 and PTX: the release wheel, and what the static gates read
#   pypi  like auto, with the compiler from the PyPI packages nvidia-cuda-nvcc, -runtime, -crt, -cccl and nvidia-nvvm;
#         `all` with these: PFT_CUDA=pypi-all
set(PFT_CUDA_ARCHITECTURES "")
set(PFT_CUDA auto CACHE STRING "off, auto, all, pypi or pypi-all")
if(NOT "$ENV{PFT_CUDA}" STREQUAL "")
  set(PFT_CUDA "$ENV{PFT_CUDA}" CACHE STRING "off, auto, all, pypi or pypi-all" FORCE)
endif()
string(TOLOWER "${PFT_CUDA}" PFT_CUDA)  # OFF is how CMake itself writes it
if(NOT PFT_CUDA MATCHES "^(off|auto|all|pypi|pypi-all)$")
  message(FATAL_ERROR "PFT_CUDA must be off, auto, all, pypi or pypi-all, got '${PFT_CUDA}'")
endif()
if(PFT_CUDA STREQUAL off)
  return()
endif()

# nvcc appends NVCC_APPEND_FLAGS to every command, so ours cannot follow them as kernels/flags.cmake has it for the CPU:
# what changes the arithmetic of a kernel, or the processor that the host's part needs, is refused.
set(PFT_USER_CUDA_FLAGS "$ENV{NVCC_PREPEND_FLAGS} $ENV{CUDAFLAGS} ${CMAKE_CUDA_FLAGS} $ENV{NVCC_APPEND_FLAGS}")
string(REGEX REPLACE " +" " " PFT_USER_CUDA_FLAGS "${PFT_USER_CUDA_FLAGS}")
string(STRIP "${PFT_USER_CUDA_FLAGS}" PFT_USER_CUDA_FLAGS)
foreach(refused use.fast.math ftz[=\ ]true prec-div[=\ ]false prec-sqrt[=\ ]false fast-math -Ofast unsafe-math finite-math
        associative-math reciprocal-math no-signed-zeros -march= -mavx -mfpmath=)
  if(PFT_USER_CUDA_FLAGS MATCHES "${refused}")
    message(FATAL_ERROR "the flags '${PFT_USER_CUDA_FLAGS}' (CUDAFLAGS, CMAKE_CUDA_FLAGS, NVCC_PREPEND_FLAGS, "
                        "NVCC_APPEND_FLAGS) cannot be used: '${CMAKE_MATCH_0}' changes the arithmetic of the kernels or "
                        "the processor that they need; take it out and remove the build folder")
  endif()
endforeach()

if(PFT_CUDA MATCHES "^pypi" AND NOT CMAKE_CUDA_COMPILER)
  # pip's isolated build hides the environment's packages behind PYTHONPATH; -I looks past it.
  foreach(flags -s -I)
    if(NOT EXISTS "${pypi_cuda}/bin/nvcc")
      execute_process(
        COMMAND ${Python_EXECUTABLE} ${flags} -c "import nvidia; print(list(nvidia.__path__)[0] + '/cu13')"
        OUTPUT_VARIABLE pypi_cuda OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endforeach()
  if(NOT EXISTS "${pypi_cuda}/bin/nvcc")
    message(FATAL_ERROR "PFT_CUDA=${PFT_CUDA}: no nvidia/cu13/bin/nvcc in this Python's packages; "
                        "pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' "
                        "'nvidia-cuda-cccl==13.0.*' 'nvidia-nvvm==13.0.*'")
  endif()
  set(CMAKE_CUDA_COMPILER "${pypi_cuda}/bin/nvcc")
  set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${pypi_cuda}/lib")
  link_directories("${pypi_cuda}/lib")
endif()

if(PFT_CUDA MATCHES "^(auto|pypi)$")
  # The compiler alone is no reason to spend minutes: without a GPU nothing could run the result.
  find_program(nvidia_smi nvidia-smi)
  if(nvidia_smi)
    execute_process(COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE capabilities
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
  list(REMOVE_DUPLICATES capabilities)
  if(NOT capabilities)
    message(STATUS "No GPU: the CUDA module is not built (PFT_CUDA=all builds it anyway)")
    return()
  endif()
  string(REPLACE "." "" PFT_CUDA_ARCHITECTURES "${capabilities}")
  list(TRANSFORM PFT_CUDA_ARCHITECTURES APPEND -real)
else()
  # No 8.9: it runs what is compiled for 8.6, and compiled for itself it would be the same instructions.
  set(PFT_CUDA_ARCHITECTURES 80-real 86-real 90-real 100 120-real)
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  check_language(CUDA)
endif()
if(NOT CMAKE_CUDA_COMPILER)
  if(PFT_CUDA STREQUAL auto)
    message(STATUS "A GPU but no CUDA compiler on PATH or in CUDACXX: the CUDA module is not built")
    set(PFT_CUDA_ARCHITECTURES "")
    return()
  endif()
  message(FATAL_ERROR "PFT_CUDA=${PFT_CUDA}: no CUDA compiler on PATH or in CUDACXX (PFT_CUDA=pypi uses PyPI's)")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${PFT_CUDA_ARCHITECTURES})
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
