// Definitions for the forward and the backward pass: the problem, its work items, and the layout in memory.
//
// A lane is a query. A vector is a run of neighbouring queries in a row of a residue group, of G heads at once: column
// x of head g is cell x * G + g of a row. (Interleaving heads fills vectors better when rows have few columns.) Rows
// are packed channels first, so that key number j of all queries of a vector is one load at an offset of j columns.
// Near the left and right border, where windows are shifted inwards, a packed row continues as if it were periodic with
// period K. The window of K columns around any query then contains exactly the keys of the query, in rotated order,
// which affects only the bias.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "vectors.h"

constexpr int K = KERNEL_SIZE;  // defined on the command line of the compiler
constexpr int HALF = K / 2;
constexpr int TABLE = 2 * K - 1;
constexpr int KEYS = K * K;
constexpr float LOG2_E = 1.44269504f;

// Number of places of a row of keys that are computed at a time for N operands, such that N sums per place, the
// operands and one more vector stay in registers.
template <int N>
constexpr int part() {
  const int most = (REGISTERS - 1 - N) / N, parts = (K + most - 1) / most;
  return (K + parts - 1) / parts;
}

// Number of rows of queries that are computed at a time and share the rows of keys in the first-level cache, and of
// rows that share a load into a register.
constexpr int ROWS = 4;
constexpr int BLOCK = REGISTERS == 32 ? 4 : 2;

struct Map {  // [B, H, W, heads, D] with strides in elements, channels contiguous
  void* data;
  int64_t strides[4];
};

struct Problem {  // all maps in bfloat16, or all in float32
  Map query, key, value, output, output_gradient, query_gradient, key_gradient, value_gradient;
  const float* bias;     // [heads, TABLE, TABLE], or null
  float* logsumexp;      // [B, H, W, heads], base 2, with the bias and the scale; or null
  float* bias_gradient;  // [heads, parts, TABLE, TABLE], or null
  int64_t batch, height, width, heads, channels, dilation, threads, bfloat16;
  float scale;
};

// Address of the first channel of a position.
struct Place {
  char* data;
  bool bfloat16;
};

inline Place place(const Problem& p, const Map& map, int64_t b, int64_t y, int64_t x, int64_t head) {
  const int64_t* s = map.strides;
  const int64_t offset = b * s[0] + y * s[1] + x * s[2] + head * s[3];
  return {static_cast<char*>(map.data) + offset * (p.bfloat16 ? 2 : 4), p.bfloat16 != 0};
}

// Calls `function` with a pointer of the right type.
template <class Function>
inline void with_type(Place place, Function&& function) {
  if (place.bfloat16) return function(reinterpret_cast<uint16_t*>(place.data));
  function(reinterpret_cast<float*>(place.data));
}

// A work item: G heads, neighbouring residue groups of equal width, and columns x0 .. x1 - 1 and rows y0 .. y1 - 1 of
// each group.
struct Item {
  int64_t head, b, group_y, group_x0, group_x1, x0, x1, y0, y1;
  int64_t part, parts;  // index of the item among the items of its heads, and their number
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t group_length(int64_t size, int64_t group, int64_t dilation) {
  return (size - group + dilation - 1) / dilation;
}
inline int64_t window_start(int64_t x, int64_t length) {
  return std::min(std::max<int64_t>(x - HALF, 0), length - K);
}
// Column whose key is stored in column x of a packed row; beyond the packed ends the value does not matter.
inline int64_t wrapped(int64_t x, int64_t length) {
  x = x < 0 ? x + K : x >= length ? x - K : x;
  return std::min(std::max<int64_t>(x, 0), length - 1);
}

// The distance between rows is an odd number of cache lines; powers of two would map to few sets of the cache.
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

// Offsets of the cells to pack from the first element of a row.
using Cells = std::vector<int64_t>;

// Sets the offsets of columns `from` .. `to` - 1 of a residue group of `width` columns.
template <int G>
void set_cells(Cells& cells, const Map& map, int64_t from, int64_t to, int64_t width, int64_t dilation) {
  cells.clear();
  for (int64_t x = from; x < to; ++x) {
    for (int64_t g = 0; g < G; ++g) {
      cells.push_back(wrapped(x, width) * dilation * map.strides[2] + g * map.strides[3]);
    }
  }
}

// Column of the bias table for query x and the key at place j of its rotated window.
inline int64_t bias_column(int64_t x, int64_t j, int64_t length) {
  return x < length ? wrapped(x - HALF + j, length) - x + K - 1 : 0;
}

// Writes the bias of the W queries of a tile that starts in column x0, for all rows of the tables: [TABLE, K, W].
template <int W, int G>
void spread_bias(float* to, const float* tables, int64_t x0, int64_t length) {
  int32_t from[K * W];
  for (int64_t i = 0; i < K * W; ++i) {
    const int64_t lane = i % W;
    from[i] = lane % G * TABLE * TABLE + bias_column(x0 + lane / G, i / W, length);
  }
  for (int64_t row = 0; row < TABLE; ++row, to += K * W) {
    for (int64_t i = 0; i < K * W; ++i) to[i] = tables ? tables[row * TABLE + from[i]] * LOG2_E : 0.0f;
  }
}

// Calls `function` with each of the integral constants I.
template <class Function, int... I>
__attribute__((always_inline)) inline void unroll(std::integer_sequence<int, I...>, Function&& function) {
  (function(std::integral_constant<int, I>{}), ...);
}

// Calls `function` with `n`, from 1 .. N, as an integral constant.
template <int N, class Function>
inline void dispatch(int64_t n, Function&& function) {
  if constexpr (N > 1) {
    if (n < N) return dispatch<N - 1>(n, function);
  }
  function(std::integral_constant<int, N>{});
}

// Calls `function(n, first)` for rows first .. first + n - 1 of `count` rows, with `n` as an integral constant.
template <class Function>
inline void for_blocks(int64_t count, Function&& function) {
  for (int64_t first = 0; first < count; first += BLOCK) {
    dispatch<BLOCK>(std::min<int64_t>(BLOCK, count - first), [&](auto n) { function(n, first); });
  }
}

// Calls `function` for tiles of LANES cells; the last tile has half as many if they are enough.
template <class Function>
inline void for_tiles(int64_t cells, Function&& function) {
  int64_t x = 0;
  for (; x < cells; x += LANES) {
    if (LANES > 8 && cells - x <= LANES / 2) return function(std::integral_constant<int, std::max(LANES / 2, 4)>{}, x);
    function(std::integral_constant<int, LANES>{}, x);
  }
}

// Calls `function(m, n0, n1)` for every row m of keys to which queries in rows y .. y + rows - 1 attend; these are the
// queries in rows n0 .. n1 - 1, counted from y.
template <class Function>
inline void for_key_rows(int64_t y, int64_t rows, int64_t height, Function&& function) {
  int64_t n0 = 0, n1 = 0;
  for (int64_t m = window_start(y, height); m < window_start(y + rows - 1, height) + K; ++m) {
    while (n1 < rows && window_start(y + n1, height) <= m) ++n1;
    while (window_start(y + n0, height) + K <= m) ++n0;
    function(m, n0, n1);
  }
}
