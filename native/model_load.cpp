// How a model is made of arrays: which rows stand where, and the angles of the rotary positions.
#include <algorithm>
#include <cmath>

#include "model.hpp"

namespace backgpt {
namespace {

constexpr int kHalfBlock = kBlock / 2;

Buffer<float> padded_vector(const Tensor& tensor, int count) {
  Buffer<float> buffer(round_up(count, kBlock));
  std::fill_n(buffer.data(), buffer.size(), 0.0f);
  std::copy_n(tensor.floats, count, buffer.data());
  return buffer;
}

SourceRow row_of(const Tensor& tensor, int row, int columns) {
  const size_t offset = static_cast<size_t>(row) * columns;
  if (tensor.floats) return {tensor.floats + offset, nullptr, 0.0f};
  return {nullptr, tensor.bytes + offset, tensor.scales[row]};
}

// A matrix and the rows it is to hold, in packed order.
struct Packing {
  Matrix* matrix;
  std::vector<SourceRow> rows;
  int width;
};

Packing plain_rows(Matrix& matrix, const Tensor& tensor, int rows, int columns) {
  Packing packing{&matrix, std::vector<SourceRow>(matrix.rows), columns};
  for (int row = 0; row < rows; ++row) packing.rows[row] = row_of(tensor, row, columns);
  return packing;
}

}  // namespace

void Model::load(const Lookup& lookup) {
  const int width = shape_.n_embd, dim = shape_.head_dim, feed = shape_.intermediate_size;
  const int q_width = shape_.n_head * dim, kv_width = shape_.n_kv_head * dim;
  std::vector<Packing> packings;

  for (int number = 0; number < shape_.n_layer; ++number) {
    Layer& layer = layers_[number];
    const std::string prefix = "model.layers." + std::to_string(number) + ".";
    const auto vector = [&](const char* name, int count) {
      return padded_vector(lookup(prefix + name + ".weight", 1, count), count);
    };
    const auto matrix = [&](const char* name, int rows, int columns) {
      return lookup(prefix + name + ".weight", rows, columns);
    };
    layer.attention_norm = vector("input_layernorm", width);
    layer.query_norm = vector("self_attn.q_norm", dim);
    layer.key_norm = vector("self_attn.k_norm", dim);
    layer.feed_norm = vector("post_attention_layernorm", width);

    // For each key head: its query heads, the key, the value; each head begins a block.
    const Tensor q = matrix("self_attn.q_proj", q_width, width);
    const Tensor k = matrix("self_attn.k_proj", kv_width, width);
    const Tensor v = matrix("self_attn.v_proj", kv_width, width);
    const int heads = group() + 2;
    layer.qkv = Matrix(dtype_, shape_.n_kv_head * heads * padded_dim_, width);
    Packing qkv{&layer.qkv, std::vector<SourceRow>(layer.qkv.rows), width};
    for (int kv_head = 0; kv_head < shape_.n_kv_head; ++kv_head) {
      for (int head = 0; head < heads; ++head) {
        const Tensor& source = head < group() ? q : head == group() ? k : v;
        const int first = (head < group() ? kv_head * group() + head : kv_head) * dim;
        for (int i = 0; i < dim; ++i)
          qkv.rows[(kv_head * heads + head) * padded_dim_ + i] = row_of(source, first + i, width);
      }
    }
    packings.push_back(std::move(qkv));

    layer.output = Matrix(dtype_, width, q_width);
    packings.push_back(plain_rows(layer.output, matrix("self_attn.o_proj", width, q_width), width,
                                  q_width));

    // A block holds 16 rows of the gate and the same 16 of up: silu(gate) * up stays in place.
    const Tensor gate = matrix("mlp.gate_proj", feed, width);
    const Tensor up = matrix("mlp.up_proj", feed, width);
    layer.gate_up = Matrix(dtype_, 2 * static_cast<int>(round_up(feed, kBlock)), width);
    Packing gate_up{&layer.gate_up, std::vector<SourceRow>(layer.gate_up.rows), width};
    for (int i = 0; i < feed; ++i) {
      const int row = i / kHalfBlock * kBlock + i % kHalfBlock;
      gate_up.rows[row] = row_of(gate, i, width);
      gate_up.rows[row + kHalfBlock] = row_of(up, i, width);
    }
    packings.push_back(std::move(gate_up));

    layer.down = Matrix(dtype_, width, feed);
    packings.push_back(plain_rows(layer.down, matrix("mlp.down_proj", width, feed), width, feed));
  }
  last_norm_ = padded_vector(lookup("model.norm.weight", 1, width), width);
  const Tensor embedding = lookup("model.embed_tokens.weight", shape_.vocab_size, width);
  const Tensor head =
      shape_.tied ? embedding : lookup("lm_head.weight", shape_.vocab_size, width);
  head_ = Matrix(dtype_, shape_.vocab_size, width);
  packings.push_back(plain_rows(head_, head, shape_.vocab_size, width));
  if (!shape_.tied) {
    embedding_ = Matrix(dtype_, shape_.vocab_size, width);
    packings.push_back(plain_rows(embedding_, embedding, shape_.vocab_size, width));
  }

  Job job;
  for (const Packing& packing : packings) job.chunks.push_back(chunks_of(packing.matrix->blocks()));
  job.run = [&](int stage, int chunk, int) {
    const Packing& packing = packings[stage];
    const Share share(packing.matrix->blocks(), chunk, job.chunks[stage]);
    for (int block = share.first; block < share.last; ++block)
      packing.matrix->pack(block, &packing.rows[static_cast<size_t>(block) * kBlock],
                           packing.width);
  };
  pool_.run(job);
}

// In double, then rounded: libraries differ in the last bits of their functions.
void Model::make_rotary_tables() {
  const int half = shape_.head_dim / 2;
  cos_ = Buffer<float>(static_cast<size_t>(shape_.block_size) * half);
  sin_ = Buffer<float>(cos_.size());
  for (int i = 0; i < half; ++i) {
    const float pair = static_cast<float>(2 * i) / static_cast<float>(shape_.head_dim);
    const float frequency = static_cast<float>(std::pow(double{shape_.rope_theta}, -double{pair}));
    for (int position = 0; position < shape_.block_size; ++position) {
      const double angle = static_cast<float>(position) * frequency;
      cos_.data()[static_cast<size_t>(position) * half + i] = static_cast<float>(std::cos(angle));
      sin_.data()[static_cast<size_t>(position) * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

size_t Model::weight_bytes() const {
  size_t bytes = head_.bytes();
  for (const Layer& layer : layers_)
    bytes += layer.qkv.bytes() + layer.output.bytes() + layer.gate_up.bytes() + layer.down.bytes();
  return bytes;
}

}  // namespace backgpt
