// A C interface to the attention kernels on the emulator, for tests in Python (backend.py). Arrays come as they are in
// the caller's memory; kernels see copies in the emulator's, and nothing else.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "attention/cuda/attention_tiles.h"
#include "attention/cuda/tile_shape.h"
#include "simt/attention_kernels.h"
#include "simt/emulator/findings.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/emulator/statistics.h"

using batchllm::cuda::AttentionTile;

extern "C" {

// A dense or strided array of 16-bit or 32-bit elements: strides count elements, the last one is 1.
struct SimtArray {
    void* data;
    int64_t num_elements;  // from the first to the last
    int64_t strides[3];
};

struct SimtCall {
    int32_t type;  // simt_test::ElementType
    int32_t head_dim, num_kv_heads, group_size, page_size;
    int32_t num_slots;
    int32_t num_spare_tiles;  // empty ones, as behind the plan that a CUDA graph replays
    float softmax_scale, soft_cap;
    SimtArray items, rows, pieces, page_ids, merge_rows;  // plan.buffers
    SimtArray q, k_pages, v_pages, out, lse;
    SimtArray sinks;  // data null: none
    int32_t order;    // simt::Order
    uint64_t seed;
    uint32_t preempt_one_in;
};

struct SimtCounts {
    uint64_t products, matrix_loads, bank_conflicts, async_copies, num_tiles;
};
}

namespace {

using simt::GlobalBuffer;
using simt::Use;

// The caller's array in the emulator's memory.
class DeviceArray {
 public:
    DeviceArray(const char* name, const SimtArray& array, size_t element_bytes, Use use)
        : host_(array), buffer_(name, array.num_elements * element_bytes, use) {
        if (buffer_.size() > 0) std::memcpy(buffer_.data(), array.data, buffer_.size());
    }
    template <typename T>
    T* data() const {
        return buffer_.data<T>();
    }
    void copy_back() const {
        if (buffer_.size() > 0) std::memcpy(host_.data, buffer_.data(), buffer_.size());
    }

 private:
    SimtArray host_;
    GlobalBuffer buffer_;
};

template <typename T>
std::span<const T> span_of(const SimtArray& array) {
    constexpr int64_t kFields = sizeof(T) / sizeof(int32_t);
    return {static_cast<const T*>(array.data), static_cast<size_t>(array.num_elements / kFields)};
}

std::string findings_text;

}  // namespace

// Returns what the emulator found, a line each; valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* simt_attention(const SimtCall* call, SimtCounts* counts) {
    using namespace batchllm;
    simt::checks_accesses() = SIMT_CHECKED;
    simt::findings().clear();
    simt::statistics() = {};
    std::vector<AttentionTile> tiles =
        cuda::attention_tiles(span_of<WorkItem>(call->items), span_of<WorkRow>(call->rows), call->group_size,
                              cuda::max_packed_rows(call->head_dim));
    tiles.resize(tiles.size() + call->num_spare_tiles);
    const SimtArray tile_array{tiles.data(), static_cast<int64_t>(tiles.size() * sizeof(AttentionTile) / 4), {}};
    const int64_t num_states = int64_t{call->num_slots} * call->num_kv_heads * call->group_size;

    const DeviceArray device_tiles("tiles", tile_array, 4, Use::kInput);
    const DeviceArray rows("rows", call->rows, 4, Use::kInput), pieces("pieces", call->pieces, 4, Use::kInput);
    const DeviceArray page_ids("page_ids", call->page_ids, 4, Use::kInput);
    const DeviceArray merge_rows("merge_rows", call->merge_rows, 4, Use::kInput);
    const DeviceArray q("q", call->q, 2, Use::kInput);
    const DeviceArray k_pages("k_pages", call->k_pages, 2, Use::kInput);
    const DeviceArray v_pages("v_pages", call->v_pages, 2, Use::kInput);
    const DeviceArray sinks("sinks", call->sinks, 4, Use::kInput);
    const DeviceArray out("out", call->out, 2, Use::kOutput), lse("lse", call->lse, 4, Use::kOutput);
    const GlobalBuffer partial_out("partial_out", num_states * call->head_dim * sizeof(float), Use::kOutput);
    const GlobalBuffer partial_lse("partial_lse", num_states * sizeof(float), Use::kOutput);

    constexpr DType kUnused = DType::kBFloat16;  // the kernels are compiled for a type
    const auto strides = [](const SimtArray& array) { return array.strides; };
    const AttentionParams params{
        .q = {q.data<void>(), kUnused, strides(call->q)[0], strides(call->q)[1]},
        .k_pages = {k_pages.data<void>(), strides(call->k_pages)[0], strides(call->k_pages)[1],
                    strides(call->k_pages)[2]},
        .v_pages = {v_pages.data<void>(), strides(call->v_pages)[0], strides(call->v_pages)[1],
                    strides(call->v_pages)[2]},
        .kv_dtype = kUnused,
        .out = {out.data<void>(), kUnused, strides(call->out)[0], strides(call->out)[1]},
        .lse = {lse.data<float>(), strides(call->lse)[0], strides(call->lse)[1]},
        .softmax_scale = call->softmax_scale,
        .soft_cap = call->soft_cap,
        .sinks = call->sinks.data == nullptr ? nullptr : sinks.data<float>(),
    };
    simt_test::run_attention({
        .type = static_cast<simt_test::ElementType>(call->type),
        .head_dim = call->head_dim,
        .num_tiles = static_cast<int32_t>(tiles.size()),
        .num_merge_rows = static_cast<int32_t>(span_of<MergeRow>(call->merge_rows).size()),
        .merge_rows = merge_rows.data<MergeRow>(),
        .args = {.tiles = device_tiles.data<AttentionTile>(),
                 .rows = rows.data<WorkRow>(),
                 .pieces = pieces.data<KvPiece>(),
                 .page_ids = page_ids.data<int32_t>(),
                 .num_kv_heads = call->num_kv_heads,
                 .group_size = call->group_size,
                 .page_size = call->page_size,
                 .params = params,
                 .partial_out = partial_out.data<float>(),
                 .partial_lse = partial_lse.data<float>()},
        .schedule = {static_cast<simt::Order>(call->order), call->seed, call->preempt_one_in},
    });
    out.copy_back();
    lse.copy_back();
    const simt::Statistics& statistics = simt::statistics();
    *counts = {statistics.products, statistics.matrix_loads, statistics.bank_conflicts, statistics.async_copies,
               tiles.size()};
    findings_text = simt::describe_findings();
    return findings_text.c_str();
}
