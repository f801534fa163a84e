// The inner loop of SDDMM and of sparse logits: dot products of one query with rows gathered from shared
// memory.
#pragma once
#include "device.cuh"

namespace pft::cuda {

// Rows are stored in pieces of kWidest units of 16 bytes, and of 4, 2 and 1 for what is left: an array [rows,
// width] for each. `width` neighbouring lanes read a row's piece, so that a piece of 128 bytes meets every
// bank once, whichever rows are read; a lane by itself would meet others in the banks at random. 16-bit rows
// are short, and eight units of them at a time would cost the registers of a second block.
template <class T>
constexpr int kWidest = sizeof(T) == 4 ? 8 : 4;

// Copies the rows [0, rows) of a matrix of `cols` columns into the pieces, which have room for `capacity`
// rows.
template <class T>
__device__ void stage_pieces(View<T> to, int capacity, View<const T> from, int64_t stride_row, int rows,
                             int cols, bool aligned) {
  constexpr int per = kPerUnit<T>;
  const int units = units_of<T>(cols);
  int done = 0;
  const auto piece = [&](int width) {
    const int col = done * per, left = cols - col;
    stage_tile<T>(to + done * per * capacity, width * per, from, stride_row, rows, rows, col,
                  left < width * per ? left : width * per, width, aligned);
    done += width;
  };
  while (units - done >= kWidest<T>) piece(kWidest<T>);
  if (kWidest<T> > 4 && units & 4) piece(4);
  if (units & 2) piece(2);
  if (units & 1) piece(1);
}

// Rows that the entries [at, at + kWidth) of the index name, counted from row `first`; 0 for entries at or
// beyond `count` and for rows that are not here.
template <int kWidth>
__device__ __forceinline__ void load_rows(int (&row)[kWidth], const IndexView& index, int64_t at, int count,
                                          int first, int here) {
  bool loaded = false;
  if constexpr (kWidth > 1) {
    loaded = index.aligned && index.narrow && count >= kWidth && at % kWidth == 0;
    if (loaded) {
      uint32_t words[kWidth / 2];
      if constexpr (kWidth == 8) {
        const uint4 raw = load_as<uint4>(index.narrow + at);
        words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
      } else if constexpr (kWidth == 4) {
        const uint2 raw = load_as<uint2>(index.narrow + at);
        words[0] = raw.x, words[1] = raw.y;
      } else {
        words[0] = load_as<uint32_t>(index.narrow + at);
      }
#pragma unroll
      for (int s = 0; s < kWidth; ++s) row[s] = int(words[s / 2] >> s % 2 * 16 & 0xffffu);  // never negative
    }
  }
  if (!loaded) {
#pragma unroll
    for (int s = 0; s < kWidth; ++s) row[s] = s < count ? index[at + s] : first;
  }
#pragma unroll
  for (int s = 0; s < kWidth; ++s) row[s] = unsigned(row[s] - first) < unsigned(here) ? row[s] - first : 0;
}

// This lane's entry of 32: the part of its dot product that lies in one piece. `query` and `rows` begin at
// the piece. A group of kWidth lanes reads the rows of its kWidth entries one after another, and a
// transposing reduction gives each lane the sum of its own.
template <int kWidth, class T>
__device__ __forceinline__ float piece_dot(View<const float> query, View<const T> rows,
                                           const IndexView& index, int64_t at, int count, int first,
                                           int here) {
  constexpr int per = kPerUnit<T>;
  const int lane = int(threadIdx.x) % 32, unit = lane % kWidth, group = lane - unit;
  float part[kWidth] = {};
  if (group < count) {
    int row[kWidth];
    load_rows<kWidth>(row, index, at + group, count - group, first, here);
    float q[per];
    load_query_unit<T>(q, query + unit * per);
#pragma unroll
    for (int s = 0; s < kWidth; ++s) dot_unit<T>(part[s], q, rows + (row[s] * kWidth + unit) * per);
  }
#pragma unroll
  for (int half = kWidth / 2; half; half /= 2) {
    const bool upper = unit & half;
#pragma unroll
    for (int s = 0; s < half; ++s) {
      const float give = upper ? part[s] : part[s + half], keep = upper ? part[s + half] : part[s];
      part[s] = keep + __shfl_xor_sync(kFullWarp, give, half);
    }
  }
  return part[0];
}

// query . row for the entries [at, at + 32) of the index, that of entry at + lane in each lane; nothing of
// meaning where the entry is at or beyond `count`, or its row not among the `here` ones from `first` on.
// `query` holds floats, padded with zeros to whole units.
template <class T>
__device__ __forceinline__ float gather_dot(View<const float> query, View<const T> rows, int capacity,
                                            int units, const IndexView& index, int64_t at, int count,
                                            int first, int here) {
  constexpr int per = kPerUnit<T>;
  int done = 0;
  float sum = 0.f;
  for (; units - done >= kWidest<T>; done += kWidest<T>) {
    sum += piece_dot<kWidest<T>, T>(query + done * per, rows + done * per * capacity, index, at, count, first,
                                    here);
  }
  if (kWidest<T> > 4 && units & 4) {
    sum += piece_dot<4, T>(query + done * per, rows + done * per * capacity, index, at, count, first, here);
    done += 4;
  }
  if (units & 2) {
    sum += piece_dot<2, T>(query + done * per, rows + done * per * capacity, index, at, count, first, here);
    done += 2;
  }
  if (units & 1)
    sum += piece_dot<1, T>(query + done * per, rows + done * per * capacity, index, at, count, first, here);
  return sum;
}

}  // namespace pft::cuda
