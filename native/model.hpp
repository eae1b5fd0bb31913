// The transformer: reads tokens into the cache, gives logits or log-probabilities.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cache.hpp"
#include "kernels.hpp"
#include "matrix.hpp"
#include "pool.hpp"

namespace backgpt {

// The shape of a model in the Qwen3 family, in this project's names.
struct Shape {
  int n_layer, n_head, n_kv_head, n_embd, vocab_size, block_size, intermediate_size, head_dim;
  float rope_theta, norm_eps;
  bool tied;  // whether the output embedding is the input embedding
};

// An array as Python gives it: floats, or bytes with a scale for each row.
struct Tensor {
  const float* floats = nullptr;
  const int8_t* bytes = nullptr;
  const float* scales = nullptr;
};

// Returns the array of that name, with exactly that many rows and columns (a vector has one row),
// or throws.
using Lookup = std::function<Tensor(const std::string& name, int rows, int columns)>;

// Which row is extended by which id. A row may be named several times, and is then extended in
// that order.
struct Token {
  int row, id;
};

class Model {
 public:
  static constexpr int kMostTokens = 128;  // that one call may read

  Model(const Shape& shape, Dtype dtype, const Kernels& kernels, int threads, const Lookup& lookup);

  // Reads `tokens`, at most kMostTokens, and computes logits after the last `wanted` of them.
  // Throws std::invalid_argument, changing nothing, if a row would exceed block_size.
  void read(const std::vector<Token>& tokens, int wanted);

  // Replaces the logits of the last read by log p of `targets`, one for each wanted token.
  std::vector<float> log_probabilities(const std::vector<int>& targets);

  // The logits after wanted token `number` of the last read: vocab_size floats.
  const float* logits(int number) const { return logits_.data() + number * logits_stride_; }

  Cache& cache() { return cache_; }
  const Shape& shape() const { return shape_; }
  const char* kernels_name() const { return kernels_.name; }
  int threads() const { return pool_.threads(); }
  size_t weight_bytes() const;  // that reading one token passes over

 private:
  struct Layer {
    Buffer<float> attention_norm, query_norm, key_norm, feed_norm;
    Matrix qkv, output, gate_up, down;
  };
  // What one thread needs for itself.
  struct Scratch {
    Buffer<float> normed, scores, head;
    Buffer<uint8_t> input_data;
    Buffer<float> input_scales;
    Buffer<int32_t> input_sums;
    Input input;
    uint64_t prepared = 0;  // the stage whose input it holds
  };
  // What stages of a read do. Products have a `prepare_` stage before them if there are several
  // tokens; a single one every thread prepares for itself, which is quicker than another stage.
  enum class Step {
    embed,
    prepare_attention, heads, qkv, remember, attend,
    prepare_output, output,
    prepare_feed, gate_up,
    prepare_down, down,
    prepare_logits, logits,
  };
  struct Stage {
    Step step;
    int layer;
    int items;  // blocks, heads or tokens that its chunks share
  };
  // The rows that a product multiplies, before they are prepared.
  struct Source {
    const float* rows;
    size_t stride;
    const float* norm;  // or null
    int columns;
  };
  struct Place {
    int row, position, id;
  };

  void load(const Lookup& lookup);
  void make_rotary_tables();
  void make_input(Scratch& scratch, int tokens) const;

  int chunks_of(int items) const;
  std::vector<Stage> plan(int wanted) const;
  void run(const Stage& stage, uint64_t number, int first, int last, int thread);
  Source source(const Stage& stage) const;
  void prepare(const Source& source, int first, int last, Scratch& scratch, const Input& input);
  const Input& input_for(const Stage& stage, uint64_t number, int thread);
  void multiply(const Matrix& matrix, const Input& input, int count, int first, int last,
                Buffer<float>& out, size_t stride, bool add) const;
  void heads(const Layer& layer, const Stage& stage, const Input& input, int first, int last,
             Scratch& scratch);
  void remember(const Layer& layer, int number, int kv_head);
  void attend(const Layer& layer, int number, int kv_head, int first, int last, Scratch& scratch);
  void attend_together(const Layer& layer, int number, int kv_head, int token, int count,
                       Scratch& scratch);

  int group() const { return shape_.n_head / shape_.n_kv_head; }
  int tokens() const { return static_cast<int>(places_.size()); }
  float* stream(int token) { return stream_.data() + token * stream_stride_; }
  float* heads_of(int token, int kv_head);

  const Shape shape_;
  const Dtype dtype_;
  const Kernels& kernels_;
  const int padded_dim_;
  Pool pool_;
  Cache cache_;
  std::vector<Layer> layers_;
  Matrix embedding_, head_;
  Buffer<float> last_norm_, cos_, sin_;

  std::vector<Place> places_;
  int wanted_ = 0;
  size_t stream_stride_, qkv_stride_, found_stride_, gate_up_stride_, hidden_stride_,
      logits_stride_;
  Buffer<float> stream_, qkv_, found_, gate_up_, hidden_, logits_;
  std::vector<Scratch> scratches_;  // one for each thread
  Scratch together_;                // its input is that of several tokens
  uint64_t stages_begun_ = 0;       // before this read
};

}  // namespace backgpt
