// The Python door: `backgpt.engine._native`. Checks what memory safety needs; the friendly words
// are in `native_engine.py`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <unordered_map>

#include "cpu.hpp"
#include "model.hpp"

namespace nb = nanobind;

namespace backgpt {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig>;
using Integers = nb::ndarray<const int32_t, nb::ndim<1>, nb::device::cpu, nb::c_contig>;
using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

// Arrays by name, held while the model is made of them.
class Weights {
 public:
  explicit Weights(const nb::dict& arrays) {
    for (const auto& [name, array] : arrays)
      arrays_.emplace(nb::cast<std::string>(name), nb::cast<Array>(array));
  }
  bool has(const std::string& name) const { return arrays_.count(name) > 0; }

  Tensor find(const std::string& name, int rows, int columns) const {
    const Array& array = checked(name, rows, columns);
    Tensor tensor;
    if (array.dtype() == nb::dtype<float>()) {
      tensor.floats = static_cast<const float*>(array.data());
    } else if (array.dtype() == nb::dtype<int8_t>() && rows > 1) {
      const Array& scales = checked(name + "_scale", 1, rows);
      if (scales.dtype() != nb::dtype<float>())
        throw std::invalid_argument(name + "_scale is not float32");
      tensor.bytes = static_cast<const int8_t*>(array.data());
      tensor.scales = static_cast<const float*>(scales.data());
    } else {
      throw std::invalid_argument(name + " is neither float32 nor int8");
    }
    return tensor;
  }

 private:
  const Array& checked(const std::string& name, int rows, int columns) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) throw std::invalid_argument(name + " is missing");
    const Array& array = found->second;
    const bool vector = array.ndim() == 1 && rows == 1;
    const bool matrix = array.ndim() == 2 && array.shape(0) == static_cast<size_t>(rows);
    if (!(vector || matrix) || array.shape(array.ndim() - 1) != static_cast<size_t>(columns))
      throw std::invalid_argument(name + " has another shape than (" + std::to_string(rows) + ", " +
                                  std::to_string(columns) + ")");
    return array;
  }

  std::unordered_map<std::string, Array> arrays_;
};

Dtype dtype_named(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "int8") return Dtype::int8;
  if (name == "int4") return Dtype::int4;
  throw std::invalid_argument("unknown dtype " + name);
}

const Kernels& kernels_named(const std::string& name) {
  for (const Kernels* kernels : usable_kernels())
    if (name == kernels->name) return *kernels;
  throw std::invalid_argument("this processor has no " + name);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
  return names;
}

void make(Model* model, const nb::dict& shape, const nb::dict& arrays, const std::string& dtype,
          const std::string& isa, int threads) {
  const auto integer = [&](const char* name) {
    const int value = nb::cast<int>(shape[name]);
    if (value < 1) throw std::invalid_argument(std::string(name) + " must be at least 1");
    return value;
  };
  const Weights weights(arrays);
  Shape s{};
  s.n_layer = integer("n_layer");
  s.n_head = integer("n_head");
  s.n_kv_head = integer("n_kv_head");
  s.n_embd = integer("n_embd");
  s.vocab_size = integer("vocab_size");
  s.block_size = integer("block_size");
  s.intermediate_size = integer("intermediate_size");
  s.head_dim = integer("head_dim");
  s.rope_theta = nb::cast<float>(shape["rope_theta"]);
  s.norm_eps = nb::cast<float>(shape["norm_eps"]);
  s.tied = !weights.has("lm_head.weight");
  if (s.n_head % s.n_kv_head || s.head_dim % 2)
    throw std::invalid_argument("heads must come in whole groups and of even width");
  const Dtype kind = dtype_named(dtype);
  const Kernels& kernels = kernels_named(isa);
  nb::gil_scoped_release released;
  new (model) Model(s, kind, kernels, threads,
                    [&](const std::string& name, int rows, int columns) {
                      return weights.find(name, rows, columns);
                    });
}

std::vector<Token> tokens_of(const Integers& rows, const Integers& ids) {
  if (rows.shape(0) != ids.shape(0)) throw std::invalid_argument("give one id for each row");
  std::vector<Token> tokens(ids.shape(0));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = {rows.data()[i], ids.data()[i]};
  return tokens;
}

Logits read(Model& model, const Integers& rows, const Integers& ids, int wanted) {
  const std::vector<Token> tokens = tokens_of(rows, ids);
  const size_t width = model.shape().vocab_size;
  std::unique_ptr<float[]> logits;
  {
    nb::gil_scoped_release released;
    model.read(tokens, wanted);
    logits = std::unique_ptr<float[]>(new float[wanted * width]);
    for (int i = 0; i < wanted; ++i)
      std::memcpy(logits.get() + i * width, model.logits(i), width * sizeof(float));
  }
  float* data = logits.get();
  nb::capsule owner(logits.release(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Logits(data, {static_cast<size_t>(wanted), width}, owner);
}

std::vector<float> score(Model& model, const Integers& rows, const Integers& ids,
                         const Integers& targets) {
  const std::vector<Token> tokens = tokens_of(rows, ids);
  const std::vector<int> wanted(targets.data(), targets.data() + targets.shape(0));
  nb::gil_scoped_release released;
  model.read(tokens, static_cast<int>(tokens.size()));
  return model.log_probabilities(wanted);
}

void check_row(const Model&, Cache& cache, int row) {
  if (row < 0 || row >= cache.rows()) throw std::invalid_argument("no such row");
}

}  // namespace

NB_MODULE(_native, module) {
  nb::set_leak_warnings(false);  // a model that lives until the program ends is no leak
  module.doc() = "The transformer in C++: see native_engine.py for what it is to Python.";
  module.attr("MOST_TOKENS") = static_cast<int>(Model::kMostTokens);
  module.def("instruction_sets", &instruction_sets,
             "Names of what this processor can run, fastest first.");
  nb::class_<Model>(module, "Model")
      .def("__init__", &make, nb::arg("shape"), nb::arg("weights"), nb::kw_only(),
           nb::arg("dtype"), nb::arg("isa"), nb::arg("threads"))
      .def("read", &read, nb::arg("rows"), nb::arg("ids"), nb::arg("wanted"),
           "Extend rows by ids; return (wanted, V) logits after the last `wanted` of them.")
      .def("score", &score, nb::arg("rows"), nb::arg("ids"), nb::arg("targets"),
           "Extend rows by ids; return log p of the target after each.")
      .def("copy",
           [](Model& model, int source, int target, int length) {
             check_row(model, model.cache(), source);
             if (target < 0 || target == source) throw std::invalid_argument("no such row");
             if (length < 0 || length > model.cache().length(source))
               throw std::invalid_argument("a row cannot be copied beyond its end");
             model.cache().copy(source, target, length);
           },
           nb::arg("source"), nb::arg("target"), nb::arg("length"),
           "Make a row a copy of the first `length` ids of another.")
      .def("release",
           [](Model& model, int row) {
             if (row < 0) throw std::invalid_argument("no such row");
             if (row < model.cache().rows()) model.cache().release(row);
           },
           nb::arg("row"), "Let go of what a row holds, if it holds anything.")
      .def("length",
           [](Model& model, int row) {
             check_row(model, model.cache(), row);
             return model.cache().length(row);
           })
      .def_prop_ro("cache_bytes", [](Model& model) { return model.cache().bytes(); })
      .def_prop_ro("weight_bytes", &Model::weight_bytes)
      .def_prop_ro("threads", &Model::threads)
      .def_prop_ro("isa", &Model::kernels_name);
}

}  // namespace backgpt
