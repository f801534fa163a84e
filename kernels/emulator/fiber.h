// A fiber: a stack that can be left and entered again. x86-64 switches by hand (some 2 ns); others through
// ucontext.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) || defined(PFT_EMU_UCONTEXT)
#include <ucontext.h>
#define PFT_EMU_USES_UCONTEXT 1
#endif

namespace pft::emu {

struct Fiber {
#ifdef PFT_EMU_USES_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  char* stack = nullptr;  // null for the fiber that was there first
  size_t stack_bytes = 0;
  void* sanitizer_stack = nullptr;

  void prepare(void (*entry)());  // the next switch into this fiber starts `entry`, which must never return
};

// Leaves `from` (the running fiber) for `to`. `dying`: `from` will not be entered again before prepare().
void switch_fiber(Fiber& from, Fiber& to, bool dying = false);
// First statement of every entry function.
void fiber_started();

// `count` stacks with a guard page below each, kept for the life of the process.
char* stack_pool(unsigned count, size_t* stack_bytes, size_t* pitch);

}  // namespace pft::emu
