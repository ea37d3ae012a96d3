// Copies rows of the maps into the layout of the inner loops, and back.
#pragma once

#include "common.h"

// Copies cells of a row, times `scale`, to cells 0, 1, ... of `to`, channels first. Cells are processed in groups of
// eight, for which the last one is repeated. Missing channels become zero.
inline void pack(float* to, int64_t stride, Place row, const Cells& cells, int64_t channels, float scale) {
  const int64_t count = cells.size();
  with_type(row, [&](const auto* from) {
    Float8 block[8];
    for (int64_t x = 0; x < count; x += 8) {
      for (int64_t c = 0; c < channels; c += 8) {
        for (int i = 0; i < 8; ++i) {
          block[i] = read8(from + cells[std::min(x + i, count - 1)] + c, channels - c) * scale;
        }
        transpose8(block);
        for (int i = 0; i < 8; ++i) store<8>(to + (c + i) * stride + x, block[i]);
      }
    }
  });
}

// Does the reverse for `count` cells, times one factor per cell (`factors`, or null) and `scale`.
inline void unpack(Place row, const int64_t* cells, int64_t count, const float* from, int64_t stride,
                   int64_t channels, const float* factors, float scale) {
  with_type(row, [&](auto* to) {
    Float8 block[8];
    for (int64_t x = 0; x < count; x += 8) {
      const Float8 factor = factors ? load<8>(factors + x) * scale : Float8{} + scale;
      for (int64_t c = 0; c < channels; c += 8) {
        for (int i = 0; i < 8; ++i) block[i] = load<8>(from + (c + i) * stride + x) * factor;
        transpose8(block);
        for (int i = 0; i < 8 && x + i < count; ++i) write8(to + cells[x + i] + c, block[i], channels - c);
      }
    }
  });
}

// Copies cells of a row, times `scale`, to [cells, to_channels].
inline void copy(float* to, int64_t to_channels, Place row, const Cells& cells, int64_t channels, float scale) {
  with_type(row, [&](const auto* from) {
    for (const int64_t cell : cells) {
      for (int64_t c = 0; c < channels; c += 8) store<8>(to + c, read8(from + cell + c, channels - c) * scale);
      to += to_channels;
    }
  });
}

// Writes cells [cells, from_channels] to a row.
inline void copy_back(Place row, const Cells& cells, const float* from, int64_t from_channels, int64_t channels) {
  with_type(row, [&](auto* to) {
    for (const int64_t cell : cells) {
      for (int64_t c = 0; c < channels; c += 8) write8(to + cell + c, load<8>(from + c), channels - c);
      from += from_channels;
    }
  });
}
