// Codes of text: equal texts get equal codes. See jaxglmm/ops/codes.py.
#include "host.h"

namespace jaxglmm {
namespace {

constexpr int64_t kChunk = 1 << 16;  // rows that a thread takes at once
constexpr int64_t kPart = 1 << 13;   // rows of a part, about: its table stays in cache
constexpr int64_t kParts = 1 << 12;  // at most

struct Texts {
  const int64_t* offset;  // (rows + 1,)
  const char* bytes;
  const uint8_t* valid;  // bits, from the `first`-th on; null where nothing is missing
  int64_t first;

  bool missing(int64_t i) const { return valid && !(valid[(first + i) / 8] >> (first + i) % 8 & 1); }
  int64_t size(int64_t i) const { return offset[i + 1] - offset[i]; }
  const char* at(int64_t i) const { return bytes + offset[i]; }
  bool equal(int64_t i, int64_t k) const { return size(i) == size(k) && !std::memcmp(at(i), at(k), size(i)); }

  uint64_t hash(int64_t i) const {
    const char* text = at(i);
    int64_t left = size(i);
    uint64_t h = mixed(static_cast<uint64_t>(left) + 0x9e3779b97f4a7c15);
    for (; left >= 8; left -= 8, text += 8) h = mixed(h ^ value<uint64_t>(text));
    uint64_t tail = 0;
    std::memcpy(&tail, text, left);
    return mixed(h ^ tail);
  }

  // The last step of MurmurHash3 (Appleby, public domain): every bit of the input moves every bit of the
  // output.
  static uint64_t mixed(uint64_t h) {
    h = (h ^ h >> 33) * 0xff51afd7ed558ccd;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53;
    return h ^ h >> 33;
  }
};

struct Entry {
  uint64_t hash;
  int32_t row;
};

// Codes of the rows of one part, from 0 on in the order of their first rows, which are written over the
// entries.
int64_t codes_of_part(const Texts& text, Entry* entry, int64_t rows, int32_t* codes) {
  int64_t size = 2;
  while (size < 2 * rows) size *= 2;
  std::vector<int32_t> table(size, -1);
  int64_t count = 0;
  for (int64_t k = 0; k < rows; ++k) {
    if (k + 16 < rows) __builtin_prefetch(text.offset + entry[k + 16].row);
    if (k + 8 < rows) __builtin_prefetch(text.at(entry[k + 8].row));
    const Entry e = entry[k];
    int64_t at = e.hash & (size - 1);
    for (; table[at] >= 0; at = (at + 1) & (size - 1)) {
      const Entry& known = entry[table[at]];
      if (known.hash == e.hash && text.equal(known.row, e.row)) break;
    }
    if (table[at] < 0) {
      table[at] = static_cast<int32_t>(count);
      entry[count++] = e;  // count <= k: that entry has been read
    }
    codes[e.row] = table[at];
  }
  return count;
}

}  // namespace
}  // namespace jaxglmm

// codes (rows,), -1 where missing, and the first row of each code, first (rows,) of which as many are written
// as the result says; -1 where offsets do not rise within the bytes. Texts are offset (rows + 1,) into bytes
// (size,); `valid` as Arrow has it, or null. The order of codes depends on the texts alone, not on threads.
JAXGLMM_EXPORT int64_t jaxglmm_text_codes(int64_t rows, const int64_t* offset, const char* bytes,
                                          int64_t size, const uint8_t* valid, int64_t valid_first,
                                          int32_t* codes, int32_t* first, int64_t threads) {
  using namespace jaxglmm;
  const Texts text{offset, bytes, valid, valid_first};
  int64_t parts = 1;
  while (parts < kParts && parts * kPart < rows) parts *= 2;
  const auto part_of = [&](uint64_t hash) { return static_cast<int64_t>(hash >> 52) & (parts - 1); };
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  const auto rows_of = [&](int64_t chunk, const auto& body) {
    for (int64_t i = chunk * kChunk, end = std::min(i + kChunk, rows); i < end; ++i)
      if (!text.missing(i)) body(i, text.hash(i));
  };

  // Rows go to their parts in order: how many of each chunk there are, where they begin, and then the rows.
  std::vector<int64_t> begin(chunks * parts + 1);
  std::atomic<bool> fits{true};
  for_each(chunks, threads, [&](int64_t c) {
    if (!rises(offset + c * kChunk, std::min(kChunk, rows - c * kChunk), size)) {
      fits = false;
      return;
    }
    rows_of(c, [&](int64_t, uint64_t hash) { ++begin[c * parts + part_of(hash)]; });
  });
  if (!fits) return -1;
  std::vector<int64_t> part_begin(parts + 1);
  int64_t total = 0;
  for (int64_t p = 0; p < parts; ++p) {
    part_begin[p] = total;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t here = begin[c * parts + p];
      begin[c * parts + p] = total;
      total += here;
    }
  }
  part_begin[parts] = total;
  std::vector<Entry> entry(total);
  for_each(chunks, threads, [&](int64_t c) {
    rows_of(c, [&](int64_t i, uint64_t hash) {
      entry[begin[c * parts + part_of(hash)]++] = {hash, static_cast<int32_t>(i)};
    });
  });

  // Each part by itself; then its codes follow those of the parts before.
  std::vector<int64_t> count(parts + 1);
  for_each(parts, threads, [&](int64_t p) {
    count[p + 1] =
        codes_of_part(text, entry.data() + part_begin[p], part_begin[p + 1] - part_begin[p], codes);
  });
  for (int64_t p = 0; p < parts; ++p) count[p + 1] += count[p];
  for_each(parts, threads, [&](int64_t p) {
    for (int64_t k = count[p]; k < count[p + 1]; ++k) first[k] = entry[part_begin[p] + k - count[p]].row;
  });
  for_each(chunks, threads, [&](int64_t c) {
    for (int64_t i = c * kChunk, end = std::min(i + kChunk, rows); i < end; ++i)
      codes[i] = text.missing(i) ? -1 : codes[i] + static_cast<int32_t>(count[part_of(text.hash(i))]);
  });
  return count[parts];
}
