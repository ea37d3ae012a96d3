// The forward pass of one work item.
#pragma once

#include "worker.h"

template <int G>
class Forward : Worker<G> {
 public:
  Forward(const Problem& problem, int64_t widest) : Worker<G>(problem, widest) {
    keys = zeros(SLOTS * channels * stride);
    values = zeros(SLOTS * channels * stride);
    queries = zeros(ROWS * channels * stride);
    scores = zeros(ROWS * KEYS * LANES);
    sums = zeros(ROWS * channels * LANES + 8);  // `unpack` reads groups of eight
    bias = zeros((widest * G / LANES + 1) * TABLE * K * LANES);
  }

  bool ready() const { return keys && values && queries && scores && sums && bias; }

  // `next`, or null, is the item that the worker will probably process next.
  void run(const Item& item, const Item* next) {
    set(current, item, p.output, {item.y0, item.y1});
    following.item = nullptr;
    if (next) set(following, *next, p.output, {next->y0, next->y1});
    const float* tables = p.bias ? p.bias + item.head * TABLE * TABLE : nullptr;
    for_tiles((item.x1 - item.x0) * G, [&](auto lanes, int64_t x) {
      spread_bias<lanes, G>(bias.get() + x * TABLE * K, tables, item.x0 + x / G, current.width);
    });
    for (int64_t group_x = item.group_x0; group_x < item.group_x1; ++group_x) run_group(item, group_x);
  }

 private:
  using Base = Worker<G>;
  using Base::SLOTS, Base::p, Base::channels, Base::stride, Base::current, Base::following, Base::prefetcher;
  using Base::set, Base::row, Base::slot, Base::ask;

  void run_group(const Item& item, int64_t group_x) {
    const int64_t cells = (item.x1 - item.x0) * G;
    int64_t packed = current.keys.first, asked = packed + K + ROWS - 1;
    for (int64_t y = item.y0; y < item.y1; y += ROWS) {
      const int64_t rows = std::min<int64_t>(ROWS, item.y1 - y);
      for (const int64_t end = window_start(y + rows - 1, current.height) + K; packed < end; ++packed) {
        pack(slot(keys, packed), stride, row(p.key, current, group_x, packed), current.key, p.channels, 1.0f);
        pack(slot(values, packed), stride, row(p.value, current, group_x, packed), current.value, p.channels, 1.0f);
      }
      prefetcher.clear();
      for (int64_t n = 0; n < ROWS; ++n) {
        if (n < rows) {
          pack(queries.get() + n * channels * stride, stride, row(p.query, current, group_x, y + n), current.query,
               p.channels, p.scale * LOG2_E);
        }
        ask(p.key, &Layout::key, &Layout::keys, group_x, asked, false);
        ask(p.value, &Layout::value, &Layout::keys, group_x, asked++, false);
        ask(p.query, &Layout::query, &Layout::queries, group_x, y + ROWS + n, false);
        ask(p.output, &Layout::result, &Layout::queries, group_x, y + ROWS + n, true);
      }
      prefetcher.spread(round_up(cells, LANES) / LANES * 2 * K * ROWS / BLOCK);
      for_tiles(cells, [&](auto lanes, int64_t x) { run_tile<lanes>(item, group_x, y, rows, x); });
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
        score[n - n0] = scores.get() + (n * KEYS + (m - window_start(y + n, current.height)) * K) * W;
      }
    };
    Float<W> most[ROWS];
    for (Float<W>& x : most) x = Float<W>{} - INFINITY;
    for_key_rows(y, rows, current.height, [&](int64_t m, int64_t n0, int64_t n1) {
      set_scores(m, n0, n1);
      for (int64_t n = n0; n < n1; ++n) {
        query[n - n0] = queries.get() + n * channels * stride + x;
        initial[n - n0] = bias.get() + x * TABLE * K + (m - y - n + K - 1) * K * W;
      }
      for_blocks(n1 - n0, [&](auto n, int64_t from) {
        prefetcher.some();
        multiply_channels<W, n, G>(query + from, stride, slot(keys, m) + x, stride, p.channels, initial + from,
                                   score + from, W, most + n0 + from);
      });
    });
    float factors[ROWS][std::max(W, 8)] = {};  // `unpack` reads groups of eight
    for (int64_t n = 0; n < rows; ++n) {
      softmax<W>(item, group_x, y + n, x, scores.get() + n * KEYS * W, most[n], factors[n]);
    }
    std::memset(sums.get(), 0, rows * channels * W * 4);
    for_key_rows(y, rows, current.height, [&](int64_t m, int64_t n0, int64_t n1) {
      set_scores(m, n0, n1);
      for (int64_t n = n0; n < n1; ++n) sum[n - n0] = sums.get() + n * channels * W;
      for_blocks(n1 - n0, [&](auto n, int64_t from) {
        prefetcher.some();
        multiply_places<W, n, G>(sum + from, W, score + from, W, slot(values, m) + x, stride, p.channels);
      });
    });
    for (int64_t n = 0; n < rows; ++n) {
      unpack(row(p.output, current, group_x, y + n), current.result.data() + x,
             std::min<int64_t>(W, current.result.size() - x), sums.get() + n * channels * W, W, p.channels, factors[n],
             1.0f);
    }
  }

  // Replaces scores, times log2(e), by exponentials, and returns the factor that turns these into probabilities.
  template <int W>
  void softmax(const Item& item, int64_t group_x, int64_t y, int64_t x, float* score, Float<W> most, float* factor) {
    Float<W> total{};
    for (int64_t i = 0; i < KEYS; ++i) {
      const Float<W> e = exp2<W>(load<W>(score + i * W) - most);
      store<W>(score + i * W, e);
      total += e;
    }
    store<W>(factor, 1.0f / total);
    if (!p.logsumexp) return;
    const int64_t row = item.b * p.height + y * p.dilation + item.group_y;
    for (int64_t i = 0; i < std::min<int64_t>(W, current.result.size() - x); ++i) {
      const int64_t column = (item.x0 + (x + i) / G) * p.dilation + group_x;
      p.logsumexp[(row * p.width + column) * p.heads + item.head + (x + i) % G] = most[i] + std::log2(total[i]);
    }
  }

  Buffer keys, values;  // [SLOTS, channels, stride]: the rows packed last, row m in slot m mod SLOTS
  Buffer queries;       // [ROWS, channels, stride]
  Buffer scores;        // [ROWS, K, K, W]
  Buffer sums;          // [ROWS, channels, W]
  Buffer bias;          // for each tile [TABLE, K, W]
};
