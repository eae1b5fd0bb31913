#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace backgpt {
namespace {

constexpr int kChunksPerThread = 3;

Buffer<float> zeros(size_t count) {
  Buffer<float> buffer(count);
  std::fill_n(buffer.data(), count, 0.0f);
  return buffer;
}

}  // namespace

Model::Model(const Shape& shape, Dtype dtype, const Kernels& kernels, int threads,
             const Lookup& lookup)
    : shape_(shape),
      dtype_(dtype),
      kernels_(kernels),
      padded_dim_(static_cast<int>(round_up(shape.head_dim, kBlock))),
      pool_(threads),
      cache_(shape.n_layer, shape.n_kv_head, shape.head_dim, dtype != Dtype::float32),
      layers_(shape.n_layer) {
  load(lookup);
  make_rotary_tables();

  stream_stride_ = round_up(shape.n_embd, kBlock);
  qkv_stride_ = layers_[0].qkv.rows;
  found_stride_ = round_up(static_cast<size_t>(shape.n_head) * shape.head_dim, kBlock);
  gate_up_stride_ = layers_[0].gate_up.rows;
  hidden_stride_ = gate_up_stride_ / 2;
  logits_stride_ = round_up(shape.vocab_size, kBlock);
  stream_ = Buffer<float>(kMostTokens * stream_stride_);
  qkv_ = Buffer<float>(kMostTokens * qkv_stride_);
  found_ = zeros(kMostTokens * found_stride_);  // what pads the heads is never written
  gate_up_ = Buffer<float>(kMostTokens * gate_up_stride_);
  hidden_ = Buffer<float>(kMostTokens * hidden_stride_);
  logits_ = Buffer<float>(kMostTokens * logits_stride_);

  scratches_.resize(pool_.threads());
  for (Scratch& scratch : scratches_) {
    scratch.normed = Buffer<float>(stream_stride_);
    scratch.scores = Buffer<float>(kQueries * round_up(shape.block_size, kPage));
    scratch.head = Buffer<float>(kQueries * padded_dim_);
    make_input(scratch, 1);
  }
  make_input(together_, kMostTokens);
}

void Model::make_input(Scratch& scratch, int tokens) const {
  const size_t columns = std::max({stream_stride_, found_stride_, hidden_stride_});
  const size_t sums = columns / kGroup + 1;
  scratch.input_data = Buffer<uint8_t>(tokens * columns * sizeof(float));
  scratch.input_scales = Buffer<float>(tokens);
  scratch.input_sums = Buffer<int32_t>(tokens * sums);
  scratch.input = {scratch.input_data.data(), columns * sizeof(float), scratch.input_scales.data(),
                   scratch.input_sums.data(), static_cast<int>(sums)};
}

void Model::read(const std::vector<Token>& tokens, int wanted) {
  if (tokens.empty() || tokens.size() > kMostTokens || wanted < 0 ||
      wanted > static_cast<int>(tokens.size()))
    throw std::invalid_argument("a read takes from 1 to " + std::to_string(kMostTokens) + " tokens");
  std::vector<Place> places;
  std::vector<int> lengths(cache_.rows());
  for (int row = 0; row < cache_.rows(); ++row) lengths[row] = cache_.length(row);
  for (const Token& token : tokens) {
    if (token.row < 0 || token.id < 0 || token.id >= shape_.vocab_size)
      throw std::invalid_argument("a row or an id is out of range");
    if (token.row >= static_cast<int>(lengths.size())) lengths.resize(token.row + 1);
    places.push_back({token.row, lengths[token.row]++, token.id});
    if (lengths[token.row] > shape_.block_size)
      throw std::invalid_argument("a row is longer than block_size");
  }
  for (const Place& place : places) cache_.reserve(place.row, place.position + 1);

  places_ = std::move(places);
  wanted_ = wanted;
  const std::vector<Stage> stages = plan(wanted);
  Job job;
  for (const Stage& stage : stages) job.chunks.push_back(chunks_of(stage.items));
  job.run = [&](int number, int chunk, int thread) {
    const Share share(stages[number].items, chunk, job.chunks[number]);
    run(stages[number], stages_begun_ + number + 1, share.first, share.last, thread);
  };
  pool_.run(job);
  stages_begun_ += stages.size();
  for (const Place& place : places_) cache_.set_length(place.row, place.position + 1);
}

// How many chunks share `items`: enough that no thread waits long for another.
int Model::chunks_of(int items) const {
  return pool_.threads() == 1 ? 1 : std::min(items, kChunksPerThread * pool_.threads());
}

