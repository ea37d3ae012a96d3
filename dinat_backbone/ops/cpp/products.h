// The inner loops: three kinds of products of rows of queries with one row of keys or values.
#pragma once

#include "common.h"

// Computes the scores of N rows of queries and the keys of one row, from place FIRST on: sums over channels of
// query * key. `most`, if not null, is raised to the largest score of each query.
template <int W, int N, int G, int FIRST = 0>
inline void multiply_channels(const float* const query[], int64_t query_stride, const float* key, int64_t key_stride,
                              int64_t channels, const float* const initial[], float* const scores[],
                              int64_t score_stride, Float<W>* most) {
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
  if constexpr (FIRST + PART < K) {
    multiply_channels<W, N, G, FIRST + PART>(query, query_stride, key, key_stride, channels, initial, scores,
                                             score_stride, most);
  }
}

// Adds to N rows of W cells, for every channel, the sum over j of weight j times the source j columns further on.
template <int W, int N, int G, int FIRST = 0>
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
      Float<W> x = load<W>(source + c * source_stride + (FIRST + j) * G);
      if (N > 1) IN_REGISTER(x);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[n] += w[n][j] * x;
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) store<W>(sums[n] + c * sum_stride, sum[n]);
  }
  if constexpr (FIRST + PART < K) {
    multiply_places<W, N, G, FIRST + PART>(sums, sum_stride, weights, weight_stride, source, source_stride, channels);
  }
}

// Adds, for N rows of queries and every query x, weight j times source x to the key of the query at place j of a row of
// keys. `weights` have a stride of `weight_stride` between places and of G between queries; `sums` and `sources` are
// [columns, G, channels], starting at the first of V vectors of channels. All keys of a query are kept in registers,
// the key of column x in register x mod K, also at the borders, because windows are rotated there. From one query to
// the next, at most one key is replaced, by another one in the same register.
template <int V, int N, int G>
inline void multiply_queries(float* sums, const float* const weights[], int64_t weight_stride,
                             const float* const sources[], int64_t channels, int64_t width) {
  using Vector = Float<LANES>;
  const int64_t step = G * channels;
  Vector held[K][V];
  auto place_of = [&](int64_t column, int v) { return sums + column * step + v * LANES; };
  unroll(std::make_integer_sequence<int, K>(), [&](auto i) __attribute__((always_inline)) {
    for (int v = 0; v < V; ++v) held[i][v] = load<LANES>(place_of(i, v));
  });
  for (int64_t x0 = 0; x0 < width; x0 += K) {
    unroll(std::make_integer_sequence<int, K>(), [&](auto i) __attribute__((always_inline)) {
      const int64_t x = x0 + i;
      if (x >= width) return;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        Vector source[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          source[v] = load<LANES>(sources[n] + x * step + v * LANES);
          IN_REGISTER(source[v]);
        }
#pragma GCC unroll 64
        for (int j = 0; j < K; ++j) {
          const Vector weight = all<LANES>(weights[n][j * weight_stride + x * G]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) held[(i + j + K - HALF) % K][v] += weight * source[v];
        }
      }
      const int64_t first = window_start(x, width);
      if (window_start(x + 1, width) == first) return;
      constexpr int leaving = (i + K - HALF) % K;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        store<LANES>(place_of(first, v), held[leaving][v]);
        held[leaving][v] = load<LANES>(place_of(first + K, v));
      }
    });
  }
  const int64_t last = width - K, shift = last % K;
  unroll(std::make_integer_sequence<int, K>(), [&](auto i) __attribute__((always_inline)) {
    const int64_t column = last + i - shift + (i < shift ? K : 0);
    for (int v = 0; v < V; ++v) store<LANES>(place_of(column, v), held[i][v]);
  });
}
