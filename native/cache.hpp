// Keys and values of what was read, for many rows of different lengths.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "aligned.hpp"
#include "kernels.hpp"

namespace backgpt {

// A row is a list of pages of 64 positions each, all layers and heads of them; memory grows with
// what is read, not with what could be. Copies of a row share its full pages, which nobody writes
// any more. Pages of released rows are used again; of many unused ones most are freed.
class Cache {
 public:
  Cache(int n_layer, int n_kv_head, int head_dim, bool half);

  int rows() const { return static_cast<int>(rows_.size()); }
  int length(int row) const { return rows_[row].length; }

  // Makes room in `row` for `length` positions; the row may be new.
  void reserve(int row, int length);
  void set_length(int row, int length) { rows_[row].length = length; }

  // Makes `target` a copy of the first `length` positions of `source`.
  void copy(int source, int target, int length);
  void release(int row);

  // Where key head `kv_head` of `layer` finds its keys and values in `row`.
  Memory memory(int row, int layer, int kv_head) const;

  // Bytes of all pages, the unused ones too.
  size_t bytes() const { return pages_made_ * page_bytes_; }

 private:
  using Page = std::shared_ptr<uint8_t>;
  static constexpr size_t kBytesKept = size_t{64} << 20;
  struct Row {
    int length = 0;
    std::vector<Page> pages;
    std::vector<const uint8_t*> addresses;
  };

  void add_page(Row& row);
  void free_unused();
  Row& row(int number);

  int n_kv_head_, head_dim_, padded_dim_;
  bool half_;
  size_t keys_bytes_, head_bytes_, page_bytes_;
  size_t pages_made_ = 0;
  std::vector<Row> rows_;
  std::vector<Page> unused_;
};

}  // namespace backgpt
