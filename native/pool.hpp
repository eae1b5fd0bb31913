// Worker threads that go through a job together, stage by stage.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace backgpt {

// A sequence of stages. The chunks of a stage may run at the same time, on any thread; a stage
// begins when all chunks of the one before are done.
struct Job {
  std::vector<int> chunks;  // of each stage, from 1 to 65,535
  std::function<void(int stage, int chunk, int thread)> run;  // must not throw
};

// The number of this process: it differs after a fork (0 on Windows, where there is none).
int process_number();

// A thread takes a chunk when it is free, and nobody waits for a thread that has taken none: a
// slow core does less, and one that the system gave to another program delays nobody.
//
// The caller is thread 0. Workers that find nothing to do spin for about a millisecond, in case
// the next token comes at once, and then sleep: an idle pool costs nothing.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Runs all stages of `job`; returns when the last one is done.
  void run(const Job& job);

 private:
  void stop();
  void work(int thread);
  bool help(int thread);
  void open(uint64_t phase, int chunks);
  bool sleep_until_needed();

  const int threads_;
  // What a worker may read only while it holds a chunk, for then the job cannot end.
  const Job* job_ = nullptr;
  uint64_t first_phase_ = 0;
  // How often a stage was opened, in the upper 48 bits; chunks that nobody has taken, in the lower.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::unique_ptr<std::condition_variable> wake_ = std::make_unique<std::condition_variable>();
  const int owner_ = process_number();
  std::vector<std::thread> workers_;
};

// Part `number` of `parts` of `count` things: [first, last).
struct Share {
  int first, last;
  Share(int count, int number, int parts)
      : first(static_cast<int>(static_cast<long long>(count) * number / parts)),
        last(static_cast<int>(static_cast<long long>(count) * (number + 1) / parts)) {}
};

}  // namespace backgpt
