// The backward pass of one work item, which contains all columns of its residue groups.
//
// Rows of keys are kept in slots while windows contain them. The gradients of a row are summed in a slot of their own,
// channels last (a vector holds channels of one key there), and written when the row leaves its slot. If the rows are
// divided into bands, each band computes the scores of all queries that attend to its keys, but writes only the
// gradients of its own rows, so that no two threads write to the same place.
#pragma once

#include "worker.h"

template <int G>
class Backward : Worker<G> {
 public:
  Backward(const Problem& problem, int64_t widest)
      : Worker<G>(problem, widest),
        depth(round_up(p.channels, VECTORS * LANES)),
        plane(widest * G * depth),
        query_stride(row_stride(widest * G + LANES)) {
    for (Buffer* buffer : {&keys, &values}) *buffer = zeros(SLOTS * channels * stride);
    for (Buffer* buffer : {&key_gradients, &value_gradients}) *buffer = zeros(SLOTS * plane);
    for (Buffer* buffer : {&queries, &gradients}) *buffer = zeros(ROWS * channels * query_stride);
    for (Buffer* buffer : {&flat_queries, &flat_gradients}) *buffer = zeros(ROWS * plane);
    for (Buffer* buffer : {&probabilities, &score_gradients}) *buffer = zeros((widest * G / LANES + 1) * TILE);
    logsumexp = zeros(ROWS * query_stride);
    for (Buffer* buffer : {&bias, &bias_gradient}) *buffer = zeros((widest * G / LANES + 1) * TABLE * K * LANES);
    sums = zeros(ROWS * channels * LANES + 8);  // `unpack` reads groups of eight
  }

  bool ready() const {
    return keys && values && key_gradients && value_gradients && queries && gradients && flat_queries &&
           flat_gradients && probabilities && score_gradients && logsumexp && bias && bias_gradient && sums;
  }

  // `next`, or null, is the item that the worker will probably process next.
  void run(const Item& item, const Item* next) {
    set(current, item);
    following.item = nullptr;
    if (next) set(following, *next);
    cells = current.width * G;
    columns.set(current.width, G, G * depth, TILE);
    // For lanes without a query: makes their probabilities zero.
    std::fill_n(logsumexp.get(), ROWS * query_stride, 1e30f);
    const float* tables = p.bias ? p.bias + item.head * TABLE * TABLE : nullptr;
    for_tiles(cells, [&](auto lanes, int64_t x) {
      spread_bias<lanes, G>(bias.get() + x * TABLE * K, tables, x / G, current.width);
      std::memset(bias_gradient.get() + x * TABLE * K, 0, TABLE * K * lanes * 4);
    });
    for (int64_t group_x = item.group_x0; group_x < item.group_x1; ++group_x) run_group(item, group_x);
    if (p.bias_gradient) write_bias_gradients(item);
  }

 private:
  using Base = Worker<G>;
  using Base::SLOTS, Base::p, Base::channels, Base::stride, Base::current, Base::following, Base::prefetcher;
  using Base::row, Base::slot, Base::ask;

  // Sets the layout for all queries that attend to the rows of an item.
  void set(Layout& layout, const Item& item) const {
    const int64_t height = group_length(p.height, item.group_y, p.dilation);
    Range queries{item.y0, item.y1};
    while (queries.first > 0 && window_start(queries.first - 1, height) + K > item.y0) --queries.first;
    while (queries.end < height && window_start(queries.end, height) < item.y1) ++queries.end;
    // The gradients of all maps are contiguous and have the same layout.
    Base::set(layout, item, p.output_gradient, queries);
  }

  void run_group(const Item& item, int64_t group_x) {
    const int64_t height = current.height, end = current.queries.end;
    int64_t packed = current.keys.first, finished = packed, asked = packed + K + ROWS - 1;
    for (int64_t y = current.queries.first; y < end; y += ROWS) {
      const int64_t rows = std::min<int64_t>(ROWS, end - y);
      for (; finished < window_start(y, height); ++finished) finish_keys(item, group_x, finished);
      for (const int64_t stop = window_start(y + rows - 1, height) + K; packed < stop; ++packed) {
        pack(slot(keys, packed), stride, row(p.key, current, group_x, packed), current.key, p.channels, 1.0f);
        pack(slot(values, packed), stride, row(p.value, current, group_x, packed), current.value, p.channels, 1.0f);
        for (Buffer* buffer : {&key_gradients, &value_gradients}) std::memset(sums_of(*buffer, packed), 0, plane * 4);
      }
      for (int64_t n = 0; n < rows; ++n) pack_queries(item, group_x, y + n, n);
      prefetcher.clear();
      for (int64_t n = 0; n < ROWS; ++n) {
        ask(p.key, &Layout::key, &Layout::keys, group_x, asked, false);
        ask(p.value, &Layout::value, &Layout::keys, group_x, asked++, false);
        ask(p.query, &Layout::query, &Layout::queries, group_x, y + ROWS + n, false);
        ask(p.output_gradient, &Layout::result, &Layout::queries, group_x, y + ROWS + n, false);
        ask(p.query_gradient, &Layout::result, &Layout::queries, group_x, y + ROWS + n, true);
        ask(p.key_gradient, &Layout::result, &Layout::keys, group_x, finished + n, true);
        ask(p.value_gradient, &Layout::result, &Layout::keys, group_x, finished + n, true);
      }
      prefetcher.spread((round_up(cells, LANES) / LANES * ROWS / BLOCK + G) * 2 * K);
      for_tiles(cells, [&](auto lanes, int64_t x) { run_tile<lanes>(item, group_x, y, rows, x); });
      add_to_keys(y, rows, key_gradients, score_gradients, flat_queries);
      add_to_keys(y, rows, value_gradients, probabilities, flat_gradients);
    }
    for (; finished < packed; ++finished) finish_keys(item, group_x, finished);
  }

