// Short vectors of floats in the portable notation of GCC and Clang, and the operations that the kernel needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

// Number of lanes of the widest vectors of the processor, and number of vector registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

template <int W>
struct Vectors {
  typedef float Float __attribute__((vector_size(W * 4)));
  typedef int32_t Int __attribute__((vector_size(W * 4)));
  typedef float Unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));
};
template <int W>
using Float = typename Vectors<W>::Float;
using Float8 = Float<8>;

template <int W>
inline Float<W> load(const float* from) {
  return *reinterpret_cast<const typename Vectors<W>::Unaligned*>(from);
}

// Loads a vector once for several operations; compilers would otherwise load it again for each operation.
#if defined(__AVX512F__)
#define IN_REGISTER(x) asm("" : "+v"(x))
#elif defined(__SSE__)
#define IN_REGISTER(x) asm("" : "+x"(x))
#elif defined(__aarch64__)
#define IN_REGISTER(x) asm("" : "+w"(x))
#else
#define IN_REGISTER(x)
#endif

template <int W>
inline void store(float* to, Float<W> x) {
  *reinterpret_cast<typename Vectors<W>::Unaligned*>(to) = x;
}

template <int W>
inline Float<W> all(float x) {
  return x - Float<W>{};  // adding zero would need an instruction, because it changes -0
}

// Returns the larger number, or the second if either is NaN. Compilers do not find the instruction themselves.
template <int W>
inline Float<W> larger(Float<W> a, Float<W> b) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return _mm512_max_ps(a, b);
#endif
#if defined(__AVX__)
  if constexpr (W == 8) return _mm256_max_ps(a, b);
#endif
  return a > b ? a : b;
}

// Returns 2^x for x <= 0 with a relative error of 2e-7. Results below 2^-126 become 2^-126, and NaN stays NaN.
template <int W>
inline Float<W> exp2(Float<W> x) {
  // Adding this number rounds to an integer, which is then stored in the lowest bits.
  constexpr float rounder = 12582912.0f;
  x = larger<W>(Float<W>{} - 126.0f, x);
  const Float<W> rounded = x + rounder;
  const Float<W> f = x - (rounded - rounder);
  // Minimax polynomial of 2^f for |f| <= 1/2.
  Float<W> power = f * 1.3264727e-3f + 9.671513e-3f;
  power = power * f + 5.5507336e-2f;
  power = power * f + 2.4022242e-1f;
  power = power * f + 6.93147e-1f;
  power = power * f + 1.0f;
  typedef typename Vectors<W>::Int Int;
  return reinterpret_cast<Float<W>>(reinterpret_cast<Int>(power) + (reinterpret_cast<Int>(rounded) << 23));
}

// Eight numbers in memory, in float32 or bfloat16. Numbers are rounded to nearest even, as PyTorch does; NaN stays NaN.
// (The instruction vcvtneps2bf16 of AVX-512 is not used, because it replaces subnormal numbers by zero.)
typedef uint16_t Shorts __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(32)));

inline Float8 widened(const float* from) { return load<8>(from); }
inline Float8 widened(const uint16_t* from) {
  Shorts x;
  std::memcpy(&x, from, sizeof(x));
  return reinterpret_cast<Float8>(__builtin_convertvector(x, Bits) << 16);
}

inline void narrowed(float* to, Float8 x) { store<8>(to, x); }
inline void narrowed(uint16_t* to, Float8 x) {
  const Bits bits = reinterpret_cast<Bits>(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Shorts result = __builtin_convertvector(x == x ? rounded : Bits{} + 0x7fc0, Shorts);
  std::memcpy(to, &result, sizeof(result));
}

// Read or write up to 8 numbers; missing numbers are read as zero and not written.
template <class T>
inline Float8 read8(const T* from, int64_t count) {
  if (count >= 8) return widened(from);
  T numbers[8] = {};
  for (int64_t i = 0; i < count; ++i) numbers[i] = from[i];
  return widened(numbers);
}

template <class T>
inline void write8(T* to, Float8 x, int64_t count) {
  if (count >= 8) return narrowed(to, x);
  T numbers[8];
  narrowed(numbers, x);
  for (int64_t i = 0; i < count; ++i) to[i] = numbers[i];
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Vectors<8>::Int{__VA_ARGS__})
#endif

// Transposes an 8 x 8 block: interleaves neighbouring rows, then pairs, then halves.
inline void transpose8(Float8 x[8]) {
  Float8 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = SHUFFLE(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    a[i + 1] = SHUFFLE(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = SHUFFLE(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      b[i + 2 * j + 1] = SHUFFLE(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = SHUFFLE(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    x[i + 4] = SHUFFLE(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
