// The arithmetic and the instruction set that a file must be compiled for, whatever flags came from outside.
// kernels/flags.cmake appends the options that see to it, and compiles this file alone before all others.
#pragma once

// Names of instruction sets as numbers, so that the preprocessor can compare them. A file that is compiled
// for none of them is held to the baseline, as the scalar kernels are.
#define PFT_ISA_ID_scalar 1
#define PFT_ISA_ID_avx2 2
#define PFT_ISA_ID_avx512 3
#define PFT_ISA_CAT_(a, b) a##b
#define PFT_ISA_CAT(a, b) PFT_ISA_CAT_(a, b)
#ifdef PFT_ISA
#define PFT_ISA_ID PFT_ISA_CAT(PFT_ISA_ID_, PFT_ISA)
#else
#define PFT_ISA_ID PFT_ISA_ID_scalar
#endif

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "with them a NaN need not come out as a NaN (-ffast-math, -ffinite-math-only)"
#endif
#if defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__) || \
    defined(__NO_TRAPPING_MATH__) || defined(__ROUNDING_MATH__)
#error "they change the arithmetic (a part of -ffast-math, or -frounding-math)"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "with them a float is not rounded after each operation (-mfpmath=387)"
#endif

#ifdef __x86_64__
#ifndef __SSE2__
#error "they forbid floating-point registers (-mgeneral-regs-only)"
#endif
#if PFT_ISA_ID < PFT_ISA_ID_avx2 &&                                                                          \
    (defined(__SSE3__) || defined(__AVX__) || defined(__FMA__) || defined(__BMI__) || defined(__POPCNT__) || \
     defined(__LZCNT__) || defined(__MOVBE__))
#error \
    "they allow instructions that not every x86-64 processor has in code that must run on all (-march, -mavx, ...)"
#endif
#if PFT_ISA_ID < PFT_ISA_ID_avx512 && \
    (defined(__AVX512F__) || defined(__AVX10_1__) || defined(__FMA4__) || defined(__XOP__))
#error "they allow AVX-512, FMA4 or XOP in code for processors without (-march, -mavx512f, ...)"
#endif
#if PFT_ISA_ID >= PFT_ISA_ID_avx2 && !(defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#error "they forbid AVX2, FMA or F16C in the kernels that are written with them (-mno-avx, ...)"
#endif
#if PFT_ISA_ID >= PFT_ISA_ID_avx512 && \
    !(defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__))
#error "they forbid AVX-512 in the kernels that are written with it (-mno-avx512f, ...)"
#endif
#endif
