#include <pybind11/stl.h>

#include <cmath>
#include <optional>

#include "attention/attention.h"
#include "attention/cpu/attention_ref.h"
#include "attention/cpu/cpu_isa.h"
#include "attention/cuda/cuda.h"
#include "bindings/batch_arrays.h"
#include "bindings/bindings.h"
#include "bindings/float_tensor.h"

namespace py = pybind11;

namespace batchllm {
namespace {

struct AttentionOptions {
    py::object out;
    py::object lse;
    std::optional<double> softmax_scale;
    double soft_cap;
    py::object sinks;
    std::optional<std::string> dtype;
};

// All tensors of a call, checked against each other.
class AttentionTensors {
 public:
    Dim num_tokens{"num_tokens"}, num_qo_heads{"num_qo_heads"}, head_dim{"head_dim"};
    Dim num_pages{"num_pages"}, page_size{"page_size"}, num_kv_heads{"num_kv_heads"};

    AttentionTensors(py::handle q, py::handle k_pages, py::handle v_pages, AttentionOptions options)
        : options_(std::move(options)),
          q_("q", q, options_.dtype),
          k_pages_("k_pages", k_pages, options_.dtype),
          v_pages_("v_pages", v_pages, options_.dtype),
          q_object_(q) {}

    AttentionParams check() {
        check_shape(q_, {&num_tokens, &num_qo_heads, &head_dim});
        check_shape(k_pages_, {&num_pages, &page_size, &num_kv_heads, &head_dim});
        check_shape(v_pages_, {&num_pages, &page_size, &num_kv_heads, &head_dim});
        v_pages_.expect_type({k_pages_.type()});
        if (options_.out.is_none()) {
            options_.out =
                new_output("out", q_object_, NewType::kLikeQ, {num_tokens.size, num_qo_heads.size, head_dim.size});
        }
        if (options_.lse.is_none()) {
            options_.lse = new_output("lse", q_object_, NewType::kFloat32, {num_tokens.size, num_qo_heads.size});
        }
        out_.emplace("out", options_.out, options_.dtype);
        out_->expect_writable();
        check_shape(*out_, {&num_tokens, &num_qo_heads, &head_dim});
        lse_.emplace("lse", options_.lse);
        lse_->expect_type({ElementType::kFloat32});
        lse_->expect_writable();
        check_shape(*lse_, {&num_tokens, &num_qo_heads});
        if (!options_.sinks.is_none()) {
            sinks_.emplace("sinks", options_.sinks, std::nullopt);
            sinks_->expect_type({ElementType::kFloat32});
            check_shape(*sinks_, {&num_qo_heads});
        }
        const double scale = options_.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim.size)));
        if (!std::isfinite(scale)) throw py::value_error("softmax_scale: expected a finite number");
        if (!(options_.soft_cap >= 0.0) || !std::isfinite(options_.soft_cap)) {
            throw py::value_error("soft_cap: expected a finite number of at least 0 (0: off)");
        }
        return {
            .q = {q_.data(), q_.dtype(), q_.stride(0), q_.stride(1)},
            .k_pages = {k_pages_.data(), k_pages_.stride(0), k_pages_.stride(1), k_pages_.stride(2)},
            .v_pages = {v_pages_.data(), v_pages_.stride(0), v_pages_.stride(1), v_pages_.stride(2)},
            .kv_dtype = k_pages_.dtype(),
            .out = {out_->data(), out_->dtype(), out_->stride(0), out_->stride(1)},
            .lse = {static_cast<float*>(lse_->data()), lse_->stride(0), lse_->stride(1)},
            .softmax_scale = static_cast<float>(scale),
            .soft_cap = static_cast<float>(options_.soft_cap),
            .sinks = sinks_ ? static_cast<const float*>(sinks_->data()) : nullptr,
        };
    }

    void check_page_ids(std::span<const int32_t> page_ids, int32_t max_page_id) const {
        if (max_page_id < num_pages.size) return;
        size_t index = 0;
        while (page_ids[index] < num_pages.size) ++index;
        throw py::value_error("segment_page_ids[" + std::to_string(index) + "]: expected a value in [0, " +
                              std::to_string(num_pages.size) + "), the pages of k_pages, got " +
                              std::to_string(page_ids[index]));
    }

    py::tuple results() const { return py::make_tuple(options_.out, options_.lse); }

 private:
    AttentionOptions options_;
    FloatTensor q_, k_pages_, v_pages_;
    py::handle q_object_;
    std::optional<FloatTensor> out_, sinks_;
    std::optional<Tensor> lse_;
};