std::vector<Model::Stage> Model::plan(int wanted) const {
  const int count = tokens(), heads = shape_.n_kv_head, threads = pool_.threads();
  const bool several = count > 1;
  // A thread can see a key head through, from the product to what it finds; with few heads for
  // many threads, these are stages of their own.
  const bool whole_heads = heads % threads == 0 || heads >= 3 * threads;
  std::vector<Stage> stages{{Step::embed, 0, count}};
  for (int number = 0; number < shape_.n_layer; ++number) {
    const Layer& layer = layers_[number];
    if (several) stages.push_back({Step::prepare_attention, number, count});
    if (whole_heads) {
      stages.push_back({Step::heads, number, heads});
    } else {
      stages.push_back({Step::qkv, number, layer.qkv.blocks()});
      stages.push_back({Step::remember, number, heads});
      stages.push_back({Step::attend, number, heads * count});
    }
    if (several) stages.push_back({Step::prepare_output, number, count});
    stages.push_back({Step::output, number, layer.output.blocks()});
    if (several) stages.push_back({Step::prepare_feed, number, count});
    stages.push_back({Step::gate_up, number, layer.gate_up.blocks()});
    if (several) stages.push_back({Step::prepare_down, number, count});
    stages.push_back({Step::down, number, layer.down.blocks()});
  }
  if (wanted > 0) {
    if (several) stages.push_back({Step::prepare_logits, 0, wanted});
    stages.push_back({Step::logits, 0, head_.blocks()});
  }
  return stages;
}

// Does items [first, last) of a stage. `number` tells it from every other stage ever run.
void Model::run(const Stage& stage, uint64_t number, int first, int last, int thread) {
  const Layer& layer = layers_[stage.layer];
  const int count = tokens();
  Scratch& scratch = scratches_[thread];
  const auto input = [&]() -> const Input& { return input_for(stage, number, thread); };
  switch (stage.step) {
    case Step::embed: {
      const Matrix& embedding = shape_.tied ? head_ : embedding_;
      for (int token = first; token < last; ++token)
        embedding.unpack(places_[token].id, stream(token));
      return;
    }
    case Step::prepare_attention:
    case Step::prepare_output:
    case Step::prepare_feed:
    case Step::prepare_down:
    case Step::prepare_logits:
      return prepare(source(stage), first, last, scratch, together_.input);
    case Step::heads:
      return heads(layer, stage, input(), first, last, scratch);
    case Step::qkv:
      return multiply(layer.qkv, input(), count, first, last, qkv_, qkv_stride_, false);
    case Step::remember:
      for (int head = first; head < last; ++head) remember(layer, stage.layer, head);
      return;
    case Step::attend:
      for (int head = first / count; head * count < last; ++head)
        attend(layer, stage.layer, head, std::max(first - head * count, 0),
               std::min(last - head * count, count), scratch);
      return;
    case Step::output:
      return multiply(layer.output, input(), count, first, last, stream_, stream_stride_, true);
    case Step::gate_up:
      multiply(layer.gate_up, input(), count, first, last, gate_up_, gate_up_stride_, false);
      for (int token = 0; token < count; ++token)
        kernels_.swiglu(gate_up_.data() + token * gate_up_stride_, first, last,
                        hidden_.data() + token * hidden_stride_);
      return;
    case Step::down:
      return multiply(layer.down, input(), count, first, last, stream_, stream_stride_, true);
    case Step::logits:
      return multiply(head_, input(), wanted_, first, last, logits_, logits_stride_, false);
  }
}

Model::Source Model::source(const Stage& stage) const {
  const Layer& layer = layers_[stage.layer];
  switch (stage.step) {
    case Step::prepare_attention:
    case Step::heads:
    case Step::qkv:
      return {stream_.data(), stream_stride_, layer.attention_norm.data(), layer.qkv.columns};
    case Step::prepare_output:
    case Step::output:
      return {found_.data(), found_stride_, nullptr, layer.output.columns};
    case Step::prepare_feed:
    case Step::gate_up:
      return {stream_.data(), stream_stride_, layer.feed_norm.data(), layer.gate_up.columns};
    case Step::prepare_down:
    case Step::down:
      return {hidden_.data(), hidden_stride_, nullptr, layer.down.columns};
    default:  // the logits, of the last tokens only
      return {stream_.data() + (tokens() - wanted_) * stream_stride_, stream_stride_,
              last_norm_.data(), head_.columns};
  }
}

void Model::prepare(const Source& source, int first, int last, Scratch& scratch,
                    const Input& input) {
  for (int token = first; token < last; ++token) {
    const float* row = source.rows + token * source.stride;
    if (source.norm) {
      kernels_.rms_norm(row, source.norm, shape_.n_embd, shape_.norm_eps, scratch.normed.data());
      row = scratch.normed.data();
    }
    kernels_.prepare(dtype_, row, source.columns, input, token);
  }
}

