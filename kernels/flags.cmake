# What no flag of the user's may change: the arithmetic of every file, and the processor that the files outside of
# kernels/cpu's wider instruction sets need. CXXFLAGS, LDFLAGS, CMAKE_CXX_FLAGS and the flags of the build type come
# first on a command line and the options below after them, so the last word is ours. What no later flag takes back is
# refused here, before anything is compiled. The user's flags are kept for build_info().

# Each takes one part of -ffast-math back; the first two alone leave what was given by its own name. The last two are
# what the bindings are written with.
set(pft_arithmetic -fno-fast-math -fno-unsafe-math-optimizations -fno-associative-math -fno-reciprocal-math
    -fno-finite-math-only -fsigned-zeros -ftrapping-math -fno-rounding-math
    -fexceptions -frtti)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang|IntelLLVM")
  list(APPEND pft_arithmetic -fno-approx-func -fdenormal-fp-math=ieee)
elseif(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(APPEND pft_arithmetic -fno-single-precision-constant)
endif()

set(PFT_X86 OFF)
set(pft_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(PFT_X86 ON)
  # -march alone does not undo a -mavx512f; -mno-sse3 takes all from SSE3 to AVX-512 with it.
  set(pft_baseline -march=x86-64 -msse2 -mfpmath=sse -mno-sse3 -mno-bmi -mno-bmi2 -mno-popcnt -mno-lzcnt -mno-movbe
      -mno-adx -mno-tbm -mno-gfni -mno-vaes -mno-vpclmulqdq)
endif()

# CMake's order: CMAKE_CXX_FLAGS, the build type's flags, these, then a target's own.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${pft_arithmetic};${pft_baseline}>")
# A link with -ffast-math or -Ofast may add crtfastmath.o: denormals off for the whole process at import. As libraries,
# because these end the command line: some generators put LDFLAGS after a target's link options.
link_libraries(-fno-fast-math -fno-unsafe-math-optimizations -O3)
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-mno-daz-ftz PFT_HAS_DAZ_FTZ)
if(PFT_HAS_DAZ_FTZ)
  link_libraries(-mno-daz-ftz)
endif()

string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
string(STRIP "${CMAKE_CXX_COMPILER_ARG1} ${CMAKE_CXX_FLAGS}" PFT_USER_FLAGS)
string(STRIP "${CMAKE_CXX_FLAGS_${build_type}}" PFT_BUILD_TYPE_FLAGS)
string(STRIP "${CMAKE_MODULE_LINKER_FLAGS} ${CMAKE_MODULE_LINKER_FLAGS_${build_type}}" PFT_USER_LINK_FLAGS)

# What stands behind our options on the command line of a link, or is an object file, none of them takes back.
string(REGEX MATCH "crtfastmath" refused "${PFT_USER_LINK_FLAGS} ${CMAKE_CXX_STANDARD_LIBRARIES}")
if(NOT refused)
  string(REGEX MATCH "-Ofast|-ffast-math|-funsafe-math-optimizations|-mdaz-ftz" refused "${CMAKE_CXX_STANDARD_LIBRARIES}")
endif()
if(refused)
  message(FATAL_ERROR "the flags '${PFT_USER_LINK_FLAGS} ${CMAKE_CXX_STANDARD_LIBRARIES}' (LDFLAGS, "
                      "CMAKE_MODULE_LINKER_FLAGS, CMAKE_CXX_STANDARD_LIBRARIES) cannot be used: '${refused}' switches "
                      "denormal numbers off in every process that loads the module; take it out and remove the build "
                      "folder")
endif()

# Stops with one line if the user's flags followed by `ARGN` still break the rules of kernels/cpu/required_flags.hpp.
function(pft_require_flags isa)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  set(CMAKE_TRY_COMPILE_CONFIGURATION ${CMAKE_BUILD_TYPE})
  set(probe ${CMAKE_BINARY_DIR}/required_flags)
  file(WRITE ${probe}/${isa}.cpp "#include \"${CMAKE_CURRENT_FUNCTION_LIST_DIR}/cpu/required_flags.hpp\"\n")
  try_compile(allowed ${probe}/${isa} SOURCES ${probe}/${isa}.cpp
              COMPILE_DEFINITIONS ${pft_arithmetic} ${pft_baseline} ${ARGN} -DPFT_ISA=${isa}
              OUTPUT_VARIABLE told)
  if(NOT allowed)
    string(REGEX MATCH "#error \"?([^\n\"]*)" found "${told}")
    set(why "${CMAKE_MATCH_1}")
    if(NOT found)
      string(REGEX MATCH "error: ([^\n]*)" found "${told}")
      set(why "the compiler says: ${CMAKE_MATCH_1}")
    endif()
    message(FATAL_ERROR "the flags '${PFT_USER_FLAGS} ${PFT_BUILD_TYPE_FLAGS}' (CXXFLAGS, CMAKE_CXX_FLAGS, the build "
                        "type's) cannot be used: ${why}; take them out and remove the build folder")
  endif()
endfunction()

execute_process(COMMAND ${Python_EXECUTABLE} -c "import struct; print(struct.calcsize('P'))"
                OUTPUT_VARIABLE python_pointer OUTPUT_STRIP_TRAILING_WHITESPACE)
if(python_pointer AND NOT python_pointer EQUAL CMAKE_SIZEOF_VOID_P)
  math(EXPR python_bits "8 * ${python_pointer}")
  math(EXPR compiler_bits "8 * ${CMAKE_SIZEOF_VOID_P}")
  message(FATAL_ERROR "the flags '${PFT_USER_FLAGS}' build for ${compiler_bits} bits, and this Python has ${python_bits}: "
                      "take out -m32 or -mx32 and remove the build folder")
endif()
