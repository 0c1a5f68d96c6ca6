#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <variant>

#include "attention/cpu/attention_cpu.h"
#include "attention/cpu/attention_ref.h"
#include "attention/cuda/attention_gpu.h"
#include "attention/cuda/plan_layout.h"
#include "attention/cuda/tile_shape.h"
#include "bindings/array_out.h"
#include "bindings/batch_arrays.h"
#include "bindings/bindings.h"
#include "bindings/float_tensor.h"
#include "cpu/isa.h"
#include "cpu/time_slices.h"

namespace py = pybind11;

namespace batchllm {
namespace {

struct AttentionOptions {
    py::object out;
    py::object lse;  // True: a new one; None: nobody wants it
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

    AttentionTensors(py::handle q, py::handle k_pages, py::handle v_pages, AttentionOptions options,
                     Where where = Where::kCpu)
        : where_(where),
          options_(std::move(options)),
          q_("q", q, options_.dtype, where),
          k_pages_("k_pages", k_pages, options_.dtype, where),
          v_pages_("v_pages", v_pages, options_.dtype, where),
          q_object_(q) {}

    // The sizes that a plan gives.
    void expect(const AttentionShape& shape, int64_t num_rows) {
        num_tokens.set(num_rows, "the plan");
        num_qo_heads.set(shape.num_qo_heads, "the plan");
        num_kv_heads.set(shape.num_kv_heads, "the plan");
        head_dim.set(shape.head_dim, "the plan");
        page_size.set(shape.page_size, "the plan");
    }

    void check_inputs() {
        check_shape(q_, {&num_tokens, &num_qo_heads, &head_dim});
        check_shape(k_pages_, {&num_pages, &page_size, &num_kv_heads, &head_dim});
        check_shape(v_pages_, {&num_pages, &page_size, &num_kv_heads, &head_dim});
        v_pages_.expect_type({k_pages_.type()});
    }

    // Makes the outputs that were not given.
    AttentionParams check_all() {
        check_inputs();
        if (options_.out.is_none()) {
            options_.out =
                new_output("out", q_object_, NewType::kLikeQ, {num_tokens.size, num_qo_heads.size, head_dim.size});
        }
        if (options_.lse.is(py::bool_(true))) {
            options_.lse = new_output("lse", q_object_, NewType::kFloat32, {num_tokens.size, num_qo_heads.size});
        }
        out_.emplace("out", options_.out, options_.dtype, where_);
        out_->expect_writable();
        check_shape(*out_, {&num_tokens, &num_qo_heads, &head_dim});
        if (!options_.lse.is_none()) {
            lse_.emplace("lse", options_.lse, where_);
            lse_->expect_type({ElementType::kFloat32});
            lse_->expect_writable();
            check_shape(*lse_, {&num_tokens, &num_qo_heads});
        }
        if (!options_.sinks.is_none()) {
            sinks_.emplace("sinks", options_.sinks, where_);
            sinks_->expect_type({ElementType::kFloat32});
            check_shape(*sinks_, {&num_qo_heads});
            sinks_->expect_unit_last_stride();
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
            .lse = lse_ ? LseTensor{static_cast<float*>(lse_->data()), lse_->stride(0), lse_->stride(1)} : LseTensor{},
            .softmax_scale = static_cast<float>(scale),
            .soft_cap = static_cast<float>(options_.soft_cap),
            .sinks = sinks_ ? static_cast<const float*>(sinks_->data()) : nullptr,
        };
    }

    // What the kernels of a GPU ask for beyond that.
    void check_for_gpu(const Tensor& plan_buffer) const {
        q_.expect_device_of(plan_buffer);
        for (const Tensor* tensor : {&k_pages_, &v_pages_, &*out_}) {
            tensor->expect_type({q_.type()});
            tensor->expect_device_of(q_);
        }
        if (lse_) lse_->expect_device_of(q_);
        if (sinks_) sinks_->expect_device_of(q_);
        constexpr int64_t kVectorBytes = 16;
        for (const Tensor* tensor : {&q_, &k_pages_, &v_pages_, &*out_}) tensor->expect_aligned(kVectorBytes);
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
    Where where_;
    AttentionOptions options_;
    FloatTensor q_, k_pages_, v_pages_;
    py::handle q_object_;
    std::optional<FloatTensor> out_;
    std::optional<Tensor> lse_, sinks_;
};

// A packed plan in a GPU's memory, and the memory of its partial states.
class DevicePlan {
 public:
    DevicePlan(const cuda::PlanLayout& layout, py::handle buffer, py::handle workspace)
        : layout_(layout), buffer_("buffer", buffer, Where::kCuda), workspace_("workspace", workspace, Where::kCuda) {
        int32_array(buffer_);  // one dimension, contiguous
        workspace_.expect_type({ElementType::kFloat32});
        workspace_.expect_device_of(buffer_);
        workspace_.expect_writable();
        Dim num_ints{"num_ints", layout.num_ints(), "the layout"}, num_floats{"num_floats"};
        check_shape(buffer_, {&num_ints});
        check_shape(workspace_, {&num_floats});
        workspace_.expect_unit_last_stride();
        if (num_floats.size < layout.num_workspace_floats()) {
            throw py::value_error("workspace: expected at least " + std::to_string(layout.num_workspace_floats()) +
                                  " elements, got " + std::to_string(num_floats.size));
        }
    }

