#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>

#include "attention/append_kv.h"
#include "attention/attention.h"
#include "attention/cpu/attention_ref.h"
#include "attention/cpu/cpu_isa.h"
#include "attention/cuda/cuda.h"
#include "attention/merge.h"
#include "bindings/bindings.h"
#include "bindings/dlpack_tensor.h"

namespace py = pybind11;

namespace batchllm {
namespace {

int32_t thread_count(int32_t num_threads, int32_t otherwise) {
    if (num_threads < 0) throw py::value_error("num_threads: expected at least 0, got " + std::to_string(num_threads));
    return num_threads == 0 ? otherwise : num_threads;
}

Sharing sharing_of(py::handle share) {
    if (share.is(py::bool_(true))) return Sharing::kWhereItPays;
    if (share.is(py::bool_(false))) return Sharing::kNever;
    if (py::isinstance<py::str>(share) && share.cast<std::string>() == "always") return Sharing::kAlways;
    throw py::value_error("share: expected True, False or \"always\", got " + std::string(py::repr(share)));
}

// The arrays of a token batch, kept alive while they are read.
struct BatchArrays {
    Tensor span_indptr, span_begin, link_indptr, link_segment;
    Tensor segment_page_indptr, segment_page_ids, segment_begin, segment_num_tokens;

    BatchArrays(py::handle span_indptr, py::handle span_begin, py::handle link_indptr, py::handle link_segment,
                py::handle segment_page_indptr, py::handle segment_page_ids, py::handle segment_begin,
                py::handle segment_num_tokens)
        : span_indptr("span_indptr", span_indptr),
          span_begin("span_begin", span_begin),
          link_indptr("link_indptr", link_indptr),
          link_segment("link_segment", link_segment),
          segment_page_indptr("segment_page_indptr", segment_page_indptr),
          segment_page_ids("segment_page_ids", segment_page_ids),
          segment_begin("segment_begin", segment_begin),
          segment_num_tokens("segment_num_tokens", segment_num_tokens) {}