  void pack_queries(const Item& item, int64_t group_x, int64_t y, int64_t n) {
    const Place query = row(p.query, current, group_x, y), gradient = row(p.output_gradient, current, group_x, y);
    const int64_t to = n * channels * query_stride;
    pack(queries.get() + to, query_stride, query, current.query, p.channels, p.scale * LOG2_E);
    pack(gradients.get() + to, query_stride, gradient, current.result, p.channels, 1.0f);
    copy(flat_queries.get() + n * plane, depth, query, current.query, p.channels, p.scale);
    copy(flat_gradients.get() + n * plane, depth, gradient, current.result, p.channels, 1.0f);
    const int64_t position = (item.b * p.height + y * p.dilation + item.group_y) * p.width + group_x;
    for (int64_t x = 0; x < cells; ++x) {
      logsumexp[n * query_stride + x] = p.logsumexp[(position + x / G * p.dilation) * p.heads + item.head + x % G];
    }
  }

  // Computes the probabilities and the gradients of scores and queries of W cells.
  template <int W>
  void run_tile(const Item& item, int64_t group_x, int64_t y, int64_t rows, int64_t x) {
    const float *query[ROWS], *gradient[ROWS], *initial[ROWS];
    float *probability[ROWS], *score[ROWS], *sum[ROWS];
    for_key_rows(y, rows, current.height, [&](int64_t m, int64_t n0, int64_t n1) {
      for (int64_t n = n0; n < n1; ++n) {
        const int64_t from = n * channels * query_stride + x;
        const int64_t to = score_offset(x, n, m - window_start(y + n, current.height));
        query[n - n0] = queries.get() + from;
        gradient[n - n0] = gradients.get() + from;
        initial[n - n0] = bias.get() + x * TABLE * K + (m - y - n + K - 1) * K * W;
        probability[n - n0] = probabilities.get() + to;
        score[n - n0] = score_gradients.get() + to;
      }
      for_blocks(n1 - n0, [&](auto n, int64_t from) {
        prefetcher.some();
        multiply_channels<W, n, G>(query + from, query_stride, slot(keys, m) + x, stride, p.channels, initial + from,
                                   probability + from, LANES, nullptr);
      });
      for_blocks(n1 - n0, [&](auto n, int64_t from) {
        multiply_channels<W, n, G>(gradient + from, query_stride, slot(values, m) + x, stride, p.channels, nullptr,
                                   score + from, LANES, nullptr);
      });
    });
    for (int64_t n = 0; n < rows; ++n) {
      const bool own = y + n >= item.y0 && y + n < item.y1;
      const int64_t bias_row = window_start(y + n, current.height) - y - n + K - 1;
      float* sums_of_bias = own && p.bias_gradient ? bias_gradient.get() + x * TABLE * K + bias_row * K * W : nullptr;
      differentiate_softmax<W>(n, x, sums_of_bias);
    }
    std::memset(sums.get(), 0, rows * channels * W * 4);
    for_key_rows(y, rows, current.height, [&](int64_t m, int64_t n0, int64_t n1) {
      for (int64_t n = n0; n < n1; ++n) {
        score[n - n0] = score_gradients.get() + score_offset(x, n, m - window_start(y + n, current.height));
        sum[n - n0] = sums.get() + n * channels * W;
      }
      for_blocks(n1 - n0, [&](auto n, int64_t from) {
        prefetcher.some();
        multiply_places<W, n, G>(sum + from, W, score + from, LANES, slot(keys, m) + x, stride, p.channels);
      });
    });
    for (int64_t n = std::max<int64_t>(0, item.y0 - y); n < std::min(rows, item.y1 - y); ++n) {
      unpack(row(p.query_gradient, current, group_x, y + n), current.result.data() + x, std::min<int64_t>(W, cells - x),
             sums.get() + n * channels * W, W, p.channels, nullptr, p.scale);
    }
  }

