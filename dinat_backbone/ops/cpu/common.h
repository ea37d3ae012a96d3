// What the forward and the backward pass share: geometry, packing of rows, and the two inner loops.
//
// A lane is a query; a vector is a run of neighbouring queries of a row of a residue group. Rows are packed channels
// first, so that key number j of all queries of a vector is one load at an offset of j. Near the left and right border,
// where windows are pushed inwards, the packed row continues as if periodic with period K: the window of K columns
// around any query then holds exactly the query's keys, in rotated order, which changes nothing but the bias.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "vectors.h"

constexpr int K = KERNEL_SIZE;  // given by the compiler's command line
constexpr int HALF = K / 2;
constexpr int TABLE = 2 * K - 1;
constexpr int KEYS = K * K;
constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;

// Keys of a row computed at a time, and rows of queries that share a load, such that all sums stay in registers.
constexpr int PARTS = (K + 12) / 13;
constexpr int PART = (K + PARTS - 1) / PARTS;
constexpr int ROWS = std::clamp((REGISTERS == 32 ? 26 : 12) / PART, 1, 4);

struct Map {  // [B, H, W, heads, D] with strides in elements, channels contiguous
  void* data;
  int64_t strides[4];
};

struct Problem {  // all maps in bfloat16, or all in float32
  Map query, key, value, output, output_gradient, query_gradient, key_gradient, value_gradient;
  const float* bias;     // [heads, TABLE, TABLE], or null
  float* logsumexp;      // [B, H, W, heads], base 2, with the bias and the scale; or null
  float* bias_gradient;  // [parts, TABLE, TABLE], or null; parts of a head lie together
  int64_t batch, height, width, heads, channels, dilation, threads, bfloat16;
  float scale;
};

// The first channel of a position.
struct Place {
  char* data;
  bool bfloat16;
};

inline Place place(const Problem& p, const Map& map, int64_t b, int64_t y, int64_t x, int64_t head) {
  const int64_t* s = map.strides;
  const int64_t offset = b * s[0] + y * s[1] + x * s[2] + head * s[3];
  return {static_cast<char*>(map.data) + offset * (p.bfloat16 ? 2 : 4), p.bfloat16 != 0};
}

// Call `function` with a pointer of the right type.
template <class Function>
inline void with_type(Place place, Function&& function) {
  if (place.bfloat16) return function(reinterpret_cast<uint16_t*>(place.data));
  function(reinterpret_cast<float*>(place.data));
}