py::tuple attention(const AttentionPlan& plan, py::handle q, py::handle k_pages, py::handle v_pages,
                    AttentionOptions options, int32_t num_threads) {
    AttentionTensors tensors(q, k_pages, v_pages, std::move(options));
    const AttentionShape& shape = plan.shape();
    tensors.num_tokens.set(plan.num_tokens(), "the plan");
    tensors.num_qo_heads.set(shape.num_qo_heads, "the plan");
    tensors.num_kv_heads.set(shape.num_kv_heads, "the plan");
    tensors.head_dim.set(shape.head_dim, "the plan");
    tensors.page_size.set(shape.page_size, "the plan");
    const AttentionParams params = tensors.check();
    tensors.check_page_ids(plan.page_ids(), plan.max_page_id());
    num_threads = thread_count(num_threads, plan.num_threads());
    {
        const py::gil_scoped_release release;
        run_attention(plan, params, num_threads);
    }
    return tensors.results();
}

py::tuple attention_reference(const AttentionBatch& batch, py::handle q, py::handle k_pages, py::handle v_pages,
                              AttentionOptions options, int32_t window_left) {
    AttentionTensors tensors(q, k_pages, v_pages, std::move(options));
    if (!batch.span_indptr.empty()) tensors.num_tokens.set(batch.span_indptr.back(), "span_indptr");
    const AttentionParams params = tensors.check();
    const AttentionShape shape{
        .num_qo_heads = static_cast<int32_t>(tensors.num_qo_heads.size),
        .num_kv_heads = static_cast<int32_t>(tensors.num_kv_heads.size),
        .head_dim = static_cast<int32_t>(tensors.head_dim.size),
        .page_size = static_cast<int32_t>(tensors.page_size.size),
        .window_left = window_left,
    };
    shape.validate();
    batch.validate(shape.page_size);
    int32_t max_page_id = -1;
    for (int32_t page_id : batch.segment_page_ids) max_page_id = std::max(max_page_id, page_id);
    tensors.check_page_ids(batch.segment_page_ids, max_page_id);
    {
        const py::gil_scoped_release release;
        attention_ref(batch, shape, params);
    }
    return tensors.results();
}

}  // namespace

void bind_attention(py::module_& module) {
    using Object = const py::object&;
    const py::object none = py::none();

    module.def(
        "attention",
        [](const AttentionPlan& plan, Object q, Object k_pages, Object v_pages, py::object out, py::object lse,
           std::optional<double> softmax_scale, double soft_cap, py::object sinks, std::optional<std::string> dtype,
           int32_t num_threads) {
            return attention(plan, q, k_pages, v_pages,
                             {std::move(out), std::move(lse), softmax_scale, soft_cap, std::move(sinks), dtype},
                             num_threads);
        },
        py::arg("plan"), py::arg("q"), py::arg("k_pages"), py::arg("v_pages"), py::kw_only(), py::arg("out") = none,
        py::arg("lse") = none, py::arg("softmax_scale") = none, py::arg("soft_cap") = 0.0, py::arg("sinks") = none,
        py::arg("dtype") = none, py::arg("num_threads") = 0, "Attention of one layer; returns (out, lse).");

    module.def(
        "attention_ref",
        [](Object span_indptr, Object span_begin, Object link_indptr, Object link_segment, Object segment_page_indptr,
           Object segment_page_ids, Object segment_begin, Object segment_num_tokens, Object q, Object k_pages,
           Object v_pages, py::object out, py::object lse, std::optional<double> softmax_scale, double soft_cap,
           py::object sinks, std::optional<std::string> dtype, int32_t window_left) {
            const BatchArrays arrays(span_indptr, span_begin, link_indptr, link_segment, segment_page_indptr,
                                     segment_page_ids, segment_begin, segment_num_tokens);
            return attention_reference(
                arrays.batch(), q, k_pages, v_pages,
                {std::move(out), std::move(lse), softmax_scale, soft_cap, std::move(sinks), dtype}, window_left);
        },
        py::arg("span_indptr"), py::arg("span_begin"), py::arg("link_indptr"), py::arg("link_segment"),
        py::arg("segment_page_indptr"), py::arg("segment_page_ids"), py::arg("segment_begin"),
        py::arg("segment_num_tokens"), py::arg("q"), py::arg("k_pages"), py::arg("v_pages"), py::kw_only(),
        py::arg("out") = none, py::arg("lse") = none, py::arg("softmax_scale") = none, py::arg("soft_cap") = 0.0,
        py::arg("sinks") = none, py::arg("dtype") = none, py::arg("window_left") = -1,
        "attention() in float64 and plain loops, without a plan.");

    module.def("has_cuda", [] { return cuda::kIsBuilt; }, "Whether this build has CUDA kernels.");
    module.def("cpu_isa", [] { return selected_kernel().name; }, "The instruction set of the CPU kernel in use.");
    module.def(
        "cpu_isas",
        [] {
            py::list names;
            for (const Kernel* kernel : available_kernels()) names.append(kernel->name);
            return names;
        },
        "The instruction sets that BATCHLLM_ISA may name on this machine, slowest first.");
}

}  // namespace batchllm
