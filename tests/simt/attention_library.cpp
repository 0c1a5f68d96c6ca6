// A C interface to the attention kernels on the emulator, for tests in Python (backend.py). Arrays come as they are in
// the caller's memory; kernels see copies in the emulator's, and nothing else.
#include <cstring>
#include <string>
#include <vector>

#include "attention/cuda/plan_layout.h"
#include "simt/attention_kernels.h"
#include "simt/emulator/findings.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/emulator/statistics.h"

extern "C" {

// A dense or strided array of 16-bit or 32-bit elements: strides count elements, the last one is 1.
struct SimtArray {
    void* data;
    int64_t num_elements;  // from the first to the last
    int64_t strides[3];
};

struct SimtCall {
    int32_t is_half;  // float16, not bfloat16
    int32_t head_dim, num_kv_heads, group_size, page_size;
    int32_t num_slots;
    int32_t heads_per_block;  // of narrow tiles; 0: as on a GPU
    int32_t num_spare;  // entries of every array behind the plan's, as where a CUDA graph has room for a larger plan
    float softmax_scale, soft_cap;
    SimtArray items, rows, pieces, page_ids, merge_rows;  // plan.buffers
    SimtArray q, k_pages, v_pages, out;
    SimtArray lse, sinks;  // data null: none
    int32_t order;         // simt::Order
    uint64_t seed;
    uint32_t preempt_one_in;
};

struct SimtCounts {
    uint64_t products, matrix_loads, bank_conflicts, async_copies, num_wide_tiles, num_narrow_tiles;
};
}

namespace {

using namespace batchllm;
using cuda::PlanArrays;
using cuda::PlanLayout;
using cuda::PlanSizes;
using simt::GlobalBuffer;
using simt::Use;

// The caller's array in the emulator's memory.
class DeviceArray {
 public:
    DeviceArray(const char* name, const SimtArray& array, size_t element_bytes, Use use)
        : DeviceArray(name, array.data, array.num_elements * element_bytes, use) {}
    DeviceArray(const char* name, void* host, size_t num_bytes, Use use) : host_(host), buffer_(name, num_bytes, use) {
        if (buffer_.size() > 0) std::memcpy(buffer_.data(), host, buffer_.size());
    }
    template <typename T>
    T* data() const {
        return buffer_.data<T>();
    }
    void copy_back() const {
        if (buffer_.size() > 0) std::memcpy(host_, buffer_.data(), buffer_.size());
    }

 private:
    void* host_;
    GlobalBuffer buffer_;
};

template <typename T>
std::span<const T> span_of(const SimtArray& array) {
    constexpr int64_t kFields = sizeof(T) / sizeof(int32_t);
    return {static_cast<const T*>(array.data), static_cast<size_t>(array.num_elements / kFields)};
}

// A plan as it is uploaded. What is behind its arrays would lead a kernel astray.
struct UploadedPlan {
    explicit UploadedPlan(const SimtCall& call)
        : plan{.items = span_of<WorkItem>(call.items),
               .rows = span_of<WorkRow>(call.rows),
               .pieces = span_of<KvPiece>(call.pieces),
               .page_ids = span_of<int32_t>(call.page_ids),
               .merge_rows = span_of<MergeRow>(call.merge_rows),
               .num_tokens = 0,
               .num_slots = call.num_slots,
               .max_page_id = -1},
          layout(shape_of(call), sizes_of(call), 0),
          buffer(layout.num_ints(), 0x7f7f7f7f) {
        layout.pack(plan, buffer);
    }

    static AttentionShape shape_of(const SimtCall& call) {
        return {call.num_kv_heads * call.group_size, call.num_kv_heads, call.head_dim, call.page_size};
    }
    PlanSizes sizes_of(const SimtCall& call) const {
        const int32_t spare = call.num_spare;
        const PlanSizes sizes = cuda::plan_sizes(plan, shape_of(call));
        return {sizes.num_rows,
                sizes.num_wide_tiles + spare,
                sizes.num_narrow_tiles + spare,
                sizes.num_item_rows + spare,
                sizes.num_pieces + spare,
                sizes.num_page_ids + spare,
                sizes.num_merged_rows + spare,
                sizes.num_partial_rows + spare};
    }

