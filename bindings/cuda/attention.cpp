#include "../register.hpp"
#include "arguments.hpp"

namespace py = pybind11;

namespace pft::bindings {
namespace {

using Sizes = AttentionSizes;
using Scales = std::array<float, 2>;  // scale, region_penalty

// q, k, v, bias, region, index, logits: what forward and backward both read.
using LayerArg = std::tuple<TensorArg, TensorArg, TensorArg, uintptr_t, uintptr_t, IndexArg, uintptr_t>;

int64_t rows_of(const AttentionShape& s) { return s.windows * s.heads * s.queries; }
int64_t table_entries(const AttentionShape& s) { return (2 * s.window_size - 1) * (2 * s.window_size - 1); }

cuda::AttentionInputs inputs_of(Arguments& args, const AttentionShape& s, const LayerArg& layer) {
  const auto& [q, k, v, bias, region, index, logits] = layer;
  cuda::AttentionInputs in;
  in.shape = s;
  in.q = args.input("q", q, {s.windows, s.heads, s.queries, s.dim_qk});
  in.k = args.input("k", k, {s.windows, s.heads, s.keys, s.dim_qk});
  in.v = args.input("v", v, {s.windows, s.heads, s.keys, s.dim_v});
  in.bias = args.array<const float>("bias", bias, table_entries(s) * s.heads, 4, false);
  in.region = args.array<const uint8_t>("region", region, s.patterns * s.queries, 1, false);
  in.index = args.index("index", index, rows_of(s) * s.candidates);
  in.logits = args.array<const float>("logits", logits, rows_of(s) * s.candidates, 4, false);
  if (in.bias && s.window_size * s.window_size != s.keys) {
    throw std::invalid_argument("attention: a bias table needs keys = window_size^2");
  }
  return in;
}

void forward(Sizes sizes, Scales scales, LayerArg layer, TensorArg out, IndexArg new_index,
             uintptr_t new_logits, uintptr_t lse, int candidates, int float32, Place place) {
  const char* kernel = "attention_forward";
  const AttentionShape s = attention_shape(kernel, sizes, scales[0], scales[1]);
  Arguments args(kernel);
  const cuda::AttentionInputs in = inputs_of(args, s, layer);
  const int64_t kept = s.topk < s.candidates ? s.topk : s.candidates;
  cuda::AttentionOutputs to;
  to.out = args.output("out", out, {s.windows, s.heads, s.queries, s.dim_v});
  to.new_index = args.array<void>("new_index", new_index.first, rows_of(s) * kept, new_index.second, true);
  to.index_wide = new_index.second == 4;
  to.new_logits = args.array<float>("new_logits", new_logits, rows_of(s) * kept, 4, true);
  to.lse = args.array<float>("lse", lse, rows_of(s), 4, true);
  run(kernel, {s.windows, s.heads, s.queries, s.keys, s.dim_qk, s.dim_v, s.candidates, s.topk}, place,
      [&](void* stream) {
        return in.index.data
                   ? cuda::attention_forward_sparse(in, to, static_cast<cuda::Candidates>(candidates),
                                                    static_cast<cuda::Float32>(float32), stream)
                   : cuda::attention_forward_dense(in, to, static_cast<cuda::Float32>(float32), stream);
      });
}

void row_delta(Sizes sizes, TensorArg grad_out, TensorArg out, uintptr_t delta, Place place) {
  const char* kernel = "attention_row_delta";
  const AttentionShape s = attention_shape(kernel, sizes);
  Arguments args(kernel);
  const cuda::Input x = args.input("grad_out", grad_out, {s.windows, s.heads, s.queries, s.dim_v});
  const cuda::Input y = args.input("out", out, {s.windows, s.heads, s.queries, s.dim_v});
  float* to = args.array<float>("delta", delta, rows_of(s), 4, true);
  run(kernel, {s.windows, s.heads, s.queries, s.dim_v}, place,
      [&](void* stream) { return cuda::attention_row_delta(s, x, y, to, stream); });
}

// Whether backward_sparse reads grad_out instead of grad_a.
bool backward_splits(Sizes sizes, int dtype, bool bias, int candidates, int float32) {
  return cuda::backward_splits(
      attention_shape("attention_backward_sparse", sizes), static_cast<cuda::DType>(dtype), bias,
      static_cast<cuda::Candidates>(candidates), static_cast<cuda::Float32>(float32));
}

// The address of grad_out or grad_a may be 0: not there.
void backward_sparse(Sizes sizes, Scales scales, LayerArg layer, TensorArg grad_out, uintptr_t grad_logits,
                     uintptr_t grad_a, uintptr_t lse, uintptr_t delta, IndexArg new_index, int64_t kept,
                     uintptr_t g, uintptr_t a_kept, int candidates, int float32, Place place) {
  const char* kernel = "attention_backward_sparse";
  const AttentionShape s = attention_shape(kernel, sizes, scales[0], scales[1]);
  Arguments args(kernel);
  const cuda::AttentionInputs in = inputs_of(args, s, layer);
  const int64_t rows = rows_of(s);
  cuda::SparseGradients grads;
  if (std::get<0>(grad_out))
    grads.grad_out = args.input("grad_out", grad_out, {s.windows, s.heads, s.queries, s.dim_v});
  grads.grad_logits = args.array<const float>("grad_logits", grad_logits, rows * kept, 4, false);
  grads.grad_a = args.array<const float>("grad_a", grad_a, rows * kept, 4, false);
  grads.lse = args.array<const float>("lse", lse, rows, 4, false);
  grads.delta = args.array<const float>("delta", delta, rows, 4, false);
  const cuda::Index index = args.index("new_index", new_index, rows * kept);
  grads.new_index = index.data;
  grads.new_index_wide = index.wide;
  grads.g = args.array<float>("g", g, rows * s.candidates, 4, true);
  grads.a_kept = args.array<float>("a_kept", a_kept, rows * kept, 4, true);
  grads.kept = kept;
  const auto how = static_cast<cuda::Candidates>(candidates);
  run(kernel, {s.windows, s.heads, s.queries, s.keys, s.dim_qk, s.dim_v, s.candidates, kept}, place,
      [&](void* stream) {
        return cuda::attention_backward_sparse(in, grads, how, static_cast<cuda::Float32>(float32), stream);
      });
}

// The address of grad_out or grad_v may be 0: not there.
void backward_dense(Sizes sizes, Scales scales, LayerArg layer, TensorArg grad_out, uintptr_t lse,
                    uintptr_t delta, TensorArg grad_q, TensorArg grad_k, TensorArg grad_v,
                    uintptr_t bias_partial, int64_t row_blocks, int float32, Place place) {
  const char* kernel = "attention_backward_dense";
  const AttentionShape s = attention_shape(kernel, sizes, scales[0], scales[1]);
  Arguments args(kernel);
  const cuda::AttentionInputs in = inputs_of(args, s, layer);
  cuda::DenseGradients grads;
  if (std::get<0>(grad_out)) {
    grads.grad_out = args.input("grad_out", grad_out, {s.windows, s.heads, s.queries, s.dim_v});
    grads.grad_v = args.output("grad_v", grad_v, {s.windows, s.heads, s.keys, s.dim_v});
  }
  grads.lse = args.array<const float>("lse", lse, rows_of(s), 4, false);
  grads.delta = args.array<const float>("delta", delta, rows_of(s), 4, false);
  grads.grad_q = args.output("grad_q", grad_q, {s.windows, s.heads, s.queries, s.dim_qk});
  grads.grad_k = args.output("grad_k", grad_k, {s.windows, s.heads, s.keys, s.dim_qk});
  grads.bias_partial = args.array<float>("bias_partial", bias_partial,
                                         s.windows * row_blocks * s.heads * table_entries(s), 4, true);
  grads.row_blocks = row_blocks;
  run(kernel, {s.windows, s.heads, s.queries, s.keys, s.dim_qk, s.dim_v}, place, [&](void* stream) {
    return cuda::attention_backward_dense(in, grads, static_cast<cuda::Float32>(float32), stream);
  });
}

void bias_sparse(Sizes sizes, IndexArg index, uintptr_t g, int64_t groups, uintptr_t partial, Place place) {
  const char* kernel = "bias_gradient_sparse";
  const AttentionShape s = attention_shape(kernel, sizes);
  Arguments args(kernel);
  const int64_t entries = rows_of(s) * s.candidates;
  const cuda::Index index_ = args.index("index", index, entries);
  const float* g_ = args.array<const float>("g", g, entries, 4, false);
  float* partial_ = args.array<float>("partial", partial, groups * s.heads * table_entries(s), 4, true);
  run(kernel, {s.windows, s.heads, s.queries, s.candidates, groups}, place,
      [&](void* stream) { return cuda::bias_gradient_sparse(s, index_, g_, groups, partial_, stream); });
}

void bias_sum(int64_t groups, int64_t heads, int64_t entries, uintptr_t partial, bool accumulate,
              uintptr_t grad_bias, Place place) {
  const char* kernel = "bias_gradient_sum";
  require_sizes(kernel, {groups, heads, entries});
  Arguments args(kernel);
  const float* from = args.array<const float>("partial", partial, groups * heads * entries, 4, false);
  float* to = args.array<float>("grad_bias", grad_bias, heads * entries, 4, true);
  run(kernel, {groups, heads, entries}, place, [&](void* stream) {
    return cuda::bias_gradient_sum(groups, heads, entries, from, accumulate, to, stream);
  });
}

}  // namespace

void register_attention(py::module_& m) {
  using py::arg;
  m.def("attention_forward", forward, arg("sizes"), arg("scales"), arg("layer"), arg("out"), arg("new_index"),
        arg("new_logits"), arg("lse"), arg("candidates"), arg("float32"), arg("place"));
  m.def("attention_row_delta", row_delta, arg("sizes"), arg("grad_out"), arg("out"), arg("delta"),
        arg("place"));
  m.def("attention_backward_sparse", backward_sparse, arg("sizes"), arg("scales"), arg("layer"),
        arg("grad_out"), arg("grad_logits"), arg("grad_a"), arg("lse"), arg("delta"), arg("new_index"),
        arg("kept"), arg("g"), arg("a_kept"), arg("candidates"), arg("float32"), arg("place"));
  m.def("attention_backward_splits", backward_splits, arg("sizes"), arg("dtype"), arg("bias"),
        arg("candidates"), arg("float32"));
  m.def("attention_backward_dense", backward_dense, arg("sizes"), arg("scales"), arg("layer"),
        arg("grad_out"), arg("lse"), arg("delta"), arg("grad_q"), arg("grad_k"), arg("grad_v"),
        arg("bias_partial"), arg("row_blocks"), arg("float32"), arg("place"));
  m.def("bias_gradient_sparse", bias_sparse, arg("sizes"), arg("index"), arg("g"), arg("groups"),
        arg("partial"), arg("place"));
  m.def("bias_gradient_sum", bias_sum, arg("groups"), arg("heads"), arg("entries"), arg("partial"),
        arg("accumulate"), arg("grad_bias"), arg("place"));
}

}  // namespace pft::bindings
