// The inner loops: three kinds of products of rows of queries with one row of keys or values.
#pragma once

#include "common.h"

// Computes the scores of N rows of queries and the keys of one row, from place FIRST on: sums over channels of
// query * key. `most`, if not null, is raised to the largest score of each query.
template <int W, int N, int G, int FIRST = 0>
inline void multiply_channels(const float* const query[], int64_t query_stride, const float* key, int64_t key_stride,
                              int64_t channels, const float* const initial[], float* const scores[],
                              int64_t score_stride, Float<W>* most) {
  constexpr int COUNT = std::min(part<N>(), K - FIRST);
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
      Float<W> k = load<W>(key + c * key_stride + (FIRST + j) * G);
      if (N > 1) IN_REGISTER(k);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sums[n][j] += q[n] * k;
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 16
    for (int j = 0; j < COUNT; ++j) store<W>(scores[n] + (FIRST + j) * score_stride, sums[n][j]);
    if (most) {
#pragma GCC unroll 16
      for (int j = 2; j < COUNT; ++j) sums[n][j % 2] = larger<W>(sums[n][j % 2], sums[n][j]);
      most[n] = larger<W>(most[n], larger<W>(sums[n][0], sums[n][std::min(1, COUNT - 1)]));
    }
  }
  if constexpr (FIRST + COUNT < K) {
    multiply_channels<W, N, G, FIRST + COUNT>(query, query_stride, key, key_stride, channels, initial, scores,
                                             score_stride, most);
  }
}

// Adds to N rows of W cells, for every channel, the sum over j of weight j times the source j columns further on.
template <int W, int N, int G, int FIRST = 0>
inline void multiply_places(float* const sums[], int64_t sum_stride, const float* const weights[],
                            int64_t weight_stride, const float* source, int64_t source_stride, int64_t channels) {
  constexpr int COUNT = std::min(part<N>(), K - FIRST);
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
      Float<W> x = load<W>(source + c * source_stride + (FIRST + j) * G);
      if (N > 1) IN_REGISTER(x);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[n] += w[n][j] * x;
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) store<W>(sums[n] + c * sum_stride, sum[n]);
  }
  if constexpr (FIRST + COUNT < K) {
    multiply_places<W, N, G, FIRST + COUNT>(sums, sum_stride, weights, weight_stride, source, source_stride, channels);
  }
}

// Offsets of a row of queries and of the keys to which they attend, for `multiply_queries`.
struct Columns {
  std::vector<int64_t> keys;     // of the key at place j of query x, at index x + j
  std::vector<int64_t> weights;  // of the weight at place 0 of query x

  // `step` is the distance of neighbouring columns of keys, and `tile` that of the weights of LANES cells.
  void set(int64_t width, int64_t heads, int64_t step, int64_t tile) {
    keys.clear();
    weights.clear();
    for (int64_t x = -HALF; x <= width + HALF; ++x) keys.push_back(wrapped(x, width) * step);
    for (int64_t cell = 0; cell < width * heads; cell += heads) {
      weights.push_back(cell / LANES * tile + cell % LANES);
    }
  }
};

// Adds, for N rows of queries and every query x, weight j times source x to the key of the query at place j of a row of
// keys, from place FIRST on. The weights of neighbouring places are LANES apart; `sources` are `step` apart. All start
// at the first of V vectors of channels. The keys of a query are kept in registers. From one query to the next, one key
// is replaced; near the borders, where windows are rotated, by one that left its register before.
template <int V, int N, int FIRST = 0>
inline void multiply_queries(float* sums, const float* const weights[], const float* const sources[], int64_t step,
                             const Columns& columns) {
  constexpr int COUNT = std::min(part<V>(), K - FIRST);
  using Vector = Float<LANES>;
  const int64_t width = columns.weights.size();
  const int64_t *keys = columns.keys.data() + FIRST, *weight_of = columns.weights.data();
  // The key at place j of query x is in register (x + j) mod COUNT.
  Vector held[COUNT][V];
  unroll(std::make_integer_sequence<int, COUNT>(), [&](auto i) __attribute__((always_inline)) {
    for (int v = 0; v < V; ++v) held[i][v] = load<LANES>(sums + keys[i] + v * LANES);
  });
  int64_t source_offset = 0;
  for (int64_t x0 = 0; x0 < width; x0 += COUNT) {
    unroll(std::make_integer_sequence<int, COUNT>(), [&](auto i) __attribute__((always_inline)) {
      const int64_t x = x0 + i;
      if (x >= width) return;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const float* weight = weights[n] + weight_of[x];
        Vector source[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          source[v] = load<LANES>(sources[n] + source_offset + v * LANES);
          IN_REGISTER(source[v]);
        }
#pragma GCC unroll 64
        for (int j = 0; j < COUNT; ++j) {
          const Vector w = all<LANES>(weight[(FIRST + j) * LANES]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) held[(i + j) % COUNT][v] += w * source[v];
        }
      }
      source_offset += step;
      const int64_t leaving = keys[x], entering = keys[x + COUNT];
      if (leaving == entering) return;
      for (int v = 0; v < V; ++v) {
        store<LANES>(sums + leaving + v * LANES, held[i][v]);
        held[i][v] = load<LANES>(sums + entering + v * LANES);
      }
    });
  }
  unroll(std::make_integer_sequence<int, COUNT>(), [&](auto i) __attribute__((always_inline)) {
    float* place = sums + keys[width + (i + COUNT - width % COUNT) % COUNT];
    for (int v = 0; v < V; ++v) store<LANES>(place + v * LANES, held[i][v]);
  });
  if constexpr (FIRST + COUNT < K) {
    multiply_queries<V, N, FIRST + COUNT>(sums, weights, sources, step, columns);
  }
}
