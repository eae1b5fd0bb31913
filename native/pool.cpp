#include "pool.hpp"

#include <chrono>

#if !defined(_WIN32)
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace backgpt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpinTime = std::chrono::microseconds(1000);
constexpr int kPausesBeforeYield = 256;  // some 10 microseconds
constexpr int kCountBits = 16;

uint64_t phase_of(uint64_t ticket) { return ticket >> kCountBits; }
int left_of(uint64_t ticket) { return static_cast<int>(ticket & ((1 << kCountBits) - 1)); }

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  asm volatile("yield");
#endif
}

// Waits a moment; now and then offers the core to others, for one of them may be who is waited for.
void wait_a_moment(int& pauses) {
  pause();
  if (++pauses % kPausesBeforeYield == 0) std::this_thread::yield();
}

}  // namespace

int process_number() {
#if defined(_WIN32)
  return 0;
#else
  return static_cast<int>(getpid());
#endif
}

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
  workers_.reserve(threads_ - 1);
  try {
    for (int thread = 1; thread < threads_; ++thread)
      workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {  // no more threads can be had
    stop();
    throw;
  }
}

Pool::~Pool() {
  if (owner_ == process_number()) {
    stop();
    return;
  }
  // After a fork the workers are not here, and to destroy what they wait on would hang.
  new std::vector<std::thread>(std::move(workers_));
  wake_.release();
}

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
  }
  wake_->notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run(const Job& job) {
  if (job.chunks.empty()) return;
  job_ = &job;
  first_phase_ = phase_of(ticket_.load()) + 1;
  const uint64_t end = first_phase_ + job.chunks.size();
  open(first_phase_, job.chunks[0]);
  for (int pauses = 0; phase_of(ticket_.load(std::memory_order_acquire)) != end;)
    if (!help(0)) wait_a_moment(pauses);
}

// Takes a chunk and does it; says whether there was one.
bool Pool::help(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (left_of(ticket) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel));
  const Job& job = *job_;
  const size_t stage = phase_of(ticket) - first_phase_, stages = job.chunks.size();
  const int chunks = job.chunks[stage];
  job.run(static_cast<int>(stage), chunks - left_of(ticket), thread);
  // Whoever finishes last opens the next stage. After the last one the job may be gone at once.
  const int next = stage + 1 < stages ? job.chunks[stage + 1] : 0;
  if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks)
    open(phase_of(ticket) + 1, next);
  return true;
}

void Pool::open(uint64_t phase, int chunks) {
  done_.store(0, std::memory_order_relaxed);
  // This pair and the one in sleep_until_needed are sequentially consistent: either the worker
  // sees the new stage before it sleeps, or we see that it sleeps.
  ticket_.store(phase << kCountBits | static_cast<uint64_t>(chunks));
  if (chunks > 1 && sleeping_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_->notify_all();
  }
}

void Pool::work(int thread) {
  int pauses = 0;
  auto last_help = Clock::now();
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (help(thread)) {
      pauses = 0;
    } else {
      if (pauses == 0) last_help = Clock::now();
      wait_a_moment(pauses);
      if (pauses % kPausesBeforeYield == 0 && Clock::now() - last_help > kSpinTime) {
        if (!sleep_until_needed()) return;
        pauses = 0;
      }
    }
  }
}

// Returns false if the pool ends.
bool Pool::sleep_until_needed() {
  std::unique_lock<std::mutex> lock(mutex_);
  sleeping_.fetch_add(1);
  wake_->wait(lock, [&] { return left_of(ticket_.load()) > 0 || stopping_.load(); });
  sleeping_.fetch_sub(1);
  return !stopping_.load();
}

}  // namespace backgpt
