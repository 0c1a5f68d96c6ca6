#include <omp.h>

#include <span>
#include <vector>

#include "attention/append_kv.h"
#include "attention/cuda/attention_gpu.h"
#include "attention/merge.h"
#include "bindings/array_out.h"
#include "bindings/bindings.h"
#include "bindings/float_tensor.h"

namespace py = pybind11;

namespace batchllm {
namespace {

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
    k.expect_type({ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat16, ElementType::kUInt16});
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

}  // namespace

void bind_states(py::module_& module) {
    module.def("merge_state", &merge_state, py::arg("out_a"), py::arg("lse_a"), py::arg("out_b"), py::arg("lse_b"),
               py::kw_only(), py::arg("lse_base") = "e", py::arg("stream") = 0,
               "Merges two states; returns (out, lse).");
    module.def("merge_states", &merge_states_of, py::arg("out"), py::arg("lse"), py::kw_only(),
               py::arg("lse_base") = "e", py::arg("stream") = 0,
               "Merges the states along dimension 1; returns (out, lse).");
    module.def("append_kv", &append_kv, py::arg("k"), py::arg("v"), py::arg("slots"), py::arg("k_pages"),
               py::arg("v_pages"), py::kw_only(), py::arg("num_threads") = 0, py::arg("stream") = 0,
               "Writes the K/V of new tokens into their slots.");
}

}  // namespace batchllm
