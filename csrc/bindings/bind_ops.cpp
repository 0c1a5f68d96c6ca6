#include <omp.h>

#include <initializer_list>
#include <limits>
#include <optional>
#include <utility>

#include "base/ints.h"
#include "bindings/array_in.h"
#include "bindings/bindings.h"
#include "rows/cuda/row_ops.h"
#include "rows/row_ops.h"

namespace py = pybind11;

namespace batchllm {
namespace {

constexpr Where kWhere = Where::kCpuOrCuda;

// The element type of all of the tensors, which lie on one device and whose rows must be contiguous.
DType common_type(std::initializer_list<const Tensor*> tensors) {
    const Tensor& first = **tensors.begin();
    if (first.is_cuda()) {
        first.expect_type({ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat16});
    } else {
        first.expect_type({ElementType::kFloat32, ElementType::kBFloat16});
    }
    for (const Tensor* tensor : tensors) {
        tensor->expect_device_of(first);
        tensor->expect_type({first.type()});
        tensor->expect_unit_last_stride();
    }
    if (first.type() == ElementType::kFloat32) return DType::kFloat32;
    return first.type() == ElementType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
}

// [num_rows, num_heads, size], or [num_rows, size] for one head.
HeadRows head_rows(const Tensor& tensor, Dim& num_rows, Dim& num_heads, Dim& size) {
    if (tensor.num_dims() == 2 && (num_heads.size < 0 || num_heads.size == 1)) {
        num_heads.set(1, tensor.name());
        check_shape(tensor, {&num_rows, &size});
        return {tensor.data(), tensor.stride(0), 0};
    }
    check_shape(tensor, {&num_rows, &num_heads, &size});
    return {tensor.data(), tensor.stride(0), tensor.stride(1)};
}

void rms_norm_of(py::handle x_object, py::handle weight_object, double eps, py::handle out_object,
                 py::handle delta_object, int32_t num_threads, uintptr_t stream) {
    const Tensor x("x", x_object, kWhere), weight("weight", weight_object, kWhere), out("out", out_object, kWhere);
    std::optional<Tensor> delta;
    Dim num_rows{"num_rows"}, num_heads{"num_heads"}, size{"size"};
    RmsNormParams params{};
    params.x = head_rows(x, num_rows, num_heads, size);
    params.out = head_rows(out, num_rows, num_heads, size);
    check_shape(weight, {&size});
    params.dtype = common_type({&x, &weight, &out});
    out.expect_writable();
    if (!delta_object.is_none()) {
        delta.emplace("delta", delta_object, kWhere);
        params.delta = head_rows(*delta, num_rows, num_heads, size);
        common_type({&x, &*delta});
        x.expect_writable();
    }
    params.weight = weight.data();
    params.num_heads = num_heads.size;
    params.size = size.size;
    params.eps = static_cast<float>(eps);
    num_threads = thread_count(num_threads, omp_get_max_threads());
    const py::gil_scoped_release release;
    if constexpr (cuda::kIsBuilt) {
        if (x.is_cuda()) return cuda::rms_norm(params, num_rows.size, {x.device_id(), stream});
    }
    rms_norm(params, num_rows.size, num_threads);
}

void rotate_of(py::handle x_object, py::handle cos_object, py::handle sin_object, int32_t num_threads,
               uintptr_t stream) {
    const Tensor x("x", x_object, kWhere), cos("cos", cos_object, kWhere), sin("sin", sin_object, kWhere);
    Dim num_rows{"num_rows"}, num_heads{"num_heads"}, size{"size"}, half{"size / 2"};
    check_shape(x, {&num_rows, &num_heads, &size});
    if (size.size % 2 != 0) throw py::value_error("x: expected an even size, got " + std::to_string(size.size));
    half.set(size.size / 2, "x");
    for (const Tensor* tensor : {&cos, &sin}) {
        check_shape(*tensor, {&num_rows, &half});
        tensor->expect_device_of(x);
        tensor->expect_type({ElementType::kFloat32});
        tensor->expect_unit_last_stride();
    }
    const RotateParams params{
        .dtype = common_type({&x}),
        .x = {x.data(), x.stride(0), x.stride(1)},
        .cos = static_cast<const float*>(cos.data()),
        .sin = static_cast<const float*>(sin.data()),
        .cos_stride = cos.stride(0),
        .sin_stride = sin.stride(0),
        .num_heads = num_heads.size,
        .size = size.size,
    };
    x.expect_writable();
    num_threads = thread_count(num_threads, omp_get_max_threads());
    const py::gil_scoped_release release;
    if constexpr (cuda::kIsBuilt) {
        if (x.is_cuda()) return cuda::rotate(params, num_rows.size, {x.device_id(), stream});
    }
    rotate(params, num_rows.size, num_threads);
}

void norm_rotate_append_of(py::handle qkv_object, py::handle cos_object, py::handle sin_object, py::handle slots_object,
                           py::handle k_pages_object, py::handle v_pages_object, py::handle q_norm_object,
                           py::handle k_norm_object, double eps, uintptr_t stream) {
    const Tensor qkv("qkv", qkv_object, Where::kCuda), slots("slots", slots_object, Where::kCuda);
    const Tensor cos("cos", cos_object, Where::kCuda), sin("sin", sin_object, Where::kCuda);
    const Tensor k_pages("k_pages", k_pages_object, Where::kCuda), v_pages("v_pages", v_pages_object, Where::kCuda);
    Dim num_rows{"num_rows"}, num_heads{"num_qo_heads + 2 num_kv_heads"}, size{"size"}, half{"size / 2"};
    Dim num_pages{"num_pages"}, page_size{"page_size"}, num_kv_heads{"num_kv_heads"};
    check_shape(qkv, {&num_rows, &num_heads, &size});
    qkv.expect_type({ElementType::kBFloat16, ElementType::kFloat16});
    qkv.expect_writable();
    if (size.size % 16 != 0 || size.size > 256) {
        throw py::value_error("qkv: expected a size of at most 256 and a multiple of 16, got " +
                              std::to_string(size.size));
    }
    half.set(size.size / 2, "qkv");
    for (const Tensor* tensor : {&cos, &sin}) {
        check_shape(*tensor, {&num_rows, &half});
        tensor->expect_type({ElementType::kFloat32});
    }
    check_shape(slots, {&num_rows});
    for (const Tensor* tensor : {&k_pages, &v_pages}) {
        check_shape(*tensor, {&num_pages, &page_size, &num_kv_heads, &size});
        tensor->expect_type({qkv.type()});
        tensor->expect_writable();
    }
    if (num_heads.size < 2 * num_kv_heads.size) {
        throw py::value_error("qkv: expected at least " + std::to_string(2 * num_kv_heads.size) +
                              " heads, those of k and v, got " + std::to_string(num_heads.size));
    }
    std::optional<Tensor> q_norm, k_norm;
    if (q_norm_object.is_none() != k_norm_object.is_none()) {
        throw py::value_error("q_norm, k_norm: expected both or neither");
    }
    if (!q_norm_object.is_none()) {
        q_norm.emplace("q_norm", q_norm_object, Where::kCuda);
        k_norm.emplace("k_norm", k_norm_object, Where::kCuda);
    }
    constexpr int64_t kVectorBytes = 16;
    for (const Tensor* tensor : {&qkv, &cos, &sin, &k_pages, &v_pages, q_norm ? &std::as_const(*q_norm) : &qkv,
                                 k_norm ? &std::as_const(*k_norm) : &qkv}) {
        tensor->expect_device_of(qkv);
        tensor->expect_aligned(kVectorBytes);
    }
    for (const std::optional<Tensor>* norm : {&q_norm, &k_norm}) {
        if (!*norm) continue;
        check_shape(**norm, {&size});
        (*norm)->expect_type({qkv.type()});
    }
    slots.expect_device_of(qkv);
    const int64_t num_slots = num_pages.size * page_size.size;
    if (num_slots > std::numeric_limits<uint32_t>::max()) {
        throw py::value_error("num_pages * page_size: expected at most 4294967295 on a GPU, got " +
                              std::to_string(num_slots));
    }
    const auto heads = [](const Tensor& pages) {
        return PagedHeads{pages.data(), pages.stride(0), pages.stride(1), pages.stride(2)};
    };
    const NormRotateAppendParams params{
        .dtype = qkv.type() == ElementType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16,
        .qkv = {qkv.data(), qkv.stride(0), qkv.stride(1)},
        .q_norm = q_norm ? q_norm->data() : nullptr,
        .k_norm = k_norm ? k_norm->data() : nullptr,
        .eps = static_cast<float>(eps),
        .cos = static_cast<const float*>(cos.data()),
        .sin = static_cast<const float*>(sin.data()),
        .cos_stride = cos.stride(0),
        .sin_stride = sin.stride(0),
        .slots = int64_array(slots).data(),
        .k_pages = heads(k_pages),
        .v_pages = heads(v_pages),
        .page_size = page_size.size,
        .num_slots = static_cast<uint32_t>(num_slots),
        .num_rows = num_rows.size,
        .num_qo_heads = num_heads.size - 2 * num_kv_heads.size,
        .num_kv_heads = num_kv_heads.size,
        .size = size.size,
    };
    if constexpr (cuda::kIsBuilt) {  // without it, there are no CUDA tensors
        const py::gil_scoped_release release;
        cuda::norm_rotate_append(params, {qkv.device_id(), stream});
    }
}

void silu_and_mul_of(py::handle gate_up_object, py::handle out_object, int32_t num_threads, uintptr_t stream) {
    const Tensor gate_up("gate_up", gate_up_object, kWhere), out("out", out_object, kWhere);
    Dim num_rows{"num_rows"}, size{"size"}, both{"2 size"};
    check_shape(out, {&num_rows, &size});
    both.set(2 * size.size, "out");
    check_shape(gate_up, {&num_rows, &both});
    const SiluAndMulParams params{
        .dtype = common_type({&gate_up, &out}),
        .gate_up = gate_up.data(),
        .gate_up_stride = gate_up.stride(0),
        .out = out.data(),
        .out_stride = out.stride(0),
        .size = size.size,
    };
    out.expect_writable();
    num_threads = thread_count(num_threads, omp_get_max_threads());
    const py::gil_scoped_release release;
    if constexpr (cuda::kIsBuilt) {
        if (out.is_cuda()) return cuda::silu_and_mul(params, num_rows.size, {out.device_id(), stream});
    }
    silu_and_mul(params, num_rows.size, num_threads);
}

// [num_rows, vocab_size], of a vocabulary whose tokens int32 can name.
void check_logits(const Tensor& logits, Dim& num_rows, Dim& vocab_size) {
    check_shape(logits, {&num_rows, &vocab_size});
    if (vocab_size.size == 0) throw py::value_error(std::string(logits.name()) + ": expected at least 1 token, got 0");
    if (vocab_size.size > std::numeric_limits<int32_t>::max()) {
        throw py::value_error(std::string(logits.name()) +
                              ": expected at most 2^31 - 1 tokens, which token_ids can name, got " +
                              std::to_string(vocab_size.size));
    }
}

// A contiguous [num_rows], on the device of `logits`.
void check_column(const Tensor& column, Dim& num_rows, ElementType type, const Tensor& logits) {
    check_shape(column, {&num_rows});
    column.expect_type({type});
    column.expect_unit_last_stride();
    column.expect_device_of(logits);
}

void argmax_and_lse_of(py::handle logits_object, py::handle token_ids_object, py::handle lse_object,
                       int32_t num_threads) {
    const Tensor logits("logits", logits_object), token_ids("token_ids", token_ids_object), lse("lse", lse_object);
    Dim num_rows{"num_rows"}, vocab_size{"vocab_size"};
    check_logits(logits, num_rows, vocab_size);
    check_column(token_ids, num_rows, ElementType::kInt32, logits);
    check_column(lse, num_rows, ElementType::kFloat32, logits);
    for (const Tensor* tensor : {&token_ids, &lse}) tensor->expect_writable();
    const ArgmaxAndLseParams params{
        .dtype = common_type({&logits}),
        .logits = logits.data(),
        .row_stride = logits.stride(0),
        .vocab_size = vocab_size.size,
        .token_ids = static_cast<int32_t*>(token_ids.data()),
        .lse = static_cast<float*>(lse.data()),
    };
    num_threads = thread_count(num_threads, omp_get_max_threads());
    const py::gil_scoped_release release;
    argmax_and_lse(params, num_rows.size, num_threads);
}

void sample_of(py::handle logits_object, py::handle temperature_object, py::handle top_k_object,
               py::handle top_p_object, py::handle min_p_object, py::handle uniform_object, py::handle token_ids_object,
               py::handle logprobs_object, py::handle lse_object, py::handle ruled_logits_object,
               py::handle ruled_rows_object, py::handle allowed_object, py::handle allowed_rows_object,
               int32_t num_threads, uintptr_t stream) {
    const Tensor logits("logits", logits_object, kWhere), temperature("temperature", temperature_object, kWhere);
    const Tensor top_k("top_k", top_k_object, kWhere), top_p("top_p", top_p_object, kWhere);
    const Tensor min_p("min_p", min_p_object, kWhere), uniform("uniform", uniform_object, kWhere);
    const Tensor token_ids("token_ids", token_ids_object, kWhere), logprobs("logprobs", logprobs_object, kWhere);
    const Tensor lse("lse", lse_object, kWhere);
    Dim num_rows{"num_rows"}, vocab_size{"vocab_size"}, num_ruled{"num_ruled"};
    Dim num_allowed{"num_allowed"}, num_words{"vocab_size / 32, rounded up"};
    check_logits(logits, num_rows, vocab_size);
    for (const Tensor* column : {&temperature, &top_p, &min_p, &logprobs, &lse}) {
        check_column(*column, num_rows, ElementType::kFloat32, logits);
    }
    for (const Tensor* column : {&top_k, &token_ids}) check_column(*column, num_rows, ElementType::kInt32, logits);
    check_column(uniform, num_rows, ElementType::kFloat64, logits);
    for (const Tensor* column : {&token_ids, &logprobs, &lse}) column->expect_writable();
    if (ruled_logits_object.is_none() != ruled_rows_object.is_none()) {
        throw py::value_error("ruled_logits, ruled_rows: expected both or neither");
    }
    std::optional<Tensor> ruled_logits, ruled_rows;
    if (!ruled_logits_object.is_none()) {
        ruled_logits.emplace("ruled_logits", ruled_logits_object, kWhere);
        ruled_rows.emplace("ruled_rows", ruled_rows_object, kWhere);
        check_shape(*ruled_logits, {&num_ruled, &vocab_size});
        ruled_logits->expect_device_of(logits);
        ruled_logits->expect_type({ElementType::kFloat32});
        ruled_logits->expect_unit_last_stride();
        check_column(*ruled_rows, num_rows, ElementType::kInt32, logits);
    }
    if (allowed_object.is_none() != allowed_rows_object.is_none()) {
        throw py::value_error("allowed, allowed_rows: expected both or neither");
    }
    std::optional<Tensor> allowed, allowed_rows;
    if (!allowed_object.is_none()) {
        allowed.emplace("allowed", allowed_object, kWhere);
        allowed_rows.emplace("allowed_rows", allowed_rows_object, kWhere);
        num_words.set(ceil_div(vocab_size.size, 32), "logits");
        check_shape(*allowed, {&num_allowed, &num_words});
        allowed->expect_device_of(logits);
        allowed->expect_type({ElementType::kInt32});
        allowed->expect_unit_last_stride();
        check_column(*allowed_rows, num_rows, ElementType::kInt32, logits);
    }
    const SampleParams params{
        .dtype = common_type({&logits}),
        .logits = logits.data(),
        .row_stride = logits.stride(0),
        .vocab_size = vocab_size.size,
        .ruled_logits = ruled_logits ? static_cast<const float*>(ruled_logits->data()) : nullptr,
        .ruled_row_stride = ruled_logits ? ruled_logits->stride(0) : 0,
        .num_ruled = ruled_logits ? num_ruled.size : 0,
        .ruled_rows = ruled_rows ? static_cast<const int32_t*>(ruled_rows->data()) : nullptr,
        .allowed = allowed ? static_cast<const int32_t*>(allowed->data()) : nullptr,
        .allowed_stride = allowed ? allowed->stride(0) : 0,
        .num_allowed = allowed ? num_allowed.size : 0,
        .allowed_rows = allowed_rows ? static_cast<const int32_t*>(allowed_rows->data()) : nullptr,
        .temperature = static_cast<const float*>(temperature.data()),
        .top_k = static_cast<const int32_t*>(top_k.data()),
        .top_p = static_cast<const float*>(top_p.data()),
        .min_p = static_cast<const float*>(min_p.data()),
        .uniform = static_cast<const double*>(uniform.data()),
        .token_ids = static_cast<int32_t*>(token_ids.data()),
        .logprobs = static_cast<float*>(logprobs.data()),
        .lse = static_cast<float*>(lse.data()),
    };
    num_threads = thread_count(num_threads, omp_get_max_threads());
    const py::gil_scoped_release release;
    if constexpr (cuda::kIsBuilt) {
        if (logits.is_cuda()) return cuda::sample(params, num_rows.size, {logits.device_id(), stream});
    }
    sample(params, num_rows.size, num_threads);
}

}  // namespace

void bind_ops(py::module_& module) {
    module.def("rms_norm", &rms_norm_of, py::arg("x"), py::arg("weight"), py::kw_only(), py::arg("eps"), py::arg("out"),
               py::arg("delta") = py::none(), py::arg("num_threads") = 0, py::arg("stream") = 0,
               "Root-mean-square norm of every row; with delta, of x + delta, which x becomes.");
    module.def("rotate", &rotate_of, py::arg("x"), py::arg("cos"), py::arg("sin"), py::kw_only(),
               py::arg("num_threads") = 0, py::arg("stream") = 0, "Rotary embedding, in place.");
    module.def("norm_rotate_append", &norm_rotate_append_of, py::arg("qkv"), py::arg("cos"), py::arg("sin"),
               py::arg("slots"), py::arg("k_pages"), py::arg("v_pages"), py::kw_only(), py::arg("q_norm") = py::none(),
               py::arg("k_norm") = py::none(), py::arg("eps") = 0.0, py::arg("stream") = 0,
               "Norms and rotates q in place and k, and writes k and v into their slots.");
    module.def("silu_and_mul", &silu_and_mul_of, py::arg("gate_up"), py::kw_only(), py::arg("out"),
               py::arg("num_threads") = 0, py::arg("stream") = 0, "out = silu(gate) * up.");
    module.def("argmax_and_lse", &argmax_and_lse_of, py::arg("logits"), py::kw_only(), py::arg("token_ids"),
               py::arg("lse"), py::arg("num_threads") = 0, "The largest logit of every row and log(sum(exp(logits))).");
    module.def("sample", &sample_of, py::arg("logits"), py::kw_only(), py::arg("temperature"), py::arg("top_k"),
               py::arg("top_p"), py::arg("min_p"), py::arg("uniform"), py::arg("token_ids"), py::arg("logprobs"),
               py::arg("lse"), py::arg("ruled_logits") = py::none(), py::arg("ruled_rows") = py::none(),
               py::arg("allowed") = py::none(), py::arg("allowed_rows") = py::none(), py::arg("num_threads") = 0,
               py::arg("stream") = 0, "One token per row of logits.");
}

}  // namespace batchllm
