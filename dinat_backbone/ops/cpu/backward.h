// The backward pass of one piece of work, which has all columns of its residue groups.
//
// Rows of keys live in slots while windows hold them: the gradients of a row are summed beside it and written when it
// leaves. Queries are packed behind a margin of zeros, so that the gradient of a key, a sum over the queries around it,
// is the same inner loop as the output of a query. With several bands, each computes the scores of all queries that
// attend its keys, and writes the gradients of its own rows only: no two threads write to one place.
#pragma once

#include "common.h"

class Backward {
 public:
  Backward(const Problem& problem, int64_t widest) : p(problem), channels(round_up(p.channels, 8)) {
    stride = row_stride(widest + LANES + K - 1);
    query_stride = row_stride(MARGIN + widest + LANES + K - 1 + LANES);
    for (Buffer* buffer : {&keys, &values, &key_gradients, &value_gradients}) {
      *buffer = zeros(SLOTS * channels * stride);
    }
    for (Buffer* buffer : {&queries, &gradients}) *buffer = zeros(ROWS * channels * query_stride);
    for (Buffer* buffer : {&probabilities, &score_gradients}) *buffer = zeros(ROWS * KEYS * query_stride);
    logsumexp = zeros(ROWS * query_stride);
    for (Buffer* buffer : {&bias, &bias_gradient}) *buffer = zeros((widest / LANES + 1) * TABLE * K * LANES);
    sums = zeros(ROWS * channels * LANES + 8);  // unpacked by eights
  }

  bool ready() const {
    return keys && values && key_gradients && value_gradients && queries && gradients && probabilities &&
           score_gradients && logsumexp && bias && bias_gradient && sums;
  }

  void run(const Item& item) {
    height = group_length(p.height, item.group_y, p.dilation);
    width = group_length(p.width, item.group_x0, p.dilation);
    for (Buffer* buffer : {&queries, &gradients}) std::memset(buffer->get(), 0, ROWS * channels * query_stride * 4);
    // Of lanes without a query: makes their probabilities vanish.
    std::fill_n(logsumexp.get(), ROWS * query_stride, 1e30f);
    const float* table = p.bias ? p.bias + item.head * TABLE * TABLE : nullptr;
    for_tiles(width, [&](auto lanes, int64_t x) {
      spread_bias<lanes>(bias.get() + x * TABLE * K, table, x, width);
      std::memset(bias_gradient.get() + x * TABLE * K, 0, TABLE * K * lanes * 4);
    });
    set_columns(query_columns, p.query, 0, width, width, p.dilation);
    set_columns(key_columns, p.key, -HALF, width + HALF, width, p.dilation);
    set_columns(value_columns, p.value, -HALF, width + HALF, width, p.dilation);
    // The gradients of all maps are contiguous, and alike.
    set_columns(result_columns, p.output_gradient, 0, width, width, p.dilation);
    for (int64_t group_x = item.group_x0; group_x < item.group_x1; ++group_x) run_group(item, group_x);
    if (p.bias_gradient) write_bias_gradient(p.bias_gradient + item.index * TABLE * TABLE);
  }

 private:
  static constexpr int SLOTS = K + ROWS - 1;
  static constexpr int MARGIN = (K - 1 + 15) / 16 * 16;

  float* slot(const Buffer& buffer, int64_t row) const { return buffer.get() + row % SLOTS * channels * stride; }

  Place row(const Map& map, const Item& item, int64_t group_x, int64_t y) const {
    return place(p, map, item.b, y * p.dilation + item.group_y, group_x, item.head);
  }

  // A row will be read soon; behind the last one comes the first one of the next group.
  void announce(const Map& map, const Item& item, int64_t group_x, int64_t y, const Columns& columns) const {
    const int64_t next = y >= height;
    if (group_x + next < item.group_x1) prefetch(row(map, item, group_x + next, y - next * height), columns, p.channels);
  }

  void announce_keys(const Item& item, int64_t group_x, int64_t y) const {
    announce(p.key, item, group_x, y, key_columns);
    announce(p.value, item, group_x, y, value_columns);
  }