    PlanArrays plan;
    PlanLayout layout;
    std::vector<int32_t> buffer;
};

// An array of a plan in the emulator's memory.
template <typename T>
DeviceArray upload(const char* name, const T* array, int32_t size) {
    return DeviceArray(name, const_cast<T*>(array), size * sizeof(T), Use::kInput);
}

std::string findings_text;

}  // namespace

// Returns what the emulator found, a line each; valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* simt_attention(const SimtCall* call, SimtCounts* counts) {
    simt::checks_accesses() = SIMT_CHECKED;
    simt::findings().clear();
    simt::statistics() = {};
    const UploadedPlan uploaded(*call);
    const PlanLayout& layout = uploaded.layout;
    const PlanSizes& sizes = layout.sizes();
    const cuda::PackedPlan packed = layout.arrays(uploaded.buffer.data());
    const DeviceArray wide_tiles = upload("wide_tiles", packed.wide_tiles, sizes.num_wide_tiles);
    const DeviceArray narrow_tiles = upload("narrow_tiles", packed.narrow_tiles, sizes.num_narrow_tiles);
    const DeviceArray rows = upload("rows", packed.rows, sizes.num_item_rows);
    const DeviceArray pieces = upload("pieces", packed.pieces, sizes.num_pieces);
    const DeviceArray page_ids = upload("page_ids", packed.page_ids, sizes.num_page_ids);
    const DeviceArray merge_rows = upload("merge_rows", packed.merge_rows, sizes.num_merged_rows);
    const cuda::PackedPlan plan{wide_tiles.data<cuda::AttentionTile>(),
                                narrow_tiles.data<cuda::AttentionTile>(),
                                rows.data<WorkRow>(),
                                pieces.data<KvPiece>(),
                                page_ids.data<int32_t>(),
                                merge_rows.data<MergeRow>()};
    const DeviceArray q("q", call->q, 2, Use::kInput);
    const DeviceArray k_pages("k_pages", call->k_pages, 2, Use::kInput);
    const DeviceArray v_pages("v_pages", call->v_pages, 2, Use::kInput);
    const DeviceArray sinks("sinks", call->sinks, 4, Use::kInput);
    const DeviceArray out("out", call->out, 2, Use::kOutput), lse("lse", call->lse, 4, Use::kOutput);
    const int64_t num_outs = layout.num_partial_outs();
    const GlobalBuffer partial_out("partial_out", num_outs * sizeof(uint16_t), Use::kOutput);
    const GlobalBuffer partial_lse("partial_lse", (layout.num_workspace_floats() - num_outs / 2) * sizeof(float),
                                   Use::kOutput);

    const DType dtype = call->is_half ? DType::kFloat16 : DType::kBFloat16;
    const auto strides = [](const SimtArray& array) { return array.strides; };
    const AttentionParams params{
        .q = {q.data<void>(), dtype, strides(call->q)[0], strides(call->q)[1]},
        .k_pages = {k_pages.data<void>(), strides(call->k_pages)[0], strides(call->k_pages)[1],
                    strides(call->k_pages)[2]},
        .v_pages = {v_pages.data<void>(), strides(call->v_pages)[0], strides(call->v_pages)[1],
                    strides(call->v_pages)[2]},
        .kv_dtype = dtype,
        .out = {out.data<void>(), dtype, strides(call->out)[0], strides(call->out)[1]},
        .lse = {call->lse.data == nullptr ? nullptr : lse.data<float>(), strides(call->lse)[0], strides(call->lse)[1]},
        .softmax_scale = call->softmax_scale,
        .soft_cap = call->soft_cap,
        .sinks = call->sinks.data == nullptr ? nullptr : sinks.data<float>(),
    };
    cuda::AttentionCall attention = layout.call(plan, params, partial_out.data<void>(), partial_lse.data<float>());
    if (call->heads_per_block != 0) attention.args.heads_per_block = call->heads_per_block;
    simt_test::run_attention(attention, {static_cast<simt::Order>(call->order), call->seed, call->preempt_one_in});
    out.copy_back();
    lse.copy_back();
    const simt::Statistics& statistics = simt::statistics();
    *counts = {statistics.products,
               statistics.matrix_loads,
               statistics.bank_conflicts,
               statistics.async_copies,
               static_cast<uint64_t>(sizes.num_wide_tiles),
               static_cast<uint64_t>(sizes.num_narrow_tiles)};
    findings_text = simt::describe_findings();
    return findings_text.c_str();
}
