// simulate_lru, simulate_radix and simulate_planned for Python: arrays in as views, a dictionary out.
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/array_in.h"
#include "bindings/array_out.h"
#include "bindings/bindings.h"
#include "bindings/job_arrays.h"
#include "simulate/lru_policy.h"
#include "simulate/planned_policy.h"
#include "simulate/radix_policy.h"

namespace py = pybind11;

namespace batchllm {

namespace {

class JobArrays {
 public:
    JobArrays(py::handle tokens, py::handle indptr, py::handle output_tokens, py::handle max_output_tokens)
        : prompts_(prompts_of(tokens, indptr, py::none(), 0)),
          output_tokens_("output_tokens", output_tokens),
          max_output_tokens_("max_output_tokens", max_output_tokens) {}

    SimulatedJob job() const { return {prompts_, int32_array(output_tokens_), int32_array(max_output_tokens_)}; }

 private:
    Prompts prompts_;
    Tensor output_tokens_, max_output_tokens_;
};

py::array_t<int64_t> by_window(const std::vector<int64_t>& values, size_t num_windows) {
    return py::array_t<int64_t>({values.size() / num_windows, num_windows}, values.data());
}

py::dict to_dict(const Simulation& simulation, size_t num_windows) {
    py::dict dict;
    dict["num_decode_tokens"] = array_copy<int32_t>(simulation.num_decode_tokens);
    dict["num_prefill_tokens"] = array_copy<int32_t>(simulation.num_prefill_tokens);
    dict["num_sampled"] = array_copy<int32_t>(simulation.num_sampled);
    dict["num_running"] = array_copy<int32_t>(simulation.num_running);
    dict["used_kv_tokens"] = array_copy<int64_t>(simulation.used_kv_tokens);
    dict["attention_pairs"] = by_window(simulation.attention_pairs, num_windows);
    dict["kv_tokens_read"] = by_window(simulation.kv_tokens_read, num_windows);
    dict["prompt_tokens"] = simulation.prompt_tokens;
    dict["computed_prompt_tokens"] = simulation.computed_prompt_tokens;
    dict["first_tokens"] = simulation.first_tokens;
    dict["unshared_tokens"] = simulation.unshared_tokens;
    dict["evicted_tokens"] = simulation.evicted_tokens;
    dict["preempted_tokens"] = simulation.preempted_tokens;
    dict["recomputed_output_tokens"] = simulation.recomputed_output_tokens;
    dict["output_tokens"] = simulation.output_tokens;
    dict["preemptions"] = simulation.preemptions;
    dict["peak_kv_tokens"] = simulation.peak_kv_tokens;
    return dict;
}

template <typename Simulate>
py::dict unlocked(const PoolOptions& pool, Simulate simulate) {
    Simulation simulation;
    {
        const py::gil_scoped_release release;
        simulation = simulate();
    }
    return to_dict(simulation, pool.windows.size());
}

RadixOrder radix_order(const std::string& name) {
    if (name == "lpm") return RadixOrder::kLongestPrefix;
    if (name == "dfs") return RadixOrder::kDepthFirst;
    throw py::value_error("order: expected \"lpm\" or \"dfs\", got \"" + name + "\"");
}

KnownLengths known_lengths(const std::string& name) {
    if (name == "known") return KnownLengths::kTrue;
    if (name == "learned") return KnownLengths::kLearned;
    if (name == "bound") return KnownLengths::kBound;
    throw py::value_error("lengths: expected \"known\", \"learned\" or \"bound\", got \"" + name + "\"");
}

}  // namespace

void bind_simulate(py::module_& module) {
    const py::tuple no_window = py::make_tuple(-1);
    module.def(
        "simulate_lru",
        [](const py::object& tokens, const py::object& indptr, const py::object& output_tokens,
           const py::object& max_output_tokens, int64_t kv_tokens, int32_t page_size, int32_t max_batch_tokens,
           int32_t max_num_seqs, bool is_sorted, const std::vector<int32_t>& windows) {
            const JobArrays arrays(tokens, indptr, output_tokens, max_output_tokens);
            const SimulatedJob job = arrays.job();
            const PoolOptions pool{kv_tokens, page_size, max_batch_tokens, windows};
            return unlocked(pool, [&] { return simulate_lru(job, pool, max_num_seqs, is_sorted); });
        },
        py::arg("tokens"), py::arg("indptr"), py::arg("output_tokens"), py::arg("max_output_tokens"), py::kw_only(),
        py::arg("kv_tokens"), py::arg("page_size") = 16, py::arg("max_batch_tokens") = 2048,
        py::arg("max_num_seqs") = 256, py::arg("is_sorted") = false, py::arg("windows") = no_window,
        "First come, first served over hashed KV blocks with LRU eviction, as vLLM does it.");
    module.def(
        "simulate_radix",
        [](const py::object& tokens, const py::object& indptr, const py::object& output_tokens,
           const py::object& max_output_tokens, int64_t kv_tokens, int32_t page_size, int32_t max_batch_tokens,
           int32_t max_running_requests, const std::string& order, const std::vector<int32_t>& windows) {
            const JobArrays arrays(tokens, indptr, output_tokens, max_output_tokens);
            const SimulatedJob job = arrays.job();
            const PoolOptions pool{kv_tokens, page_size, max_batch_tokens, windows};
            const RadixOrder radix = radix_order(order);
            return unlocked(pool, [&] { return simulate_radix(job, pool, radix, max_running_requests); });
        },
        py::arg("tokens"), py::arg("indptr"), py::arg("output_tokens"), py::arg("max_output_tokens"), py::kw_only(),
        py::arg("kv_tokens"), py::arg("page_size") = 16, py::arg("max_batch_tokens") = 2048,
        py::arg("max_running_requests") = 2048, py::arg("order") = "lpm", py::arg("windows") = no_window,
        "A radix cache with LRU eviction of leaves, as SGLang does it. page_size only decides what fits at all.");
    module.def(
        "simulate_planned",
        [](const py::object& tokens, const py::object& indptr, const py::object& output_tokens,
           const py::object& max_output_tokens, const Segments& segments, int64_t kv_tokens, int32_t page_size,
           int32_t max_batch_tokens, const std::string& lengths, const std::string& order,
           std::optional<int32_t> max_running_requests, const std::vector<int32_t>& windows) {
            const JobArrays arrays(tokens, indptr, output_tokens, max_output_tokens);
            const SimulatedJob job = arrays.job();
            const PoolOptions pool{kv_tokens, page_size, max_batch_tokens, windows};
            PlannedOptions options{known_lengths(lengths), group_order_by_name(order)};
            if (max_running_requests) options.max_running_requests = *max_running_requests;
            return unlocked(pool, [&] { return simulate_planned(job, pool, segments, options); });
        },
        py::arg("tokens"), py::arg("indptr"), py::arg("output_tokens"), py::arg("max_output_tokens"),
        py::arg("segments"), py::kw_only(), py::arg("kv_tokens"), py::arg("page_size") = 16,
        py::arg("max_batch_tokens") = 2048, py::arg("lengths") = "known", py::arg("order") = "decode_first",
        py::arg("max_running_requests") = py::none(), py::arg("windows") = no_window,
        "BatchPlanner itself, with outputs of the lengths that the job says.");
}

}  // namespace batchllm
