// View<T>: how kernels see memory. Under nvcc it is T*; here each element access goes through emu::access.
#pragma once
#include <type_traits>

#include "emulator.h"
#include "half.h"

namespace pft {

// One element: reads by conversion, writes by assignment.
template <class T>
class Ref {
  using Value = std::remove_const_t<T>;

 public:
  Ref(T* p, const char* begin, const char* end) : p_(p), begin_(begin), end_(end) {}
  operator Value() const {
    emu::access(p_, sizeof(T), emu::Kind::load, begin_, end_);
    return *p_;
  }
  Ref& operator=(Value value) {
    emu::access(p_, sizeof(T), emu::Kind::store, begin_, end_);
    *p_ = value;
    return *this;
  }
  Ref& operator=(const Ref& other) { return *this = static_cast<Value>(other); }
  Ref& operator+=(Value value) { return *this = static_cast<Value>(static_cast<Value>(*this) + value); }

 private:
  T* p_;
  const char *begin_, *end_;
};

template <class T>
class View {
 public:
  View() = default;
  View(T* p) : p_(p) {}  // bounds: whatever buffer of the launch holds the address
  View(T* p, const void* begin, const void* end)
      : p_(p), begin_(static_cast<const char*>(begin)), end_(static_cast<const char*>(end)) {}
  template <class U, class = std::enable_if_t<std::is_same<const U, T>::value>>
  View(const View<U>& other) : p_(other.pointer()), begin_(other.begin()), end_(other.end()) {}

  Ref<T> operator[](int64_t i) const { return {p_ + i, begin_, end_}; }
  Ref<T> operator*() const { return (*this)[0]; }
  View operator+(int64_t i) const { return {p_ + i, begin_, end_}; }
  View& operator+=(int64_t i) {
    p_ += i;
    return *this;
  }
  explicit operator bool() const { return p_ != nullptr; }
  T* pointer() const { return p_; }
  const char* begin() const { return begin_; }
  const char* end() const { return end_; }

 private:
  T* p_ = nullptr;
  const char *begin_ = nullptr, *end_ = nullptr;
};

// A vector access: V values of 8 or 16 bytes, naturally aligned as on the GPU.
template <class V, class T>
V load_as(const View<T>& view, emu::Kind kind = emu::Kind::load) {
  emu::access(view.pointer(), sizeof(V), kind, view.begin(), view.end());
  V value;
  std::memcpy(&value, view.pointer(), sizeof(V));
  return value;
}
template <class V, class T>
void store_as(const View<T>& view, V value) {
  emu::access(view.pointer(), sizeof(V), emu::Kind::store, view.begin(), view.end());
  std::memcpy(view.pointer(), &value, sizeof(V));
}

// Takes arrays one after another from a block's dynamic shared memory, each aligned to 16 bytes and with its
// own bounds.
class SharedMemory {
 public:
  SharedMemory() : next_(emu::block->shared) {}
  template <class T>
  View<T> take(int64_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    return {array, array, array + count};
  }

 private:
  char* next_;
};

}  // namespace pft
