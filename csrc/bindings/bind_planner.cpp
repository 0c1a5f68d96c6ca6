// PrefixTrie, choose_segments, Segments and BatchPlanner for Python. Token arrays are taken
// without a copy, and returned arrays are read-only views that keep their owner alive.
#include <pybind11/stl.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/array_in.h"
#include "bindings/array_out.h"
#include "bindings/bindings.h"
#include "bindings/job_arrays.h"
#include "planner/batch_planner.h"
#include "planner/choose_segments.h"
#include "planner/prefix_trie.h"
#include "planner/prompts.h"
#include "planner/segments.h"

namespace py = pybind11;

namespace batchllm {

namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

void bind_prefix_trie(py::module_& module) {
    py::class_<PrefixTrie> trie(module, "PrefixTrie",
                                "Every prefix that two prompts share, exact to the token. Nodes are numbered in "
                                "preorder; the readers of a node are one range of ranks.");
    trie.def(py::init([](const py::object& tokens, const py::object& indptr, int32_t drop_last, int32_t num_threads,
                         const py::object& prompt_of_request) {
                 const Prompts prompts = prompts_of(tokens, indptr, prompt_of_request, drop_last);
                 num_threads = thread_count(num_threads, 0);
                 const py::gil_scoped_release unlocked;
                 return std::make_unique<PrefixTrie>(prompts, num_threads);
             }),
             py::arg("tokens"), py::arg("indptr"), py::kw_only(), py::arg("drop_last") = 0, py::arg("num_threads") = 0,
             py::arg("prompt_of_request") = py::none(),
             "Rows are tokens[indptr[i] : max(indptr[i], indptr[i + 1] - drop_last)]. num_threads 0: one per core.");
    trie.def_property_readonly("num_requests", &PrefixTrie::num_requests);
    trie.def_property_readonly("num_nodes", &PrefixTrie::num_nodes);
    trie.def_property_readonly("num_tokens", &PrefixTrie::num_tokens, "Distinct prefixes, tails included.");
    def_array(trie, "order", &PrefixTrie::order, "rank -> request id, depth-first");
    def_array(trie, "parent", &PrefixTrie::parent, "-1 at the root, node 0");
    def_array(trie, "token_begin", &PrefixTrie::token_begin, "first position of a node's tokens");
    def_array(trie, "token_end", &PrefixTrie::token_end);
    def_array(trie, "request_begin", &PrefixTrie::request_begin, "first rank of a node's readers");
    def_array(trie, "request_end", &PrefixTrie::request_end);
    trie.def("audit", &PrefixTrie::audit, Unlocked(), "Recomputes everything; RuntimeError on a mismatch.");
    trie.def("__str__", [](const PrefixTrie& self) { return self.to_string(); });
}

Segments choose_segments_by_name(const PrefixTrie& trie, std::optional<int> levels, const std::string& method,
                                 double reader_cost) {
    if (levels.has_value() && *levels != 0 && *levels != 1) {
        throw py::value_error("levels: expected None (any depth), 1 or 0, got " + std::to_string(*levels));
    }
    if (method == "paper") {
        if (levels.has_value() && *levels != 1) {
            throw py::value_error("levels: method \"paper\" has a single level; expected None or 1, got " +
                                  std::to_string(*levels));
        }
        if (reader_cost != 0.0) {
            throw py::value_error("reader_cost: method \"paper\" knows none; expected 0, got " +
                                  std::to_string(reader_cost));
        }
        const py::gil_scoped_release unlocked;
        return choose_segments_paper(trie);
    }
    if (method != "exact") {
        throw py::value_error("method: expected \"exact\" or \"paper\", got \"" + method + "\"");
    }
    const auto choice = !levels.has_value() ? SharingLevels::kAny
                        : *levels == 1      ? SharingLevels::kSingle
                                            : SharingLevels::kNone;
    const py::gil_scoped_release unlocked;
    return choose_segments(trie, choice, reader_cost);
}

void bind_segments(py::module_& module) {
    py::class_<Segments> segments(module, "Segments",
                                  "Shared runs of prompt tokens. A request reads the chain from a top segment down "
                                  "to request_segment[request].");
    segments.def(
        py::init([](const py::object& parent, const py::object& token_begin, const py::object& token_end,
                    const py::object& owner_request, const py::object& request_segment, int64_t prompt_tokens) {
            return std::make_unique<Segments>(
                int32_copy<SegmentId>("parent", parent), int32_copy("token_begin", token_begin),
                int32_copy("token_end", token_end), int32_copy("owner_request", owner_request),
                int32_copy<SegmentId>("request_segment", request_segment), prompt_tokens);
        }),
        py::arg("parent"), py::arg("token_begin"), py::arg("token_end"), py::arg("owner_request"),
        py::arg("request_segment"), py::kw_only(), py::arg("prompt_tokens") = 0);
    segments.def_property_readonly("num_segments", &Segments::num_segments);
    segments.def_property_readonly("num_requests", &Segments::num_requests);
    segments.def_property_readonly("saved_tokens", &Segments::saved_tokens,
                                   "Prompt tokens not computed, against no sharing.");
    segments.def_property_readonly("prompt_tokens", &Segments::prompt_tokens);
    def_array(segments, "parent", &Segments::parent, "-1 at the top; parents precede children");
    def_array(segments, "token_begin", &Segments::token_begin);
    def_array(segments, "token_end", &Segments::token_end);
    def_array(segments, "owner_request", &Segments::owner_request, "a request whose prompt holds the tokens");
    def_array(segments, "num_readers", &Segments::num_readers);
    def_array(segments, "request_segment", &Segments::request_segment, "deepest segment of a request, or -1");
    segments.def("__str__", &Segments::to_string);

    module.def("choose_segments", &choose_segments_by_name, py::arg("trie"), py::arg("levels") = py::none(),
               py::kw_only(), py::arg("method") = "exact", py::arg("reader_cost") = 0.0,
               "The nodes to share: levels None any depth, 1 a single level, 0 none. Maximises prompt tokens not "
               "computed less reader_cost a segment and reader; method \"paper\" is the paper's own pass.");
}

// A BatchPlanner that several Python threads may use, such as one that adds requests and one that runs the steps. Calls
// run one after the other. They wait without the GIL, which the running call may need to finish.
class SharedPlanner {
 public:
    explicit SharedPlanner(const PlannerOptions& options) : planner_(options) {}