  void run_group(const Item& item, int64_t group_x) {
    int64_t y = item.y0, end = item.y1;
    while (y > 0 && window_start(y - 1, height) + K > item.y0) --y;
    while (end < height && window_start(end, height) < item.y1) ++end;
    int64_t packed = window_start(y, height), finished = packed;
    for (; y < end; y += ROWS) {
      const int64_t rows = std::min<int64_t>(ROWS, end - y);
      for (; finished < window_start(y, height); ++finished) finish_keys(item, group_x, finished);
      for (const int64_t stop = window_start(y + rows - 1, height) + K; packed < stop; ++packed) {
        pack(slot(keys, packed), stride, row(p.key, item, group_x, packed), key_columns, p.channels, 1.0f);
        pack(slot(values, packed), stride, row(p.value, item, group_x, packed), value_columns, p.channels, 1.0f);
        if (packed + ROWS < stop) announce_keys(item, group_x, packed + ROWS);
        std::memset(slot(key_gradients, packed), 0, channels * stride * 4);
        std::memset(slot(value_gradients, packed), 0, channels * stride * 4);
      }
      for (int64_t n = 0; n < rows; ++n) pack_queries(item, group_x, y + n, n);
      for_tiles(width, [&](auto lanes, int64_t x) { run_tile<lanes>(item, group_x, y, rows, x); });
      for_tiles(width + K - 1, [&](auto lanes, int64_t x) {
        add_to_keys<lanes>(y, rows, x, key_gradients, score_gradients, queries);
      });
      // Now, as all that follows would push it out of the cache if it came earlier.
      for (int64_t n = 0; n < rows; ++n) {
        announce_keys(item, group_x, packed + n);
        announce(p.query, item, group_x, y + rows + n, query_columns);
        announce(p.output_gradient, item, group_x, y + rows + n, result_columns);
      }
      for_tiles(width + K - 1, [&](auto lanes, int64_t x) {
        add_to_keys<lanes>(y, rows, x, value_gradients, probabilities, gradients);
      });
    }
    for (; finished < packed; ++finished) finish_keys(item, group_x, finished);
  }

  void pack_queries(const Item& item, int64_t group_x, int64_t y, int64_t n) {
    const int64_t to = n * channels * query_stride + MARGIN;
    pack(queries.get() + to, query_stride, row(p.query, item, group_x, y), query_columns, p.channels,
         p.scale * LOG2_E);
    pack(gradients.get() + to, query_stride, row(p.output_gradient, item, group_x, y), result_columns, p.channels,
         1.0f);
    const int64_t position = (item.b * p.height + y * p.dilation + item.group_y) * p.width + group_x;
    for (int64_t x = 0; x < width; ++x) {
      logsumexp[n * query_stride + x] = p.logsumexp[(position + x * p.dilation) * p.heads + item.head];
    }
  }

  // Probabilities, gradients of scores and of queries of W columns.
  template <int W>
  void run_tile(const Item& item, int64_t group_x, int64_t y, int64_t rows, int64_t x) {
    const float *query[ROWS], *gradient[ROWS], *initial[ROWS];
    float *probability[ROWS], *score[ROWS], *sum[ROWS];
    for_key_rows(y, rows, height, [&](int64_t m, int64_t n0, int64_t n1) {
      for (int64_t n = n0; n < n1; ++n) {
        const int64_t from = n * channels * query_stride + MARGIN + x;
        const int64_t to = score_offset(n, m - window_start(y + n, height)) + MARGIN + x;
        query[n - n0] = queries.get() + from;
        gradient[n - n0] = gradients.get() + from;
        initial[n - n0] = bias.get() + x * TABLE * K + (m - y - n + K - 1) * K * W;
        probability[n - n0] = probabilities.get() + to;
        score[n - n0] = score_gradients.get() + to;
      }
      dispatch<ROWS>(n1 - n0, [&](auto n) {
        multiply_channels<W, n>(query, query_stride, slot(keys, m) + x, stride, p.channels, initial, probability,
                                query_stride);
        multiply_channels<W, n>(gradient, query_stride, slot(values, m) + x, stride, p.channels, nullptr, score,
                                query_stride);
      });
    });
    for (int64_t n = 0; n < rows; ++n) {
      const bool own = y + n >= item.y0 && y + n < item.y1;
      const int64_t bias_row = window_start(y + n, height) - y - n + K - 1;
      float* sums_of_bias = own && p.bias_gradient ? bias_gradient.get() + x * TABLE * K + bias_row * K * W : nullptr;
      differentiate_softmax<W>(n, x, sums_of_bias);
    }
    std::memset(sums.get(), 0, rows * channels * W * 4);
    for_key_rows(y, rows, height, [&](int64_t m, int64_t n0, int64_t n1) {
      for (int64_t n = n0; n < n1; ++n) {
        score[n - n0] = score_gradients.get() + score_offset(n, m - window_start(y + n, height)) + MARGIN + x;
        sum[n - n0] = sums.get() + n * channels * W;
      }
      dispatch<ROWS>(n1 - n0, [&](auto n) {
        multiply_places<W, n>(sum, W, score, query_stride, slot(keys, m) + x, stride, p.channels);
      });
    });
    for (int64_t n = std::max<int64_t>(0, item.y0 - y); n < std::min(rows, item.y1 - y); ++n) {
      unpack(row(p.query_gradient, item, group_x, y + n), result_columns.data() + x, std::min<int64_t>(W, width - x),
             sums.get() + n * channels * W, W, p.channels, nullptr, p.scale);
    }
  }

