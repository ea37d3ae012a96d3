// The forward pass of one piece of work.
#pragma once

#include "common.h"

class Forward {
 public:
  Forward(const Problem& problem, int64_t widest) : p(problem), channels(round_up(p.channels, 8)) {
    stride = row_stride(widest + LANES + K - 1);
    keys = zeros(SLOTS * channels * stride);
    values = zeros(SLOTS * channels * stride);
    queries = zeros(ROWS * channels * stride);
    scores = zeros(ROWS * KEYS * LANES);
    sums = zeros(ROWS * channels * LANES + 8);  // unpacked by eights
    bias = zeros((widest / LANES + 1) * TABLE * K * LANES);
  }

  bool ready() const { return keys && values && queries && scores && sums && bias; }

  void run(const Item& item) {
    height = group_length(p.height, item.group_y, p.dilation);
    width = group_length(p.width, item.group_x0, p.dilation);
    const int64_t count = item.x1 - item.x0;
    const float* table = p.bias ? p.bias + item.head * TABLE * TABLE : nullptr;
    for_tiles(count, [&](auto lanes, int64_t x) {
      spread_bias<lanes>(bias.get() + x * TABLE * K, table, item.x0 + x, width);
    });
    set_columns(query_columns, p.query, item.x0, item.x1, width, p.dilation);
    set_columns(key_columns, p.key, item.x0 - HALF, item.x1 + HALF, width, p.dilation);
    set_columns(value_columns, p.value, item.x0 - HALF, item.x1 + HALF, width, p.dilation);
    set_columns(output_columns, p.output, item.x0, item.x1, width, p.dilation);
    for (int64_t group_x = item.group_x0; group_x < item.group_x1; ++group_x) run_group(item, group_x);
  }

 private:
  static constexpr int SLOTS = K + ROWS - 1;

  float* slot(const Buffer& buffer, int64_t row) const { return buffer.get() + row % SLOTS * channels * stride; }

  void run_group(const Item& item, int64_t group_x) {
    auto row = [&](const Map& map, int64_t y) {
      return place(p, map, item.b, y * p.dilation + item.group_y, group_x, item.head);
    };
    // Behind the last row comes the first one of the next group.
    auto announce = [&](const Map& map, int64_t y, const Columns& columns) {
      const int64_t next = y >= height;
      if (group_x + next < item.group_x1) {
        prefetch(place(p, map, item.b, (y - next * height) * p.dilation + item.group_y, group_x + next, item.head),
                 columns, p.channels);
      }
    };
    int64_t packed = window_start(item.y0, height);
    for (int64_t y = item.y0; y < item.y1; y += ROWS) {
      const int64_t rows = std::min<int64_t>(ROWS, item.y1 - y);
      for (const int64_t end = window_start(y + rows - 1, height) + K; packed < end; ++packed) {
        pack(slot(keys, packed), stride, row(p.key, packed), key_columns, p.channels, 1.0f);
        pack(slot(values, packed), stride, row(p.value, packed), value_columns, p.channels, 1.0f);
        announce(p.key, packed + ROWS, key_columns);
        announce(p.value, packed + ROWS, value_columns);
      }
      for (int64_t n = 0; n < rows; ++n) {
        pack(queries.get() + n * channels * stride, stride, row(p.query, y + n), query_columns, p.channels,
             p.scale * LOG2_E);
        announce(p.query, y + n + ROWS, query_columns);
      }
      for_tiles(item.x1 - item.x0, [&](auto lanes, int64_t x) { run_tile<lanes>(item, group_x, y, rows, x); });
    }
  }

  template <int W>
  void run_tile(const Item& item, int64_t group_x, int64_t y, int64_t rows, int64_t x) {
    const float* query[ROWS];
    const float* initial[ROWS];
    float* score[ROWS];
    float* sum[ROWS];
    auto set_scores = [&](int64_t m, int64_t n0, int64_t n1) {
      for (int64_t n = n0; n < n1; ++n) {
        score[n - n0] = scores.get() + (n * KEYS + (m - window_start(y + n, height)) * K) * W;
      }
    };
    for_key_rows(y, rows, height, [&](int64_t m, int64_t n0, int64_t n1) {
      set_scores(m, n0, n1);
      for (int64_t n = n0; n < n1; ++n) {
        query[n - n0] = queries.get() + n * channels * stride + x;
        initial[n - n0] = bias.get() + x * TABLE * K + (m - y - n + K - 1) * K * W;
      }
      dispatch<ROWS>(n1 - n0, [&](auto n) {
        multiply_channels<W, n>(query, stride, slot(keys, m) + x, stride, p.channels, initial, score, W);
      });
    });
    float factors[ROWS][std::max(W, 8)] = {};  // unpacked by eights
    for (int64_t n = 0; n < rows; ++n) softmax<W>(item, group_x, y + n, x, scores.get() + n * KEYS * W, factors[n]);
    std::memset(sums.get(), 0, rows * channels * W * 4);
    for_key_rows(y, rows, height, [&](int64_t m, int64_t n0, int64_t n1) {
      set_scores(m, n0, n1);
      for (int64_t n = n0; n < n1; ++n) sum[n - n0] = sums.get() + n * channels * W;
      dispatch<ROWS>(n1 - n0, [&](auto n) {
        multiply_places<W, n>(sum, W, score, W, slot(values, m) + x, stride, p.channels);
      });
    });
    for (int64_t n = 0; n < rows; ++n) {
      unpack(place(p, p.output, item.b, (y + n) * p.dilation + item.group_y, group_x, item.head),
             output_columns.data() + x, std::min<int64_t>(W, item.x1 - item.x0 - x), sums.get() + n * channels * W, W, p.channels, factors[n], 1.0f);
    }
  }

  // Turn scores, times log2(e), into exponentials, and return the factor that makes them probabilities.
  template <int W>
  void softmax(const Item& item, int64_t group_x, int64_t y, int64_t x, float* score, float* factor) {
    Float<W> most = load<W>(score), other = most;
    for (int64_t i = 0; i < KEYS - 1; i += 2) {
      most = larger<W>(most, load<W>(score + i * W));
      other = larger<W>(other, load<W>(score + (i + 1) * W));
    }
    most = larger<W>(larger<W>(most, other), load<W>(score + (KEYS - 1) * W));
    Float<W> total{};
    for (int64_t i = 0; i < KEYS; ++i) {
      const Float<W> e = exp2<W>(load<W>(score + i * W) - most);
      store<W>(score + i * W, e);
      total += e;
    }
    store<W>(factor, 1.0f / total);
    if (!p.logsumexp) return;
    const int64_t row = item.b * p.height + y * p.dilation + item.group_y;
    for (int64_t i = 0; i < std::min<int64_t>(W, item.x1 - item.x0 - x); ++i) {
      const int64_t column = (item.x0 + x + i) * p.dilation + group_x;
      p.logsumexp[(row * p.width + column) * p.heads + item.head] = most[i] + std::log2(total[i]);
    }
  }

  const Problem& p;
  const int64_t channels;  // a multiple of 8
  int64_t stride, height, width;
  Buffer keys, values;  // [SLOTS, channels, stride]: the last rows packed, row m in slot m mod SLOTS
  Buffer queries;       // [ROWS, channels, stride]
  Buffer scores;        // [ROWS, K, K, W]
  Buffer sums;          // [ROWS, channels, W]
  Buffer bias;          // for each tile [TABLE, K, W]
  Columns query_columns, key_columns, value_columns, output_columns;
};