    AttentionBatch batch() const {
        return {int32_array(span_indptr),   int32_array(span_begin),          int32_array(link_indptr),
                int32_array(link_segment),  int32_array(segment_page_indptr), int32_array(segment_page_ids),
                int32_array(segment_begin), int32_array(segment_num_tokens)};
    }
};

// `dtype` says what the bits of uint16 arrays mean: NumPy has no bfloat16.
class FloatTensor : public Tensor {
 public:
    FloatTensor(const char* name, py::handle object, const std::optional<std::string>& dtype, Where where = Where::kCpu)
        : Tensor(name, object, where) {
        if (dtype && *dtype != "bfloat16" && *dtype != "float32") {
            throw py::value_error("dtype: expected \"float32\" or \"bfloat16\", got \"" + *dtype + "\"");
        }
        if (dtype == "bfloat16") reinterpret_uint16_as_bfloat16();
        expect_type({ElementType::kFloat32, ElementType::kBFloat16});
        if (num_dims() > 0) expect_unit_last_stride();
    }
    DType dtype() const { return type() == ElementType::kFloat32 ? DType::kFloat32 : DType::kBFloat16; }
};

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

LseBase lse_base_of(const std::string& text) {
    if (text == "e") return LseBase::kE;
    if (text == "2") return LseBase::kTwo;
    throw py::value_error("lse_base: expected \"e\" or \"2\", got \"" + text + "\"");
}

// out [num_tokens, num_states, num_heads, head_dim] and lse without head_dim; or both without num_states, for one
// state.
template <typename T>
StatesView<T> states_view(const Tensor& out, const Tensor& lse) {
    using Lse = std::conditional_t<std::is_const_v<T>, const float, float>;
    const bool one = out.num_dims() == 3;
    const int head = one ? 1 : 2;
    return {static_cast<T*>(out.data()),
            {out.stride(0), one ? 0 : out.stride(1), out.stride(head)},
            static_cast<Lse*>(lse.data()),
            {lse.stride(0), one ? 0 : lse.stride(1), lse.stride(head)},
            one ? 1 : out.size(1)};
}

struct StateTensors {
    FloatTensor out, lse;
    StateTensors(const char* out_name, py::handle out_object, const char* lse_name, py::handle lse_object)
        : out(out_name, out_object, std::nullopt, Where::kCpuOrCuda),
          lse(lse_name, lse_object, std::nullopt, Where::kCpuOrCuda) {
        lse.expect_type({ElementType::kFloat32});
        lse.expect_device_of(out);
    }
};

py::tuple merge_tensors(std::span<const StateTensors* const> inputs, py::handle like, Dim num_tokens, Dim num_heads,
                        Dim head_dim, LseBase base, uintptr_t stream) {
    const py::object out_object =
        new_output("out", like, NewType::kLikeQ, {num_tokens.size, num_heads.size, head_dim.size});
    const py::object lse_object = new_output("lse", like, NewType::kFloat32, {num_tokens.size, num_heads.size});
    const StateTensors merged("out", out_object, "lse", lse_object);
    const auto run = [&]<typename T>(T) {
        std::vector<StatesView<const T>> views;
        for (const StateTensors* input : inputs) views.push_back(states_view<const T>(input->out, input->lse));
        const StatesView<T> merged_view = states_view<T>(merged.out, merged.lse);
        const py::gil_scoped_release release;
        if constexpr (cuda::kIsBuilt) {
            if (merged.out.is_cuda()) {
                return cuda::merge_states<T>(views, merged_view, num_tokens.size, num_heads.size, head_dim.size, base,
                                             {merged.out.device_id(), stream});
            }
        }
        merge_states<T>(views, merged_view, num_tokens.size, num_heads.size, head_dim.size, base);
    };
    if (merged.out.dtype() == DType::kFloat32) {
        run(float{});
    } else {
        run(Bf16{});
    }
    return py::make_tuple(out_object, lse_object);
}

py::tuple merge_state(py::handle out_a, py::handle lse_a, py::handle out_b, py::handle lse_b,
                      const std::string& lse_base, uintptr_t stream) {
    const StateTensors a("out_a", out_a, "lse_a", lse_a);
    const StateTensors b("out_b", out_b, "lse_b", lse_b);
    Dim num_tokens{"num_tokens"}, num_heads{"num_heads"}, head_dim{"head_dim"};
    check_shape(a.out, {&num_tokens, &num_heads, &head_dim});
    check_shape(a.lse, {&num_tokens, &num_heads});
    check_shape(b.out, {&num_tokens, &num_heads, &head_dim});
    check_shape(b.lse, {&num_tokens, &num_heads});
    b.out.expect_type({a.out.type()});
    b.out.expect_device_of(a.out);
    const StateTensors* const inputs[] = {&a, &b};
    return merge_tensors(inputs, out_a, num_tokens, num_heads, head_dim, lse_base_of(lse_base), stream);
}

py::tuple merge_states_of(py::handle out, py::handle lse, const std::string& lse_base, uintptr_t stream) {
    const StateTensors states("out", out, "lse", lse);
    Dim num_tokens{"num_tokens"}, num_states{"num_states"}, num_heads{"num_heads"}, head_dim{"head_dim"};
    check_shape(states.out, {&num_tokens, &num_states, &num_heads, &head_dim});
    check_shape(states.lse, {&num_tokens, &num_states, &num_heads});
    const StateTensors* const inputs[] = {&states};
    return merge_tensors(inputs, out, num_tokens, num_heads, head_dim, lse_base_of(lse_base), stream);
}

void check_slots(std::span<const int64_t> slots, int64_t num_slots) {
    for (size_t i = 0; i < slots.size(); ++i) {
        if (slots[i] >= 0 && slots[i] < num_slots) continue;
        throw py::value_error("slots[" + std::to_string(i) + "]: expected a value in [0, " + std::to_string(num_slots) +
                              "), got " + std::to_string(slots[i]));
    }
}

void append_kv(py::handle k_object, py::handle v_object, py::handle slots_object, py::handle k_pages_object,
               py::handle v_pages_object, int32_t num_threads, uintptr_t stream) {
    constexpr Where kWhere = Where::kCpuOrCuda;
    const Tensor k("k", k_object, kWhere), v("v", v_object, kWhere), slots("slots", slots_object, kWhere);
    const Tensor k_pages("k_pages", k_pages_object, kWhere), v_pages("v_pages", v_pages_object, kWhere);
    for (const Tensor* tensor : {&v, &slots, &k_pages, &v_pages}) tensor->expect_device_of(k);
    Dim num_tokens{"num_tokens"}, num_kv_heads{"num_kv_heads"}, head_dim{"head_dim"};
    Dim num_pages{"num_pages"}, page_size{"page_size"};
    check_shape(k, {&num_tokens, &num_kv_heads, &head_dim});
    check_shape(v, {&num_tokens, &num_kv_heads, &head_dim});
    check_shape(slots, {&num_tokens});
    check_shape(k_pages, {&num_pages, &page_size, &num_kv_heads, &head_dim});
    check_shape(v_pages, {&num_pages, &page_size, &num_kv_heads, &head_dim});
    k.expect_type({ElementType::kFloat32, ElementType::kBFloat16, ElementType::kUInt16});
    for (const Tensor* tensor : {&v, &k_pages, &v_pages}) tensor->expect_type({k.type()});
    for (const Tensor* tensor : {&k, &v, &k_pages, &v_pages}) tensor->expect_unit_last_stride();
    for (const Tensor* tensor : {&k_pages, &v_pages}) tensor->expect_writable();

    const std::span<const int64_t> slot_ids = int64_array(slots);
    const int64_t num_slots = num_pages.size * page_size.size;
    if (!k.is_cuda()) check_slots(slot_ids, num_slots);
    const auto params = [&](const Tensor& tokens, const Tensor& pages) {
        const int64_t bytes = tokens.element_bytes();
        return AppendParams{
            .tokens = static_cast<const char*>(tokens.data()),
            .token_stride = tokens.stride(0) * bytes,
            .token_head_stride = tokens.stride(1) * bytes,
            .pages = static_cast<char*>(pages.data()),
            .page_stride = pages.stride(0) * bytes,
            .slot_stride = pages.stride(1) * bytes,
            .page_head_stride = pages.stride(2) * bytes,
            .slots = slot_ids.data(),
            .num_tokens = num_tokens.size,
            .num_kv_heads = num_kv_heads.size,
            .page_size = page_size.size,
            .head_bytes = head_dim.size * bytes,
        };
    };
    num_threads = thread_count(num_threads, omp_get_max_threads());
    const py::gil_scoped_release release;
    if constexpr (cuda::kIsBuilt) {
        if (k.is_cuda()) {
            cuda::append_to_pages(params(k, k_pages), num_slots, {k.device_id(), stream});
            cuda::append_to_pages(params(v, v_pages), num_slots, {k.device_id(), stream});
            return;
        }
    }
    append_to_pages(params(k, k_pages), num_threads);
    append_to_pages(params(v, v_pages), num_threads);
}

py::dict explain(const AttentionPlan& plan, const std::string& kv_dtype) {
    if (kv_dtype != "float32" && kv_dtype != "bfloat16") {
        throw py::value_error("kv_dtype: expected \"float32\" or \"bfloat16\", got \"" + kv_dtype + "\"");
    }
    const AttentionShape& shape = plan.shape();
    const PlanStats& stats = plan.stats();
    const int64_t key_bytes = int64_t{2} * shape.num_kv_heads * shape.head_dim * (kv_dtype == "float32" ? 4 : 2);
    py::dict result;
    result["num_items"] = plan.items().size();
    result["num_rows"] = plan.num_tokens();
    result["num_item_rows"] = plan.rows().size();
    result["num_partial_rows"] = plan.num_slots();
    result["num_merged_rows"] = plan.merge_rows().size();
    result["num_shared_segments"] = stats.num_shared_segments;
    result["kv_tokens_read"] = stats.kv_tokens_read;
    result["kv_bytes_read"] = stats.kv_tokens_read * key_bytes;
    result["per_request_kv_tokens_read"] = stats.per_request_kv_tokens_read;
    result["per_request_kv_bytes_read"] = stats.per_request_kv_tokens_read * key_bytes;
    result["partial_bytes"] = int64_t{4} * plan.num_slots() * shape.num_qo_heads * (shape.head_dim + 1);
    result["flops"] = int64_t{4} * stats.num_scores * shape.num_qo_heads * shape.head_dim;
    result["num_threads"] = plan.num_threads();
    return result;
}

// Structs of int32 as the rows of an array, a view into the plan.
template <typename T>
py::array_t<int32_t> int32_rows(std::span<const T> structs, py::handle plan) {
    constexpr py::ssize_t kFields = sizeof(T) / sizeof(int32_t);
    const auto num_rows = static_cast<py::ssize_t>(structs.size());
    py::array_t<int32_t> rows({num_rows, kFields}, reinterpret_cast<const int32_t*>(structs.data()), plan);
    rows.attr("flags").attr("writeable") = false;
    return rows;
}

py::dict buffers(py::handle self) {
    const auto& plan = self.cast<const AttentionPlan&>();
    py::dict result;
    result["items"] = int32_rows(plan.items(), self);
    result["rows"] = int32_rows(plan.rows(), self);
    result["pieces"] = int32_rows(plan.pieces(), self);
    result["page_ids"] = int32_rows(plan.page_ids(), self).attr("reshape")(-1);
    result["merge_rows"] = int32_rows(plan.merge_rows(), self);
    return result;
}

std::string plan_text(const AttentionPlan& plan) {
    const AttentionShape& shape = plan.shape();
    const PlanStats& stats = plan.stats();
    std::string text = "AttentionPlan(" + std::to_string(plan.num_tokens()) + " rows, " +
                       std::to_string(shape.num_qo_heads) + "/" + std::to_string(shape.num_kv_heads) + " heads of " +
                       std::to_string(shape.head_dim) + ": " + std::to_string(plan.items().size()) + " items, " +
                       std::to_string(stats.num_shared_segments) + " shared segments, " +
                       std::to_string(stats.kv_tokens_read) + " keys read, " +
                       std::to_string(stats.per_request_kv_tokens_read) + " per request)\n";
    constexpr size_t kMaxLines = 32;
    const std::span<const WorkItem> items = plan.items();
    for (size_t i = 0; i < std::min(items.size(), kMaxLines); ++i) {
        const WorkItem& item = items[i];
        text += "  " + std::to_string(item.row_end - item.row_begin) + " rows x keys [" +
                std::to_string(item.kv_begin) + ", " + std::to_string(item.kv_end) + ")\n";
    }
    if (items.size() > kMaxLines) text += "  ... " + std::to_string(items.size() - kMaxLines) + " more\n";
    return text;
}

}  // namespace

void bind_attention(py::module_& module) {
    using Object = const py::object&;
    const py::object none = py::none();

    py::class_<AttentionPlan>(module, "AttentionPlan", "A token batch as work items; reused by every layer.")
        .def_property_readonly("num_items", [](const AttentionPlan& plan) { return plan.items().size(); })
        .def_property_readonly("num_rows", &AttentionPlan::num_tokens)
        .def_property_readonly("num_partial_rows", &AttentionPlan::num_slots)
        .def_property_readonly("num_threads", &AttentionPlan::num_threads)
        .def_property_readonly("buffers", &buffers, "The structs of work_item.h as int32 arrays, views into the plan.")
        .def("explain", &explain, py::kw_only(), py::arg("kv_dtype") = "float32",
             "Counts, bytes and FLOPs of one layer, against reading every key once per request.")
        .def("__str__", &plan_text);

    module.def(
        "plan_attention",
        [](Object span_indptr, Object span_begin, Object link_indptr, Object link_segment, Object segment_page_indptr,
           Object segment_page_ids, Object segment_begin, Object segment_num_tokens, int32_t num_qo_heads,
           int32_t num_kv_heads, int32_t head_dim, int32_t page_size, int32_t num_threads, Object share,
           int32_t window_left) {
            const BatchArrays arrays(span_indptr, span_begin, link_indptr, link_segment, segment_page_indptr,
                                     segment_page_ids, segment_begin, segment_num_tokens);
            const AttentionShape shape{num_qo_heads, num_kv_heads, head_dim, page_size, window_left};
            return AttentionPlan(arrays.batch(), shape, thread_count(num_threads, omp_get_max_threads()),
                                 sharing_of(share));
        },
        py::arg("span_indptr"), py::arg("span_begin"), py::arg("link_indptr"), py::arg("link_segment"),
        py::arg("segment_page_indptr"), py::arg("segment_page_ids"), py::arg("segment_begin"),
        py::arg("segment_num_tokens"), py::kw_only(), py::arg("num_qo_heads"), py::arg("num_kv_heads"),
        py::arg("head_dim"), py::arg("page_size"), py::arg("num_threads") = 0, py::arg("share") = true,
        py::arg("window_left") = -1, "Plans the attention of one token batch.");

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

    module.def("merge_state", &merge_state, py::arg("out_a"), py::arg("lse_a"), py::arg("out_b"), py::arg("lse_b"),
               py::kw_only(), py::arg("lse_base") = "e", py::arg("stream") = 0,
               "Merges two states; returns (out, lse).");
    module.def("merge_states", &merge_states_of, py::arg("out"), py::arg("lse"), py::kw_only(),
               py::arg("lse_base") = "e", py::arg("stream") = 0,
               "Merges the states along dimension 1; returns (out, lse).");
    module.def("append_kv", &append_kv, py::arg("k"), py::arg("v"), py::arg("slots"), py::arg("k_pages"),
               py::arg("v_pages"), py::kw_only(), py::arg("num_threads") = 0, py::arg("stream") = 0,
               "Writes the K/V of new tokens into their slots.");
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