  // Replaces scores by probabilities, and the gradients of the probabilities by gradients of the scores.
  template <int W>
  void differentiate_softmax(int64_t n, int64_t x, float* sums_of_bias) {
    const Float<W> shift = load<W>(logsumexp.get() + n * query_stride + x);
    float* probability = probabilities.get() + score_offset(x, n, 0);
    float* score = score_gradients.get() + score_offset(x, n, 0);
    Float<W> mean{};
    for (int64_t i = 0; i < KEYS; ++i) {
      const Float<W> e = exp2<W>(load<W>(probability + i * LANES) - shift);
      store<W>(probability + i * LANES, e);
      mean += e * load<W>(score + i * LANES);
    }
    for (int64_t i = 0; i < KEYS; ++i) {
      const Float<W> difference = load<W>(score + i * LANES) - mean;
      const Float<W> gradient = load<W>(probability + i * LANES) * difference;
      store<W>(score + i * LANES, gradient);
      if (sums_of_bias) store<W>(sums_of_bias + i * W, load<W>(sums_of_bias + i * W) + gradient);
    }
  }

  // Adds sums over the queries of weight * source to the rows of keys to which rows of queries attend.
  void add_to_keys(int64_t y, int64_t rows, const Buffer& results, const Buffer& weights, const Buffer& sources) {
    for_key_rows(y, rows, current.height, [&](int64_t m, int64_t n0, int64_t n1) {
      for (int64_t head = 0; head < G; ++head) {
        prefetcher.some();
        const float *weight[ROWS], *source[ROWS];
        for (int64_t c = 0; c < depth; c += VECTORS * LANES) {
          for (int64_t n = n0; n < n1; ++n) {
            weight[n - n0] = weights.get() + score_offset(0, n, m - window_start(y + n, current.height)) + head;
            source[n - n0] = sources.get() + n * plane + head * depth + c;
          }
          float* sums = sums_of(results, m) + head * depth + c;
          dispatch<ROWS>(n1 - n0, [&](auto n) {
            multiply_queries<VECTORS, n>(sums, weight, source, G * depth, columns);
          });
        }
      }
    });
  }

  // Writes the gradients of a row of keys to which no further query attends.
  void finish_keys(const Item& item, int64_t group_x, int64_t y) {
    if (y < item.y0 || y >= item.y1) return;
    copy_back(row(p.key_gradient, current, group_x, y), current.result, sums_of(key_gradients, y), depth, p.channels);
    copy_back(row(p.value_gradient, current, group_x, y), current.result, sums_of(value_gradients, y), depth,
              p.channels);
  }

  float* sums_of(const Buffer& buffer, int64_t row) const { return buffer.get() + row % SLOTS * plane; }

  void write_bias_gradients(const Item& item) {
    std::vector<double> totals(G * TABLE * TABLE);
    for_tiles(cells, [&](auto lanes, int64_t x) {
      const float* from = bias_gradient.get() + x * TABLE * K;
      for (int64_t i = 0; i < TABLE * K; ++i) {
        for (int64_t cell = x; cell < x + lanes; ++cell) {
          const int64_t column = bias_column(cell / G, i % K, current.width);
          totals[(cell % G * TABLE + i / K) * TABLE + column] += from[i * lanes + cell - x];
        }
      }
    });
    for (int64_t g = 0; g < G; ++g) {
      std::copy_n(totals.data() + g * TABLE * TABLE, TABLE * TABLE,
                  p.bias_gradient + ((item.head + g) * item.parts + item.part) * TABLE * TABLE);
    }
  }

  static constexpr int VECTORS = 2;  // vectors of channels that share a load of a weight
  static constexpr int64_t TILE = ROWS * KEYS * LANES;  // scores of a tile

  // Offset of the scores of row n of the queries of the tile that starts at cell x, for row t of their windows.
  int64_t score_offset(int64_t x, int64_t n, int64_t t) const {
    return x / LANES * TILE + (n * K + t) * K * LANES;
  }

  const int64_t depth;  // channels, a multiple of VECTORS * LANES and of 8
  const int64_t plane;  // numbers of a row, channels last
  const int64_t query_stride;
  int64_t cells;
  Columns columns;
  Buffer keys, values;                    // [SLOTS, channels, stride], row m in slot m mod SLOTS
  Buffer key_gradients, value_gradients;  // [SLOTS, cells, depth]
  Buffer queries, gradients;              // [ROWS, channels, query_stride]
  Buffer flat_queries, flat_gradients;    // [ROWS, cells, depth]
  Buffer probabilities, score_gradients;  // [tiles, ROWS, K, K, LANES]
  Buffer logsumexp;                       // [ROWS, query_stride]
  Buffer bias, bias_gradient;             // for each tile [TABLE, K, W]
  Buffer sums;                            // [ROWS, channels, W]
};
