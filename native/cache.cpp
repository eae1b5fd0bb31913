#include "cache.hpp"

#include <algorithm>
#include <cstring>

#if !defined(_WIN32)
#include <sys/mman.h>
#endif
#include <new>

namespace backgpt {
namespace {

// Mapped where that can be, so that the system has it back as soon as it is freed.
std::shared_ptr<uint8_t> new_page(size_t bytes) {
#if defined(_WIN32)
  auto buffer = std::make_shared<Buffer<uint8_t>>(bytes);
  return {buffer, buffer->data()};
#else
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return {static_cast<uint8_t*>(data), [bytes](uint8_t* page) { munmap(page, bytes); }};
#endif
}

}  // namespace

Cache::Cache(int n_layer, int n_kv_head, int head_dim, bool half)
    : n_kv_head_(n_kv_head),
      head_dim_(head_dim),
      padded_dim_(static_cast<int>(round_up(head_dim, kBlock))),
      half_(half) {
  const size_t number = half ? sizeof(uint16_t) : sizeof(float);
  keys_bytes_ = number * head_dim_ * kPage;
  head_bytes_ = keys_bytes_ + number * padded_dim_ * kPage;
  page_bytes_ = head_bytes_ * n_kv_head * n_layer;
}

Cache::Row& Cache::row(int number) {
  if (number >= rows()) rows_.resize(number + 1);
  return rows_[number];
}

void Cache::add_page(Row& row) {
  if (unused_.empty()) {
    unused_.push_back(new_page(page_bytes_));
    ++pages_made_;
  }
  row.addresses.reserve(row.pages.size() + 1);  // so that what follows cannot fail half-way
  row.pages.reserve(row.pages.size() + 1);
  row.pages.push_back(std::move(unused_.back()));
  row.addresses.push_back(row.pages.back().get());
  unused_.pop_back();
}

void Cache::reserve(int number, int length) {
  Row& target = row(number);
  while (static_cast<int>(target.pages.size()) * kPage < length) add_page(target);
}

void Cache::copy(int source, int target, int length) {
  release(target);
  Row& to = row(target);
  const Row& from = rows_[source];
  const int full = length / kPage, left = length % kPage;
  to.pages.assign(from.pages.begin(), from.pages.begin() + full);
  to.addresses.assign(from.addresses.begin(), from.addresses.begin() + full);
  if (left > 0) {
    add_page(to);
    std::memcpy(to.pages.back().get(), from.pages[full].get(), page_bytes_);
  }
  to.length = length;
}

void Cache::release(int number) {
  Row& released = row(number);
  for (Page& page : released.pages)
    if (page.use_count() == 1) unused_.push_back(std::move(page));
  released = Row{};
  free_unused();
}

void Cache::free_unused() {
  const size_t used = pages_made_ - unused_.size(), kept = std::max(used, kBytesKept / page_bytes_);
  if (unused_.size() <= 2 * kept) return;  // so that it is not done for each row that ends
  const size_t too_many = unused_.size() - kept;
  unused_.erase(unused_.begin(), unused_.begin() + too_many);  // those used longest ago
  pages_made_ -= too_many;
}

Memory Cache::memory(int number, int layer, int kv_head) const {
  const size_t head = static_cast<size_t>(layer) * n_kv_head_ + kv_head;
  return {rows_[number].addresses.data(), head * head_bytes_, head * head_bytes_ + keys_bytes_,
          half_, head_dim_, padded_dim_};
}

}  // namespace backgpt