  // Scores become probabilities, and the gradients of these become gradients of the scores.
  template <int W>
  void differentiate_softmax(int64_t n, int64_t x, float* sums_of_bias) {
    const Float<W> shift = load<W>(logsumexp.get() + n * query_stride + x);
    float* probability = probabilities.get() + score_offset(n, 0) + MARGIN + x;
    float* score = score_gradients.get() + score_offset(n, 0) + MARGIN + x;
    Float<W> mean{};
    for (int64_t i = 0; i < KEYS; ++i) {
      const Float<W> e = exp2<W>(load<W>(probability + i * query_stride) - shift);
      store<W>(probability + i * query_stride, e);
      mean += e * load<W>(score + i * query_stride);
    }
    for (int64_t i = 0; i < KEYS; ++i) {
      const Float<W> difference = load<W>(score + i * query_stride) - mean;
      const Float<W> gradient = load<W>(probability + i * query_stride) * difference;
      store<W>(score + i * query_stride, gradient);
      if (sums_of_bias) store<W>(sums_of_bias + i * W, load<W>(sums_of_bias + i * W) + gradient);
    }
  }

  // Add to W columns (counted from the first packed one) of the keys that the rows of queries attend.
  template <int W>
  void add_to_keys(int64_t y, int64_t rows, int64_t x, const Buffer& results, const Buffer& weights,
                   const Buffer& sources) {
    const float* weight[ROWS];
    float* sum[ROWS];
    // Column x has the keys in place j of the queries in columns x - j, which stand MARGIN further.
    const int64_t column = MARGIN - (K - 1) + x;
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t first = window_start(y + n, height);
      for (int64_t t = 0; t < K; t += ROWS) {
        const int64_t count = std::min<int64_t>(ROWS, K - t);
        for (int64_t i = 0; i < count; ++i) {
          sum[i] = slot(results, first + t + i) + x;
          weight[i] = weights.get() + score_offset(n, t + i) + (K - 1) * query_stride + column;
        }
        dispatch<ROWS>(count, [&](auto count) {
          multiply_places<W, count>(sum, stride, weight, 1 - query_stride,
                                    sources.get() + n * channels * query_stride + column, query_stride, p.channels);
        });
      }
    }
  }

  // Write the gradients of a row of keys that no further query attends.
  void finish_keys(const Item& item, int64_t group_x, int64_t y) {
    if (y < item.y0 || y >= item.y1) return;
    auto finish = [&](const Buffer& buffer, const Map& map, float scale) {
      float* sums = slot(buffer, y);
      for (int64_t c = 0; c < p.channels; ++c) {
        float* channel = sums + c * stride + HALF;
        for (int64_t x = -HALF; x < 0; ++x) channel[x + K] += channel[x];
        for (int64_t x = width; x < width + HALF; ++x) channel[x - K] += channel[x];
      }
      unpack(row(map, item, group_x, y), result_columns.data(), width, sums + HALF, stride, p.channels, nullptr,
             scale);
    };
    finish(key_gradients, p.key_gradient, LN_2);  // queries are packed times log2(e)
    finish(value_gradients, p.value_gradient, 1.0f);
  }

  void write_bias_gradient(float* to) {
    std::vector<double> total(TABLE * TABLE);
    for_tiles(width, [&](auto lanes, int64_t x) {
      const float* from = bias_gradient.get() + x * TABLE * K;
      for (int64_t i = 0; i < TABLE * K; ++i) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          total[i / K * TABLE + bias_column(x + lane, i % K, width)] += from[i * lanes + lane];
        }
      }
    });
    std::copy(total.begin(), total.end(), to);
  }

  int64_t score_offset(int64_t n, int64_t t) const { return (n * K + t) * K * query_stride; }

  const Problem& p;
  const int64_t channels;  // a multiple of 8
  int64_t stride, query_stride, height, width;
  Buffer keys, values, key_gradients, value_gradients;  // [SLOTS, channels, stride], row m in slot m mod SLOTS
  Buffer queries, gradients;                            // [ROWS, channels, query_stride]
  Buffer probabilities, score_gradients;                // [ROWS, K, K, query_stride]
  Buffer logsumexp;                                     // [ROWS, query_stride]
  Buffer bias, bias_gradient;                           // for each tile [TABLE, K, W]
  Buffer sums;                                          // [ROWS, channels, W]
  Columns query_columns, key_columns, value_columns, result_columns;
};