    const cuda::PlanLayout& layout() const { return layout_; }
    const Tensor& buffer() const { return buffer_; }
    cuda::AttentionCall call(const AttentionParams& params) const {
        auto* const workspace = static_cast<float*>(workspace_.data());
        return layout_.call(layout_.arrays(static_cast<const int32_t*>(buffer_.data())), params, workspace,
                            workspace + layout_.num_partial_outs() / 2);
    }

 private:
    const cuda::PlanLayout layout_;
    Tensor buffer_, workspace_;
};

py::tuple attention_on_gpu(const DevicePlan& plan, py::handle q, py::handle k_pages, py::handle v_pages,
                           AttentionOptions options, uintptr_t stream) {
    AttentionTensors tensors(q, k_pages, v_pages, std::move(options), Where::kCuda);
    tensors.expect(plan.layout().shape(), plan.layout().sizes().num_rows);
    tensors.num_pages.set(plan.layout().num_pages(), "the plan");
    const AttentionParams params = tensors.check_all();
    tensors.check_for_gpu(plan.buffer());
    if constexpr (cuda::kIsBuilt) {  // without it, no DevicePlan can be made
        const py::gil_scoped_release release;
        cuda::attention(plan.call(params), {plan.buffer().device_id(), stream});
    }
    return tensors.results();
}

py::tuple attention(const AttentionPlan& plan, py::handle q, py::handle k_pages, py::handle v_pages,
                    AttentionOptions options, int32_t num_threads) {
    AttentionTensors tensors(q, k_pages, v_pages, std::move(options));
    tensors.expect(plan.shape(), plan.num_tokens());
    const AttentionParams params = tensors.check_all();
    tensors.check_page_ids(plan.page_ids(), plan.max_page_id());
    num_threads = thread_count(num_threads, plan.num_threads());
    {
        const py::gil_scoped_release release;
        run_attention_cpu(plan, params, num_threads);
    }
    return tensors.results();
}

py::tuple attention_reference(const AttentionBatch& batch, py::handle q, py::handle k_pages, py::handle v_pages,
                              AttentionOptions options, int32_t window_left) {
    AttentionTensors tensors(q, k_pages, v_pages, std::move(options));
    if (!batch.span_indptr.empty()) tensors.num_tokens.set(batch.span_indptr.back(), "span_indptr");
    tensors.check_inputs();
    const AttentionShape shape{
        .num_qo_heads = int32_size(tensors.num_qo_heads),
        .num_kv_heads = int32_size(tensors.num_kv_heads),
        .head_dim = int32_size(tensors.head_dim),
        .page_size = int32_size(tensors.page_size),
        .window_left = window_left,
    };
    shape.validate();
    batch.validate(shape.page_size);
    const AttentionParams params = tensors.check_all();
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

    py::class_<DevicePlan>(module, "DevicePlan", "A packed plan in a GPU's memory, which attention() takes.")
        .def(py::init<const cuda::PlanLayout&, py::handle, py::handle>(), py::arg("layout"), py::arg("buffer"),
             py::arg("workspace"));

    module.def(
        "attention",
        [](const std::variant<const AttentionPlan*, const DevicePlan*>& plan, Object q, Object k_pages, Object v_pages,
           py::object out, py::object lse, std::optional<double> softmax_scale, double soft_cap, py::object sinks,
           std::optional<std::string> dtype, int32_t num_threads, uintptr_t stream) {
            AttentionOptions options{std::move(out), std::move(lse), softmax_scale, soft_cap, std::move(sinks), dtype};
            if (const auto* const on_gpu = std::get_if<const DevicePlan*>(&plan)) {
                return attention_on_gpu(**on_gpu, q, k_pages, v_pages, std::move(options), stream);
            }
            return attention(*std::get<const AttentionPlan*>(plan), q, k_pages, v_pages, std::move(options),
                             num_threads);
        },
        py::arg("plan"), py::arg("q"), py::arg("k_pages"), py::arg("v_pages"), py::kw_only(), py::arg("out") = none,
        py::arg("lse") = true, py::arg("softmax_scale") = none, py::arg("soft_cap") = 0.0, py::arg("sinks") = none,
        py::arg("dtype") = none, py::arg("num_threads") = 0, py::arg("stream") = 0,
        "Attention of one layer; returns (out, lse).");

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
        py::arg("out") = none, py::arg("lse") = true, py::arg("softmax_scale") = none, py::arg("soft_cap") = 0.0,
        py::arg("sinks") = none, py::arg("dtype") = none, py::arg("window_left") = -1,
        "attention() in float64 and plain loops, without a plan.");

    module.def("has_cuda", [] { return cuda::kIsBuilt; }, "Whether this build has CUDA kernels.");
    module.def(
        "gpu_head_dims", [] { return std::vector<int>(std::begin(cuda::kHeadDims), std::end(cuda::kHeadDims)); },
        "What head_dims attention on a GPU is compiled for.");
    module.def("cpu_isa", [] { return name(selected_isa()); }, "The instruction set of the CPU kernel in use.");
    module.def(
        "cpu_isas",
        [] {
            py::list names;
            for (const CpuIsa isa : available_isas()) names.append(name(isa));
            return names;
        },
        "The instruction sets that BATCHLLM_ISA may name on this machine, slowest first.");
    module.def(
        "shorten_time_slices", [](int32_t num_threads) { shorten_time_slices(thread_count(num_threads, 1)); },
        py::arg("num_threads"), "Asks the kernel for short time slices for the threads of the CPU kernels.");
}

}  // namespace batchllm
