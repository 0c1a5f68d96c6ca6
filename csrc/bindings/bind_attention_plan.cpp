#include <omp.h>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <sstream>
#include <vector>

#include "attention/cuda/plan_layout.h"
#include "attention/plan/attention_plan.h"
#include "attention/plan/predict.h"
#include "bindings/array_out.h"
#include "bindings/batch_arrays.h"
#include "bindings/bindings.h"
#include "cpu/threads.h"
#include "planner/token_batch.h"

namespace py = pybind11;

namespace batchllm {
namespace {

Sharing sharing_of(py::handle share) {
    if (share.is(py::bool_(true))) return Sharing::kWhereItPays;
    if (share.is(py::bool_(false))) return Sharing::kNever;
    if (py::isinstance<py::str>(share) && share.cast<std::string>() == "always") return Sharing::kAlways;
    throw py::value_error("share: expected True, False or \"always\", got " + std::string(py::repr(share)));
}

// Null: the CPU.
const GpuModel* device_of(const std::string& device) {
    if (device == "cpu") return nullptr;
    if (device == "cuda") return &kDefaultGpu;
    if (const GpuModel* const gpu = find_gpu(device)) return gpu;
    std::string expected = "\"cpu\", \"cuda\"";
    for (const GpuModel& gpu : kGpus) expected += std::string(", \"") + gpu.id + "\"";
    throw py::value_error("device: expected one of " + expected + ", got \"" + device + "\"");
}

AttentionBatch span_reads(const TokenBatch& batch) {
    return {batch.span_indptr,   batch.span_begin,          batch.link_indptr,
            batch.link_segment,  batch.segment_page_indptr, batch.segment_page_ids,
            batch.segment_begin, batch.segment_num_tokens,  batch.page_size};
}

AttentionPlan plan_attention(const AttentionBatch& batch, const AttentionShape& shape, int32_t num_threads,
                             const py::object& share, const std::string& device_name) {
    const GpuModel* const device = device_of(device_name);
    if (device == nullptr) {
        num_threads = thread_count(num_threads, omp_get_max_threads());
        if (num_threads > 1) check_not_forked();  // before the model's first product
        return AttentionPlan(batch, shape, num_threads, sharing_of(share));
    }
    GpuModel gpu = *device;
    gpu.num_multiprocessors = thread_count(num_threads, gpu.num_multiprocessors);
    return AttentionPlan(batch, shape, gpu, sharing_of(share));
}

py::dict seconds_dict(const AttentionSeconds& seconds) {
    py::dict result;
    result["plan"] = seconds.plan;
    result["per_request"] = seconds.per_request;
    result["cascade"] = seconds.cascade;
    result["cascade_float32"] = seconds.cascade_float32;
    return result;
}

py::dict predict_seconds(const AttentionPlan& plan, double flops_per_s, double bytes_per_s, double launch_s,
                         const std::string& device) {
    for (const auto& [name, value] : {std::pair("flops_per_s", flops_per_s), std::pair("bytes_per_s", bytes_per_s)}) {
        if (value > 0.0 && std::isfinite(value)) continue;
        throw py::value_error(std::string(name) + ": expected a positive number, got " + std::to_string(value));
    }
    if (!(launch_s >= 0.0) || !std::isfinite(launch_s)) {
        throw py::value_error("launch_s: expected a number of at least 0, got " + std::to_string(launch_s));
    }
    GpuModel gpu = plan.gpu();
    if (!device.empty()) {
        const GpuModel* const named = device_of(device);
        if (named == nullptr) throw py::value_error("device: expected a GPU, got \"cpu\"");
        gpu = *named;
    }
    gpu.flops_per_s = flops_per_s;
    gpu.bytes_per_s = bytes_per_s;
    gpu.launch_s = launch_s;
    return seconds_dict(predict(plan, gpu));
}

py::dict gpu_peaks() {
    py::dict result;
    for (const GpuModel& gpu : kGpus) {
        py::dict peaks;
        peaks["flops_per_s"] = gpu.flops_per_s;
        peaks["bytes_per_s"] = gpu.bytes_per_s;
        peaks["launch_s"] = gpu.launch_s;
        result[gpu.name] = peaks;
    }
    return result;
}

py::dict gpu_models() {
    py::dict result;
    for (const GpuModel& gpu : kGpus) {
        py::dict model;
        model["name"] = gpu.name;
        model["num_multiprocessors"] = gpu.num_multiprocessors;
        model["flops_per_s"] = gpu.flops_per_s;
        model["bytes_per_s"] = gpu.bytes_per_s;
        model["memory_bytes"] = gpu.memory_bytes;
        model["l2_bytes"] = gpu.l2_bytes;
        model["shared_bytes"] = gpu.shared_bytes;
        model["begins_early"] = gpu.begins_early;
        model["launch_s"] = gpu.launch_s;
        model["multiprocessor_bytes_per_s"] = gpu.multiprocessor_bytes_per_s;
        model["block_s"] = gpu.block_s;
        result[gpu.id] = model;
    }
    return result;
}

py::dict explain(const AttentionPlan& plan, const std::string& kv_dtype) {
    if (kv_dtype != "float32" && kv_dtype != "bfloat16") {
        throw py::value_error("kv_dtype: expected \"float32\" or \"bfloat16\", got \"" + kv_dtype + "\"");
    }
    const AttentionShape& shape = plan.shape();
    const PlanStats stats = plan.stats();
    const int64_t key_bytes = kv_bytes_per_token(shape, kv_dtype == "float32" ? 4 : 2);
    py::dict result;
    result["num_items"] = plan.items().size();
    result["num_rows"] = plan.num_tokens();
    result["num_item_rows"] = plan.rows().size();
    result["num_partial_rows"] = plan.num_slots();
    result["num_merged_rows"] = plan.merge_rows().size();
    result["num_shared_segments"] = stats.num_shared_segments;
    result["num_levels"] = stats.num_levels;
    result["num_qo_heads"] = shape.num_qo_heads;
    result["head_dim"] = shape.head_dim;
    result["kv_tokens_read"] = stats.kv_tokens_read;
    result["kv_bytes_read"] = stats.kv_tokens_read * key_bytes;
    result["per_request_kv_tokens_read"] = stats.per_request_kv_tokens_read;
    result["per_request_kv_bytes_read"] = stats.per_request_kv_tokens_read * key_bytes;
    result["partial_bytes"] = partial_bytes(plan);
    result["flops"] = attention_flops(plan);
    result["num_threads"] = plan.num_threads();
    py::dict predicted;
    for (const GpuModel& gpu : kGpus) predicted[gpu.name] = seconds_dict(predict(plan, gpu));
    result["predicted_seconds"] = predicted;
    return result;
}

py::dict buffers(py::handle self) {
    const auto& plan = self.cast<const AttentionPlan&>();
    py::dict result;
    result["items"] = readonly_rows(plan.items(), self);
    result["rows"] = readonly_rows(plan.rows(), self);
    result["pieces"] = readonly_rows(plan.pieces(), self);
    result["page_ids"] = readonly_rows(plan.page_ids(), self).attr("reshape")(-1);
    result["merge_rows"] = readonly_rows(plan.merge_rows(), self);
    return result;
}

// predict() as a table, a line each way.
std::string prediction_text(const AttentionPlan& plan) {
    std::ostringstream text;
    text << "prediction, no GPU measured: us of one layer in bfloat16, at the peaks of data sheets, and launches\n";
    const auto begin_line = [&text](const std::string& name) { text << "  " << std::left << std::setw(40) << name; };
    begin_line("");
    text << std::right;
    for (const GpuModel& gpu : kGpus) text << std::setw(15) << gpu.name;
    std::vector<AttentionSeconds> predicted;
    for (const GpuModel& gpu : kGpus) predicted.push_back(predict(plan, gpu));
    const auto add_line = [&](const std::string& name, double AttentionSeconds::* way) {
        text << '\n';
        begin_line(name);
        text << std::right << std::fixed << std::setprecision(1);
        for (const AttentionSeconds& seconds : predicted) text << std::setw(15) << 1e6 * (seconds.*way);
    };
    const std::string num_levels = std::to_string(std::max(plan.stats().num_levels, 1));
    add_line("this plan: wide, narrow tiles, merge", &AttentionSeconds::plan);
    add_line("paged, request by request", &AttentionSeconds::per_request);
    add_line("cascade, " + num_levels + " levels, each its own launch", &AttentionSeconds::cascade);
    add_line("the same with states in float32", &AttentionSeconds::cascade_float32);
    return text.str() + "\n";
}

std::string plan_text(const AttentionPlan& plan) {
    const AttentionShape& shape = plan.shape();
    const PlanStats stats = plan.stats();
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
    return text + prediction_text(plan);
}

// --- plans in a GPU's memory

py::dict size_dict(const cuda::PlanSizes& sizes) {
    py::dict result;
    for (const auto& [name, member] : cuda::kNamedSizes) result[name] = sizes.*member;
    return result;
}

cuda::PlanSizes sizes_of(const AttentionPlan& plan) {
    return cuda::plan_sizes(cuda::plan_arrays(plan), plan.shape());
}

cuda::PlanLayout new_layout(const AttentionPlan& plan, int64_t num_pages, const py::kwargs& at_least) {
    cuda::PlanSizes sizes = sizes_of(plan);
    for (const auto& [key, value] : at_least) {
        const auto name = key.cast<std::string>();
        const auto* const size = std::ranges::find(cuda::kNamedSizes, name, &cuda::NamedSize::name);
        if (size == std::end(cuda::kNamedSizes))
            throw py::type_error(name + ": expected a name of AttentionPlan.sizes");
        try {
            sizes.*size->member = std::max(sizes.*size->member, value.cast<int32_t>());
        } catch (const py::cast_error&) {
            throw py::value_error(name + ": expected an int32, got " + std::string(py::repr(value)));
        }
    }
    return {plan.shape(), sizes, num_pages};
}

void pack(const cuda::PlanLayout& layout, const AttentionPlan& plan, py::handle buffer_object) {
    if (plan.shape() != layout.shape()) {
        throw py::value_error("plan: expected the heads, head_dim, page_size and window_left of the layout");
    }
    const Tensor buffer("buffer", buffer_object);
    int32_array(buffer);  // one dimension, contiguous
    buffer.expect_writable();
    Dim num_ints{"num_ints", layout.num_ints(), "the layout"};
    check_shape(buffer, {&num_ints});
    layout.pack(cuda::plan_arrays(plan), {static_cast<int32_t*>(buffer.data()), static_cast<size_t>(num_ints.size)});
}

}  // namespace

void bind_attention_plan(py::module_& module) {
    using Object = const py::object&;

    py::class_<AttentionPlan>(module, "AttentionPlan", "A token batch as work items; reused by every layer.")
        .def_property_readonly("num_items", [](const AttentionPlan& plan) { return plan.items().size(); })
        .def_property_readonly("num_rows", &AttentionPlan::num_tokens)
        .def_property_readonly("num_partial_rows", &AttentionPlan::num_slots)
        .def_property_readonly("num_threads", &AttentionPlan::num_threads)
        .def_property_readonly("buffers", &buffers, "The structs of work_item.h as int32 arrays, views into the plan.")
        .def(
            "for_rows",
            [](const AttentionPlan& plan, py::handle rows) {
                const Tensor array("rows", rows);
                return plan.for_rows(int32_array(array));
            },
            py::arg("rows"), "The plan for some of its rows, made in a fraction of the time.")
        .def("explain", &explain, py::kw_only(), py::arg("kv_dtype") = "float32",
             "Counts, bytes and FLOPs of one layer, against reading every key once per request; predictions for GPUs.")
        .def("predict_seconds", &predict_seconds, py::kw_only(), py::arg("flops_per_s"), py::arg("bytes_per_s"),
             py::arg("launch_s") = kDefaultGpu.launch_s, py::arg("device") = "",
             "A model of one layer on a GPU of such peaks, not a measurement.")
        .def_property_readonly(
            "sizes", [](const AttentionPlan& plan) { return size_dict(sizes_of(plan)); },
            "What a PlanLayout must have room for.")
        .def("__str__", &plan_text);

    py::class_<cuda::PlanLayout>(module, "PlanLayout", "Room for plans in one buffer of int32 that a GPU reads.")
        .def(py::init(&new_layout), py::arg("plan"), py::arg("num_pages"))
        .def_property_readonly("sizes", [](const cuda::PlanLayout& layout) { return size_dict(layout.sizes()); })
        .def_property_readonly("num_ints", &cuda::PlanLayout::num_ints)
        .def_property_readonly("num_workspace_floats", &cuda::PlanLayout::num_workspace_floats)
        .def(
            "has_room_for",
            [](const cuda::PlanLayout& layout, const AttentionPlan& plan) {
                return layout.has_room_for(sizes_of(plan));
            },
            py::arg("plan"))
        .def("pack", &pack, py::arg("plan"), py::arg("buffer"), "Writes a plan into memory of the host.");

    // The same options behind whatever gives the batch.
    const auto def_plan = [&module](auto plan_of, auto... batch_arguments) {
        module.def("plan_attention", plan_of, batch_arguments..., py::kw_only(), py::arg("num_qo_heads"),
                   py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("page_size"), py::arg("num_threads") = 0,
                   py::arg("share") = true, py::arg("window_left") = -1, py::arg("device") = "cpu",
                   "Plans the attention of one token batch.");
    };
    def_plan(
        [](const TokenBatch& batch, int32_t num_qo_heads, int32_t num_kv_heads, int32_t head_dim, int32_t page_size,
           int32_t num_threads, const Object& share, int32_t window_left, const std::string& device) {
            return plan_attention(span_reads(batch), {num_qo_heads, num_kv_heads, head_dim, page_size, window_left},
                                  num_threads, share, device);
        },
        py::arg("batch"));
    def_plan(
        [](Object span_indptr, Object span_begin, Object link_indptr, Object link_segment, Object segment_page_indptr,
           Object segment_page_ids, Object segment_begin, Object segment_num_tokens, int32_t num_qo_heads,
           int32_t num_kv_heads, int32_t head_dim, int32_t page_size, int32_t num_threads, const Object& share,
           int32_t window_left, const std::string& device) {
            const BatchArrays arrays(span_indptr, span_begin, link_indptr, link_segment, segment_page_indptr,
                                     segment_page_ids, segment_begin, segment_num_tokens);
            return plan_attention(arrays.batch(), {num_qo_heads, num_kv_heads, head_dim, page_size, window_left},
                                  num_threads, share, device);
        },
        py::arg("span_indptr"), py::arg("span_begin"), py::arg("link_indptr"), py::arg("link_segment"),
        py::arg("segment_page_indptr"), py::arg("segment_page_ids"), py::arg("segment_begin"),
        py::arg("segment_num_tokens"));
    module.def("gpu_peaks", &gpu_peaks, "What predictions take for the peaks of GPUs, by name.");
    module.def("gpu_models", &gpu_models, "What plans and predictions take GPUs for, by the device of plan_attention.");
    module.def(
        "nearest_gpu", [](const std::string& name, int32_t capability) { return nearest_gpu(name, capability).id; },
        py::arg("name"), py::arg("capability"), "The device of plan_attention that is most like a GPU.");
}

}  // namespace batchllm
