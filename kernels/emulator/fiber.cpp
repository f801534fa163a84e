#include "fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define PFT_EMU_ASAN 1
#endif

namespace pft::emu {
namespace {

#ifdef PFT_EMU_ASAN
constexpr size_t kStackBytes = 256 << 10;  // AddressSanitizer's frames are larger
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kGuardBytes = 4096;

#ifdef PFT_EMU_ASAN
Fiber* leaving = nullptr;  // whose stack bounds the sanitizer reports on arrival
Fiber* arriving = nullptr;

void arrived(void* fake_stack) {
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
  if (!leaving->stack) {
    leaving->sanitizer_stack = const_cast<void*>(bottom);
    leaving->stack_bytes = size;
  }
}
#endif

}  // namespace

#ifndef PFT_EMU_USES_UCONTEXT
// void pft_emu_swap(void** save, void* load): callee-saved registers of the System V ABI, then the stacks.
extern "C" void pft_emu_swap(void** save, void* load);
__asm__(
    ".text\n"
    ".local pft_emu_swap\n"
    ".type pft_emu_swap,@function\n"
    "pft_emu_swap:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size pft_emu_swap,.-pft_emu_swap\n");
#endif

void Fiber::prepare(void (*entry)()) {
#ifdef PFT_EMU_ASAN
  __asan_unpoison_memory_region(stack, stack_bytes);
#endif
#ifdef PFT_EMU_USES_UCONTEXT
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
#else
  // What pft_emu_swap pops: six registers, then `entry` as return address, then a slot that keeps the ABI's
  // alignment.
  void** top = reinterpret_cast<void**>(stack + stack_bytes);
  top[-1] = nullptr;
  void (*start)() = entry;
  std::memcpy(&top[-2], &start, sizeof start);
  std::memset(top - 8, 0, 6 * sizeof(void*));
  stack_pointer = top - 8;
#endif
}

__attribute__((noinline)) void switch_fiber(Fiber& from, Fiber& to, bool dying) {
#ifdef PFT_EMU_ASAN
  void* fake_stack = nullptr;
  leaving = &from;
  arriving = &to;
  __sanitizer_start_switch_fiber(dying ? nullptr : &fake_stack, to.stack ? to.stack : to.sanitizer_stack,
                                 to.stack_bytes);
#else
  (void)dying;
#endif
#ifdef PFT_EMU_USES_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  pft_emu_swap(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef PFT_EMU_ASAN
  arrived(fake_stack);
#endif
}

void fiber_started() {
#ifdef PFT_EMU_ASAN
  arrived(nullptr);
#endif
}

char* stack_pool(unsigned count, size_t* stack_bytes, size_t* pitch) {
  static char* pool = nullptr;
  static unsigned have = 0;
  *stack_bytes = kStackBytes;
  *pitch = kStackBytes + kGuardBytes;
  if (count > have) {
    if (pool) munmap(pool, have * *pitch);
    void* memory = mmap(nullptr, count * *pitch, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    pool = static_cast<char*>(memory);
    have = count;
    for (unsigned i = 0; i < count; ++i) mprotect(pool + i * *pitch, kGuardBytes, PROT_NONE);
  }
  return pool + kGuardBytes;
}

}  // namespace pft::emu
