// Base class of the forward and the backward pass of one thread: it locates rows of the maps and prefetches them.
#pragma once

#include "packing.h"
#include "products.h"

// Prefetches memory that is needed soon, a few cache lines at a time between computations. Columns lie so far apart
// that processors do not prefetch them by themselves, and many requests at once would stall the processor.
class Prefetcher {
 public:
  // Adds cells `first` .. `end` - 1 of a row.
  void add(Place row, const Cells& cells, int64_t first, int64_t end, int64_t channels, bool to_write) {
    rows.push_back({row, cells.data() + first, cells.data() + end, channels, to_write});
    left += end - first;
  }

  // Distributes the requests over this many calls of `some`.
  void spread(int64_t calls) { rate = (left + calls - 1) / calls; }

  void some() {
    for (int64_t i = 0; i < rate && current < rows.size(); ++i) {
      Row& row = rows[current];
      const int64_t size = row.place.bfloat16 ? 2 : 4;
      const char* data = row.place.data + *row.next * size;
      for (int64_t byte = 0; byte < row.channels * size; byte += 64) {
        if (row.to_write) {
          __builtin_prefetch(data + byte, 1, 2);
        } else {
          __builtin_prefetch(data + byte, 0, 2);
        }
      }
      if (++row.next == row.end) ++current;
    }
  }

  void clear() {
    rows.clear();
    current = 0;
    left = 0;
  }

 private:
  struct Row {
    Place place;
    const int64_t *next, *end;
    int64_t channels;
    bool to_write;
  };
  std::vector<Row> rows;
  size_t current = 0;
  int64_t left = 0, rate = 0;
};

struct Range {
  int64_t first, end;
};

// Rows and cells of a work item.
struct Layout {
  const Item* item = nullptr;
  int64_t height, width;
  Range queries, keys;              // rows
  Cells query, key, value, result;  // `result` is for the output and for all gradients
};

template <int G>
class Worker {
 protected:
  static constexpr int SLOTS = K + ROWS - 1;

  Worker(const Problem& problem, int64_t widest)
      : p(problem), channels(round_up(p.channels, 8)), stride(row_stride((widest + K - 1) * G + LANES)) {}

  // Sets the layout of an item for the given rows of queries.
  void set(Layout& layout, const Item& item, const Map& result, Range queries) const {
    layout.item = &item;
    layout.height = group_length(p.height, item.group_y, p.dilation);
    layout.width = group_length(p.width, item.group_x0, p.dilation);
    layout.queries = queries;
    layout.keys = {window_start(queries.first, layout.height), window_start(queries.end - 1, layout.height) + K};
    set_cells<G>(layout.query, p.query, item.x0, item.x1, layout.width, p.dilation);
    set_cells<G>(layout.key, p.key, item.x0 - HALF, item.x1 + HALF, layout.width, p.dilation);
    set_cells<G>(layout.value, p.value, item.x0 - HALF, item.x1 + HALF, layout.width, p.dilation);
    set_cells<G>(layout.result, result, item.x0, item.x1, layout.width, p.dilation);
  }

  Place row(const Map& map, const Layout& layout, int64_t group_x, int64_t y) const {
    const Item& item = *layout.item;
    return place(p, map, item.b, y * p.dilation + item.group_y, group_x, item.head);
  }

  // Requests a row of the current item that is used soon. Rows beyond the last one are the first rows of the next
  // group, or of the following item.
  void ask(const Map& map, Cells Layout::*cells, Range Layout::*range, int64_t group_x, int64_t y, bool to_write) {
    const Layout* layout = &current;
    const int64_t beyond = y - (current.*range).end;
    if (beyond >= 0) {
      if (++group_x == current.item->group_x1) {
        if (!following.item) return;
        layout = &following;
        group_x = following.item->group_x0;
      }
      y = (layout->*range).first + beyond;
      if (y >= (layout->*range).end) return;
    }
    // Cells of keys beyond a border repeat others.
    const bool with_neighbors = range == &Layout::keys && !to_write;
    const Item& item = *layout->item;
    const int64_t before = with_neighbors ? std::max<int64_t>(0, HALF - item.x0) * G : 0;
    const int64_t after = with_neighbors ? std::max<int64_t>(0, item.x1 + HALF - layout->width) * G : 0;
    const Cells& all = layout->*cells;
    prefetcher.add(row(map, *layout, group_x, y), all, before, all.size() - after, p.channels, to_write);
  }

  float* slot(const Buffer& buffer, int64_t row) const { return buffer.get() + row % SLOTS * channels * stride; }

  const Problem& p;
  const int64_t channels, stride;  // multiples of 8
  Layout current, following;
  Prefetcher prefetcher;
};