// A piece of work: neighbouring residue groups of equal width, columns x0 .. x1 - 1 and rows y0 .. y1 - 1 of each.
struct Item {
  int64_t index, head, b, group_y, group_x0, group_x1, x0, x1, y0, y1;
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t group_length(int64_t size, int64_t group, int64_t dilation) {
  return (size - group + dilation - 1) / dilation;
}
inline int64_t window_start(int64_t x, int64_t length) {
  return std::min(std::max<int64_t>(x - HALF, 0), length - K);
}
// Column whose key stands in column x of a packed row; beyond the packed ends it does not matter which.
inline int64_t wrapped(int64_t x, int64_t length) {
  x = x < 0 ? x + K : x >= length ? x - K : x;
  return std::min(std::max<int64_t>(x, 0), length - 1);
}

// Rows are an odd number of cache lines apart: powers of two would fall into few sets of the cache.
inline int64_t row_stride(int64_t columns) { return (round_up(columns, 16) / 16 | 1) * 16; }

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<float[], Free>;
inline Buffer zeros(int64_t count) {
  const size_t bytes = round_up(count * 4, 64);
  auto* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (memory) std::memset(memory, 0, bytes);
  return Buffer(memory);
}

// Distances from a row's first element to the columns to pack.
using Columns = std::vector<int64_t>;

// Those of columns `from` .. `to` - 1 of a residue group of `width` columns.
inline void set_columns(Columns& columns, const Map& map, int64_t from, int64_t to, int64_t width, int64_t dilation) {
  columns.clear();
  for (int64_t x = from; x < to; ++x) columns.push_back(wrapped(x, width) * dilation * map.strides[2]);
}

// Ask for the columns of a row that will be packed soon: they lie far apart, where no processor expects them.
inline void prefetch(Place row, const Columns& columns, int64_t channels) {
  const int64_t size = row.bfloat16 ? 2 : 4;
  for (const int64_t column : columns) {
    for (int64_t byte = 0; byte < channels * size; byte += 64) __builtin_prefetch(row.data + column * size + byte, 0, 2);
  }
}

// Copy columns of a row, channels first and times `scale`, to columns 0 .. of `to`; missing channels become zero.
inline void pack(float* to, int64_t stride, Place row, const Columns& columns, int64_t channels, float scale) {
  const int64_t count = columns.size();
  with_type(row, [&](const auto* from) {
    Float8 block[8];
    for (int64_t x = 0; x < count; x += 8) {
      for (int64_t c = 0; c < channels; c += 8) {
        if (x + 8 <= count && c + 8 <= channels) {
          for (int i = 0; i < 8; ++i) block[i] = read8(from + columns[x + i] + c, 8) * scale;
        } else {
          for (int i = 0; i < 8; ++i) {
            block[i] = x + i < count ? read8(from + columns[x + i] + c, channels - c) * scale : Float8{};
          }
        }
        transpose8(block);
        for (int i = 0; i < 8; ++i) store<8>(to + (c + i) * stride + x, block[i]);
      }
    }
  });
}

// The reverse for `count` columns, times a factor a column (`factors`, or null) and `scale`.
inline void unpack(Place row, const int64_t* columns, int64_t count, const float* from, int64_t stride,
                   int64_t channels, const float* factors, float scale) {
  with_type(row, [&](auto* to) {
    Float8 block[8];
    for (int64_t x = 0; x < count; x += 8) {
      const Float8 factor = factors ? load<8>(factors + x) * scale : Float8{} + scale;
      for (int64_t c = 0; c < channels; c += 8) {
        for (int i = 0; i < 8; ++i) block[i] = load<8>(from + (c + i) * stride + x) * factor;
        transpose8(block);
        for (int i = 0; i < 8 && x + i < count; ++i) write8(to + columns[x + i] + c, block[i], channels - c);
      }
    }
  });
}

// Entry of the bias table's row for query x and the key in place j of its rotated window.
inline int64_t bias_column(int64_t x, int64_t j, int64_t length) {
  return x < length ? wrapped(x - HALF + j, length) - x + K - 1 : 0;
}

// Bias of W queries from x0 on, for all rows of the table: [TABLE, K, W].
template <int W>
void spread_bias(float* to, const float* table, int64_t x0, int64_t length) {
  for (int64_t j = 0; j < K; ++j) {
    for (int64_t x = 0; x < W; ++x) {
      const int64_t column = bias_column(x0 + x, j, length);
      for (int64_t row = 0; row < TABLE; ++row) {
        to[(row * K + j) * W + x] = table ? table[row * TABLE + column] * LOG2_E : 0.0f;
      }
    }
  }
}

// Scores of N rows of queries and the keys of one row, places `FIRST` .. : sums over channels of query * key.
template <int W, int N, int FIRST = 0>
inline void multiply_channels(const float* const query[], int64_t query_stride, const float* key, int64_t key_stride,
                              int64_t channels, const float* const initial[], float* const scores[],
                              int64_t score_stride) {
  constexpr int COUNT = std::min(PART, K - FIRST);
  Float<W> sums[N][COUNT];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) sums[n][j] = initial ? load<W>(initial[n] + (FIRST + j) * W) : Float<W>{};
  }
  for (int64_t c = 0; c < channels; ++c) {
    Float<W> q[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) q[n] = load<W>(query[n] + c * query_stride);
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) {
      Float<W> k = load<W>(key + c * key_stride + FIRST + j);
      if (N > 1) IN_REGISTER(k);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sums[n][j] += q[n] * k;
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) store<W>(scores[n] + (FIRST + j) * score_stride, sums[n][j]);
  }
  if constexpr (FIRST + PART < K) {
    multiply_channels<W, N, FIRST + PART>(query, query_stride, key, key_stride, channels, initial, scores,
                                          score_stride);
  }
}

// Add to N rows of W columns, for every channel, the sum over j of weight j * source column + j.
template <int W, int N, int FIRST = 0>
inline void multiply_places(float* const sums[], int64_t sum_stride, const float* const weights[],
                            int64_t weight_stride, const float* source, int64_t source_stride, int64_t channels) {
  constexpr int COUNT = std::min(PART, K - FIRST);
  Float<W> w[N][COUNT];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) w[n][j] = load<W>(weights[n] + (FIRST + j) * weight_stride);
  }
  for (int64_t c = 0; c < channels; ++c) {
    Float<W> sum[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sum[n] = load<W>(sums[n] + c * sum_stride);
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) {
      Float<W> x = load<W>(source + c * source_stride + FIRST + j);
      if (N > 1) IN_REGISTER(x);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[n] += w[n][j] * x;
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) store<W>(sums[n] + c * sum_stride, sum[n]);
  }
  if constexpr (FIRST + PART < K) {
    multiply_places<W, N, FIRST + PART>(sums, sum_stride, weights, weight_stride, source, source_stride, channels);
  }
}

// Call `function` with the integral constant `n` in 1 .. N.
template <int N, class Function>
inline void dispatch(int64_t n, Function&& function) {
  if constexpr (N > 1) {
    if (n < N) return dispatch<N - 1>(n, function);
  }
  function(std::integral_constant<int, N>{});
}

// Tiles of LANES columns, and one of half as many where that is enough for the rest.
template <class Function>
inline void for_tiles(int64_t columns, Function&& function) {
  int64_t x = 0;
  for (; x < columns; x += LANES) {
    if (LANES > 8 && columns - x <= LANES / 2) return function(std::integral_constant<int, std::max(LANES / 2, 4)>{}, x);
    function(std::integral_constant<int, LANES>{}, x);
  }
}

// Call `function(m, n0, n1)` for every row m of keys that queries of rows y .. y + rows - 1 attend: rows n0 .. n1 - 1
// (counted from y) do.
template <class Function>
inline void for_key_rows(int64_t y, int64_t rows, int64_t height, Function&& function) {
  int64_t n0 = 0, n1 = 0;
  for (int64_t m = window_start(y, height); m < window_start(y + rows - 1, height) + K; ++m) {
    while (n1 < rows && window_start(y + n1, height) <= m) ++n1;
    while (window_start(y + n0, height) + K <= m) ++n0;
    function(m, n0, n1);
  }
}