    // use(planner), which must not touch Python.
    template <typename Use>
    auto locked(const Use& use) {
        const py::gil_scoped_release unlocked;
        if (getpid() != process_) {  // a thread that no longer exists here may have been inside
            throw std::runtime_error(
                "BatchPlanner: made before this process was forked; make it here, or start processes by \"spawn\"");
        }
        const std::scoped_lock lock(mutex_);
        return use(planner_);
    }

 private:
    BatchPlanner planner_;
    std::mutex mutex_;
    const pid_t process_ = getpid();
};

py::dict stats_dict(SharedPlanner& planner) {
    const PlannerStats stats = planner.locked([](const BatchPlanner& self) { return self.stats(); });
    py::dict dict;
    dict["num_requests"] = stats.num_requests;
    dict["prompt_tokens"] = stats.prompt_tokens;
    dict["cached_prompt_tokens"] = stats.cached_prompt_tokens;
    dict["borrowed_prompt_tokens"] = stats.borrowed_prompt_tokens;
    dict["computed_prompt_tokens"] = stats.computed_prompt_tokens;
    dict["recomputed_prompt_tokens"] = stats.recomputed_prompt_tokens;
    dict["recomputed_tokens"] = stats.recomputed_tokens;
    dict["output_tokens"] = stats.output_tokens;
    dict["steps"] = stats.steps;
    dict["preemptions"] = stats.preemptions;
    dict["num_pages"] = stats.num_pages;
    dict["used_pages"] = stats.used_pages;
    dict["peak_pages"] = stats.peak_pages;
    dict["running"] = stats.running;
    dict["waiting"] = stats.waiting;
    dict["finished"] = stats.finished;
    dict["aborted"] = stats.aborted;
    return dict;
}

py::array_t<int32_t> commit(SharedPlanner& planner, const py::object& sampled, const py::object& finished) {
    const Tensor sampled_array("sampled", sampled);
    const std::span<const TokenId> tokens = int32_array(sampled_array);
    std::optional<Tensor> finished_array;
    std::span<const uint8_t> mask;
    if (!finished.is_none()) {
        mask = bool_array(finished_array.emplace("finished", finished));
        if (mask.size() != tokens.size()) {
            throw py::value_error("finished: expected " + std::to_string(tokens.size()) +
                                  " entries, as sampled has, got " + std::to_string(mask.size()));
        }
    }
    return ids_copy(planner.locked([&](BatchPlanner& self) { return self.commit(tokens, mask); }));
}

int32_t add_requests(SharedPlanner& planner, const py::object& tokens, const py::object& indptr,
                     const Segments& segments, const py::object& max_output_tokens,
                     const py::object& expected_output_tokens, double reader_cost, const py::object& prompt_of_request,
                     const py::object& score_begin) {
    const Prompts prompts = prompts_of(tokens, indptr, prompt_of_request, 0);
    const Tensor bounds("max_output_tokens", max_output_tokens);
    const std::span<const int32_t> max_output = int32_array(bounds);
    const OptionalInt32 expected_output("expected_output_tokens", expected_output_tokens, max_output.size());
    const OptionalInt32 scored_from("score_begin", score_begin, max_output.size());
    const RequestOptions options{
        .expected_output_tokens = expected_output.values(),
        .score_begin = scored_from.values(),
        .reader_cost = reader_cost,
    };
    return planner.locked(
        [&](BatchPlanner& self) { return self.add_requests(prompts, segments, max_output, options).index; });
}

// The tokens and num_cached_tokens of each request, in one call, since every call waits for its turn.
std::vector<std::pair<std::vector<TokenId>, int32_t>> outputs(SharedPlanner& planner, const py::object& request_ids) {
    const auto ids = int32_copy<RequestId>("request_ids", request_ids);
    return planner.locked([&](const BatchPlanner& self) {
        std::vector<std::pair<std::vector<TokenId>, int32_t>> outputs;
        outputs.reserve(ids.size());
        for (const RequestId id : ids) {
            const std::span<const TokenId> tokens = self.output_tokens(id);
            outputs.emplace_back(std::vector(tokens.begin(), tokens.end()), self.num_cached_tokens(id));
        }
        return outputs;
    });
}

std::unique_ptr<SharedPlanner> new_planner(int32_t num_pages, int32_t page_size, int32_t max_batch_tokens,
                                           const std::string& order, std::optional<int32_t> max_running_requests,
                                           int32_t first_request_id, int32_t window_left) {
    if (first_request_id < 0) {
        throw py::value_error("first_request_id: expected at least 0, got " + std::to_string(first_request_id));
    }
    PlannerOptions options{num_pages, page_size, max_batch_tokens};
    options.first_request_id = {first_request_id};
    options.window_left = window_left;
    options.order = group_order_by_name(order);
    if (max_running_requests) options.max_running_requests = *max_running_requests;
    return std::make_unique<SharedPlanner>(options);
}

void bind_batch_planner(py::module_& module) {
    py::class_<SharedPlanner> planner(module, "BatchPlanner",
                                      "Turns a job into token batches: next_batch(), run the model, commit(), until "
                                      "next_batch() returns None. Threads take turns.");
    planner.def(
        py::init([](const py::object& tokens, const py::object& indptr, const Segments& segments,
                    const py::object& max_output_tokens, int32_t num_pages, int32_t page_size, int32_t max_batch_tokens,
                    const py::object& expected_output_tokens, const std::string& order,
                    std::optional<int32_t> max_running_requests, int32_t window_left) {
            auto planner =
                new_planner(num_pages, page_size, max_batch_tokens, order, max_running_requests, 0, window_left);
            add_requests(*planner, tokens, indptr, segments, max_output_tokens, expected_output_tokens, 0.0, py::none(),
                         py::none());
            return planner;
        }),
        py::arg("tokens"), py::arg("indptr"), py::arg("segments"), py::kw_only(), py::arg("max_output_tokens"),
        py::arg("num_pages"), py::arg("page_size") = 16, py::arg("max_batch_tokens") = 1024,
        py::arg("expected_output_tokens") = py::none(), py::arg("order") = "decode_first",
        py::arg("max_running_requests") = py::none(), py::arg("window_left") = -1);
    planner.def(py::init(&new_planner), py::kw_only(), py::arg("num_pages"), py::arg("page_size") = 16,
                py::arg("max_batch_tokens") = 1024, py::arg("order") = "decode_first",
                py::arg("max_running_requests") = py::none(), py::arg("first_request_id") = 0,
                py::arg("window_left") = -1, "Without requests yet.");
    planner.def("add_requests", &add_requests, py::arg("tokens"), py::arg("indptr"), py::arg("segments"), py::kw_only(),
                py::arg("max_output_tokens"), py::arg("expected_output_tokens") = py::none(),
                py::arg("reader_cost") = 0.0, py::arg("prompt_of_request") = py::none(),
                py::arg("score_begin") = py::none(),
                "Adds requests to a job, before or while others run; returns the id of the first.");
    planner.def(
        "abort",
        [](SharedPlanner& planner, const py::object& request_ids) {
            const auto ids = int32_copy<RequestId>("request_ids", request_ids);
            planner.locked([&](BatchPlanner& self) { self.abort(ids); });
        },
        py::arg("request_ids"), "Ends requests, wherever they stand; not while a batch is in flight.");
    planner.def(
        "forget",
        [](SharedPlanner& planner, const py::object& request_ids) {
            const auto ids = int32_copy<RequestId>("request_ids", request_ids);
            planner.locked([&](BatchPlanner& self) { self.forget(ids); });
        },
        py::arg("request_ids"), "Drops what is kept of requests that finished, were aborted or refused.");
    planner.def_property_readonly(
        "refused",
        [](SharedPlanner& planner) {
            return planner.locked([](const BatchPlanner& self) {
                std::vector<std::pair<int32_t, std::string>> refused;
                for (const auto& [id, why] : self.refused()) refused.emplace_back(id.index, why);
                return refused;
            });
        },
        "Requests that can never fit, and why.");
    planner.def(
        "next_batch",
        [](SharedPlanner& planner) { return planner.locked([](BatchPlanner& self) { return self.next_batch(); }); },
        "None once every request is answered.");
    planner.def(
        "advance", [](SharedPlanner& planner) { planner.locked([](BatchPlanner& self) { self.advance(); }); },
        "The batch in flight is followed by another before its tokens are told.");
    planner.def("commit", &commit, py::arg("sampled"), py::arg("finished") = py::none(),
                "Continues the logit_request_ids of the oldest batch whose tokens are not told; returns the requests "
                "that finished.");
    planner.def(
        "output_tokens",
        [](SharedPlanner& planner, int32_t request) {
            return array_copy<TokenId>(planner.locked([&](const BatchPlanner& self) {
                const std::span<const TokenId> tokens = self.output_tokens(RequestId{request});
                return std::vector(tokens.begin(), tokens.end());
            }));
        },
        py::arg("request_id"));
    planner.def(
        "num_cached_tokens",
        [](SharedPlanner& planner, int32_t request) {
            return planner.locked([&](const BatchPlanner& self) { return self.num_cached_tokens(RequestId{request}); });
        },
        py::arg("request_id"), "prompt tokens that others computed for a request");
    planner.def("outputs", &outputs, py::arg("request_ids"), "Of each its output_tokens and num_cached_tokens.");
    planner.def_property_readonly(
        "order",
        [](SharedPlanner& planner) {
            return ids_copy(planner.locked([](const BatchPlanner& self) { return self.order(); }));
        },
        "request ids in plan order");
    planner.def_property_readonly("stats", &stats_dict);
    planner.def(
        "audit", [](SharedPlanner& planner) { planner.locked([](const BatchPlanner& self) { self.audit(); }); },
        "Recomputes every counter; RuntimeError on a mismatch.");
    planner.def_static(
        "most_segment_pages",
        [](int32_t page_size, int32_t max_batch_tokens, int32_t window_left) -> std::optional<int64_t> {
            const KvWindow window(window_left, page_size, max_batch_tokens);
            return window.slides() ? std::optional(window.most_pages()) : std::nullopt;
        },
        py::kw_only(), py::arg("page_size") = 16, py::arg("max_batch_tokens") = 1024, py::arg("window_left") = -1,
        "Pages of one segment, however long it is; None without a window: as many as it has tokens for.");
}

}  // namespace

GroupOrder group_order_by_name(const std::string& name) {
    if (name == "decode_first") return GroupOrder::kDecodeFirst;
    if (name == "arrival") return GroupOrder::kArrival;
    if (name == "blend") return GroupOrder::kBlend;
    throw py::value_error("order: expected \"decode_first\", \"arrival\" or \"blend\", got \"" + name + "\"");
}

void bind_planner(py::module_& module) {
    bind_prefix_trie(module);
    bind_segments(module);
    bind_batch_planner(module);
}

}  // namespace batchllm
