// Neighborhood attention on a CPU for one kernel size: forward and backward pass, computed by rows of queries.
//
// Formulas: Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2209.15001, section 3.1; see
// neighborhood_attention_2d in Python. The backward pass recomputes the probabilities from the sums of exponentials
// that the forward pass kept.

#include "backward.h"
#include "forward.h"

namespace {

// Calls `function` for the runs of groups of an axis that have equal length: 0 .. size % dilation - 1, and the rest.
template <class Function>
void for_runs(int64_t size, int64_t dilation, Function&& function) {
  const int64_t longer = size % dilation;
  if (longer) function(0, longer);
  function(longer, dilation);
}

// Number of cells of the vectors that hold a row of `cells` cells.
int64_t occupied(int64_t cells) { return round_up(cells, LANES > 8 ? LANES / 2 : LANES); }

// Returns the number of heads to interleave that leaves the fewest lanes idle, provided that a row has at most `most`
// cells and all threads have work.
int64_t choose_heads(const Problem& p, int64_t most) {
  int64_t best = 1, least = INT64_MAX;
  for (const int64_t heads : {1, 2, 4}) {
    const bool fits = group_length(p.width, 0, p.dilation) * heads <= most;
    const bool enough = p.heads / heads * p.batch * p.dilation >= 4 * p.threads;
    if (p.heads % heads || (heads > 1 && !(fits && enough))) continue;
    int64_t lanes = 0;
    for_runs(p.width, p.dilation, [&](int64_t x0, int64_t x1) {
      lanes += (x1 - x0) * occupied(group_length(p.width, x0, p.dilation) * heads) * (4 / heads);
    });
    // For equal numbers of lanes the larger number of heads, because neighbouring heads are neighbours in memory.
    if (lanes <= least) best = heads, least = lanes;
  }
  return best;
}

// Divides the problem into items of at most `strip` columns, with rows in `bands` bands.
std::vector<Item> make_items(const Problem& p, int64_t heads, int64_t strip, int64_t bands) {
  std::vector<Item> items;
  int64_t part = 0;
  auto add = [&](int64_t head, int64_t b, int64_t group_x0, int64_t group_x1, int64_t group_y) {
    const int64_t width = group_length(p.width, group_x0, p.dilation);
    const int64_t height = group_length(p.height, group_y, p.dilation);
    const int64_t strips = (width + strip - 1) / strip;
    const int64_t columns = round_up((width + strips - 1) / strips * heads, LANES) / heads;
    const int64_t rows = round_up((height + bands - 1) / bands, ROWS);
    for (int64_t x = 0; x < width; x += columns) {
      for (int64_t y = 0; y < height; y += rows) {
        items.push_back({head, b, group_y, group_x0, group_x1, x, std::min(x + columns, width), y,
                         std::min(y + rows, height), part++, 0});
      }
    }
  };
  for (int64_t head = 0; head < p.heads; head += heads) {
    part = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t group_y = 0; group_y < p.dilation; ++group_y) {
        for_runs(p.width, p.dilation, [&](int64_t x0, int64_t x1) { add(head, b, x0, x1, group_y); });
      }
    }
  }
  for (Item& item : items) item.parts = part;
  return items;
}

// Makes enough items for all threads, but with at least `fewest` rows per band, because the ends of bands are computed
// twice.
std::vector<Item> share_out(const Problem& p, int64_t heads, int64_t strip, int64_t fewest) {
  std::vector<Item> items = make_items(p, heads, strip, 1);
  const int64_t count = std::max<int64_t>(1, items.size()), bands = (4 * p.threads + count - 1) / count;
  const int64_t most = std::max<int64_t>(1, p.height / p.dilation / fewest);
  return p.threads == 1 || bands == 1 ? items : make_items(p, heads, strip, std::min(bands, most));
}

template <class Worker>
int run(const Problem& p, const std::vector<Item>& items) {
  int64_t widest = 0;
  for (const Item& item : items) widest = std::max(widest, item.x1 - item.x0);
  bool failed = false;
  const int64_t count = items.size();
#pragma omp parallel num_threads(p.threads)
  {
    Worker worker(p, widest);
    if (!worker.ready()) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < count; ++i) worker.run(items[i], i + p.threads < count ? &items[i + p.threads] : nullptr);
    }
  }
  return failed;
}

template <template <int> class Worker>
int run(const Problem& p, int64_t heads, const std::vector<Item>& items) {
  return heads == 1 ? run<Worker<1>>(p, items) : heads == 2 ? run<Worker<2>>(p, items) : run<Worker<4>>(p, items);
}

// Packed rows of this many cells stay in the second-level cache; the backward pass packs more rows.
constexpr int64_t FORWARD_CELLS = 96, BACKWARD_CELLS = 60;

int64_t forward_heads(const Problem& p) { return choose_heads(p, FORWARD_CELLS); }
int64_t backward_heads(const Problem& p) { return choose_heads(p, BACKWARD_CELLS); }
std::vector<Item> forward_items(const Problem& p) {
  return share_out(p, forward_heads(p), FORWARD_CELLS / forward_heads(p), 2 * K);
}
std::vector<Item> backward_items(const Problem& p) { return share_out(p, backward_heads(p), p.width, 4 * K); }

}  // namespace

// Both passes return 0, or 1 if there is not enough memory.
extern "C" {

int forward(const Problem* p) { return run<Forward>(*p, forward_heads(*p), forward_items(*p)); }

// Number of tables of `bias_gradient` per head, whose sum is the gradient.
int64_t backward_parts(const Problem* p) {
  const std::vector<Item> items = backward_items(*p);
  return items.empty() ? 0 : items[0].parts;
}

// The gradients of all maps are contiguous.
int backward(const Problem* p) { return run<Backward>(*p, backward_heads(*p), backward_items(*p)); }
}