const Input& Model::input_for(const Stage& stage, uint64_t number, int thread) {
  if (tokens() > 1) return together_.input;
  Scratch& scratch = scratches_[thread];
  if (scratch.prepared != number) {
    prepare(source(stage), 0, 1, scratch, scratch.input);
    scratch.prepared = number;
  }
  return scratch.input;
}

void Model::multiply(const Matrix& matrix, const Input& input, int count, int first, int last,
                     Buffer<float>& out, size_t stride, bool add) const {
  kernels_.multiply(matrix.packed(), first, last, input, count, out.data(), stride, add);
}

// Key heads [first, last) from the product to what their queries find.
void Model::heads(const Layer& layer, const Stage& stage, const Input& input, int first, int last,
                  Scratch& scratch) {
  const int blocks = layer.qkv.blocks() / shape_.n_kv_head;
  multiply(layer.qkv, input, tokens(), first * blocks, last * blocks, qkv_, qkv_stride_, false);
  for (int head = first; head < last; ++head) {
    remember(layer, stage.layer, head);
    attend(layer, stage.layer, head, 0, tokens(), scratch);
  }
}

float* Model::heads_of(int token, int kv_head) {
  return qkv_.data() + token * qkv_stride_ +
         static_cast<size_t>(kv_head) * (group() + 2) * padded_dim_;
}

// Norms, turns and stores the keys of one key head, and its values, for all tokens.
void Model::remember(const Layer& layer, int number, int kv_head) {
  const int half = shape_.head_dim / 2;
  for (int token = 0; token < tokens(); ++token) {
    const Place& place = places_[token];
    float* key = heads_of(token, kv_head) + static_cast<size_t>(group()) * padded_dim_;
    const size_t angles = static_cast<size_t>(place.position) * half;
    kernels_.rms_norm(key, layer.key_norm.data(), shape_.head_dim, shape_.norm_eps, key);
    kernels_.rotate(key, cos_.data() + angles, sin_.data() + angles, half);
    kernels_.remember(key, key + padded_dim_, place.position,
                      cache_.memory(place.row, number, kv_head));
  }
}

// What the query heads of one key head find, for tokens [first, last).
void Model::attend(const Layer& layer, int number, int kv_head, int first, int last,
                   Scratch& scratch) {
  for (int token = first, count; token < last; token += count) {
    const auto ours = [&](const Place& place) { return place.row == places_[token].row; };
    const auto begin = places_.begin() + token;
    count = last - token >= kQueries && std::all_of(begin, begin + kQueries, ours) ? kQueries : 1;
    attend_together(layer, number, kv_head, token, count, scratch);
  }
}

// For `count` tokens of one row.
void Model::attend_together(const Layer& layer, int number, int kv_head, int token, int count,
                            Scratch& scratch) {
  const int dim = shape_.head_dim, half = dim / 2, position = places_[token].position;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const Memory memory = cache_.memory(places_[token].row, number, kv_head);
  for (int head = 0; head < group(); ++head) {
    float* queries = heads_of(token, kv_head) + static_cast<size_t>(head) * padded_dim_;
    for (int i = 0; i < count; ++i) {
      float* query = queries + i * qkv_stride_;
      const size_t angles = static_cast<size_t>(position + i) * half;
      kernels_.rms_norm(query, layer.query_norm.data(), dim, shape_.norm_eps, query);
      kernels_.rotate(query, cos_.data() + angles, sin_.data() + angles, half);
    }
    kernels_.attend(queries, qkv_stride_, count, position + 1, scale, memory,
                    scratch.scores.data(), scratch.head.data());
    float* found = found_.data() + token * found_stride_;
    for (int i = 0; i < count; ++i)
      std::copy_n(scratch.head.data() + static_cast<size_t>(i) * padded_dim_, dim,
                  found + i * found_stride_ + static_cast<size_t>(kv_head * group() + head) * dim);
  }
}

std::vector<float> Model::log_probabilities(const std::vector<int>& targets) {
  if (static_cast<int>(targets.size()) != wanted_)
    throw std::invalid_argument("give one target for each wanted token");
  for (int target : targets)
    if (target < 0 || target >= shape_.vocab_size)
      throw std::invalid_argument("a target is out of range");
  std::vector<float> result(targets.size());
  Job job;
  if (wanted_ > 0) job.chunks.push_back(chunks_of(wanted_));
  job.run = [&](int, int chunk, int) {
    const Share share(wanted_, chunk, job.chunks[0]);
    for (int i = share.first; i < share.last; ++i) {
      float* row = logits_.data() + i * logits_stride_;
      const float target = row[targets[i]];
      result[i] = target - kernels_.log_sum_exp(row, shape_.vocab_size);
    }
  };
  pool_.run(job);
  return result;
}

}  // namespace backgpt
