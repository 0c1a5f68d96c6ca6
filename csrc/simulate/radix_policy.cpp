#include "simulate/radix_policy.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "simulate/prefix_frontier.h"
#include "simulate/prompt_index.h"
#include "simulate/radix_queue.h"
#include "simulate/radix_tree.h"
#include "simulate/recorder.h"

namespace batchllm {

namespace {

constexpr int32_t kMaxReservedOutput = 4096;
constexpr double kInitialRatio = 0.7;
constexpr double kLeastRatio = 0.7 * 0.14;
constexpr double kRatioDecay = (kInitialRatio - kLeastRatio) / 600;
constexpr int32_t kRetractSteps = 20;

class RadixScheduler {
 public:
    RadixScheduler(const SimulatedJob& job, const PoolOptions& pool, RadixOrder order, int32_t max_running_requests)
        : job_(job),
          pool_tokens_(pool.kv_tokens),
          max_batch_tokens_(pool.max_batch_tokens),
          max_running_requests_(max_running_requests),
          index_(job.prompts),
          tree_(job.prompts, index_),
          inserted_(index_),
          recorder_(job, pool),
          queue_(order, index_, recorder_, tree_),
          requests_(job.num_requests()) {
        for (RequestIndex request = 0; request < job.num_requests(); ++request) queue_.append(request);
    }

    Simulation run() {
        while (queue_.size() > 0 || !running_.empty() || chunked_ != kNone) {
            if (!try_prefill()) decode();
        }
        return recorder_.finish(index_.trie().num_tokens());
    }

 private:
    struct Request {
        int32_t num_stored = 0;                    // tokens with K/V
        int32_t num_in_tree = 0;                   // of these, in the tree at or above last_node
        RadixNodeId last_node = RadixTree::kRoot;  // locked while the request runs
    };
    struct Chunk {
        RequestIndex request;
        int32_t num_tokens;
    };
    // One prefill step while it is put together; its tokens are stored once all of them are known.
    struct Prefill {
        int64_t tokens_left;
        double num_reserved;  // K/V that running requests may still need, and that these chunks need
        std::vector<Chunk> chunks = {};
    };

    int64_t num_free() const { return pool_tokens_ - tree_.num_tokens() - num_private_; }
    int64_t num_available() const { return num_free() + tree_.num_evictable(); }
    int32_t outputs_left(RequestIndex request) const {
        return std::min(job_.max_output_tokens[request] - recorder_.num_outputs(request), kMaxReservedOutput);
    }

    // False if no request could be prefilled.
    bool try_prefill() {
        if ((is_full_ || queue_.size() == 0) && chunked_ == kNone) return false;
        const int64_t num_allowed = max_running_requests_ - static_cast<int64_t>(running_.size());
        if (num_allowed <= 0 && chunked_ == kNone) {
            is_full_ = true;
            return false;
        }
        queue_.sort();
        Prefill prefill{max_batch_tokens_, 0.0};
        for (const RequestIndex request : running_) prefill.num_reserved += outputs_left(request) * ratio_;
        if (chunked_ == kNone || continue_chunked(prefill)) admit_waiting(prefill, num_allowed);
        if (prefill.chunks.empty()) return false;
        int64_t num_tokens = 0;
        for (const Chunk& chunk : prefill.chunks) num_tokens += chunk.num_tokens;
        make_room(num_tokens);
        for (const Chunk& chunk : prefill.chunks) store(chunk.request, chunk.num_tokens);
        recorder_.end_step(pool_tokens_ - num_available(), num_started(prefill));
        for (const Chunk& chunk : prefill.chunks) end_prefill(chunk.request);
        return true;
    }

    int64_t num_started(const Prefill& prefill) const {
        return static_cast<int64_t>(running_.size() + prefill.chunks.size());
    }

    // True where that was its last chunk.
    bool continue_chunked(Prefill& prefill) {
        const int32_t pending = recorder_.num_tokens(chunked_) - requests_[chunked_].num_stored;
        const int64_t room = num_available() - static_cast<int64_t>(std::ceil(prefill.num_reserved));
        const int64_t count = std::min({int64_t{pending}, prefill.tokens_left, room});
        if (count <= 0) return false;
        add_chunk(prefill, {chunked_, static_cast<int32_t>(count)});
        return count == pending;
    }

    void admit_waiting(Prefill& prefill, int64_t num_allowed) {
        std::vector<RequestIndex> admitted;
        constexpr size_t kFirstLook = 32;
        size_t num_seen = 0;
        bool goes_on = true;
        for (size_t look = kFirstLook; goes_on && num_seen < static_cast<size_t>(queue_.size()); look *= 4) {
            const std::vector<RequestIndex> next = queue_.first(look);
            for (; goes_on && num_seen < next.size(); ++num_seen) {
                if (static_cast<int64_t>(prefill.chunks.size()) >= num_allowed) {
                    is_full_ = true;
                    goes_on = false;
                } else if (try_admit(next[num_seen], prefill)) {
                    admitted.push_back(next[num_seen]);
                } else {
                    goes_on = false;
                }
            }
        }
        for (const RequestIndex request : admitted) queue_.leave(request);
    }

    bool try_admit(RequestIndex request, Prefill& prefill) {
        if (prefill.tokens_left <= 0) return false;
        const int32_t num_tokens = recorder_.num_tokens(request);
        const RadixNodeId last_node = tree_.match(request, num_tokens - 1);
        const int32_t num_found = tree_.depth(last_node);
        const int32_t pending = num_tokens - num_found;
        tree_.lock(last_node);
        const bool is_alone = running_.empty() && prefill.chunks.empty();
        const double room = static_cast<double>(num_available()) - prefill.num_reserved;
        if (!is_alone && int64_t{pending} + outputs_left(request) + 1 >= room) {
            tree_.unlock(last_node);
            is_full_ = true;
            return false;
        }
        requests_[request] = {num_found, num_found, last_node};
        recorder_.admit(request, std::min(inserted_.reached(request), num_tokens - 1));
        const auto count = static_cast<int32_t>(std::min<int64_t>(pending, prefill.tokens_left));
        if (count < pending) chunked_ = request;
        add_chunk(prefill, {request, count});
        return true;
    }

    void add_chunk(Prefill& prefill, Chunk chunk) {
        prefill.chunks.push_back(chunk);
        prefill.tokens_left -= chunk.num_tokens;
        prefill.num_reserved += int64_t{chunk.num_tokens} + outputs_left(chunk.request) + 1;
    }

    bool is_complete(RequestIndex request) const {
        return requests_[request].num_stored == recorder_.num_tokens(request);
    }

    void make_room(int64_t num_tokens) {
        if (num_tokens > num_free()) tree_.evict(num_tokens - num_free());
    }

    void store(RequestIndex request, int32_t count) {
        int32_t& num_stored = requests_[request].num_stored;
        recorder_.compute(request, num_stored, num_stored + count);
        num_stored += count;
        num_private_ += count;
    }

    void end_prefill(RequestIndex request) {
        if (is_complete(request)) {
            if (request == chunked_) chunked_ = kNone;
            if (recorder_.emit(request)) return finish(request);
            running_.push_back(request);
        }
        keep_in_tree(request);
    }

    // All of a request's K/V goes into the tree; if the tree already has it, the request's copy is freed.
    void keep_in_tree(RequestIndex request) {
        Request& state = requests_[request];
        const RadixNodeId last_node = tree_.insert(request, state.num_stored);
        inserted_.advance(request, state.num_stored);
        tree_.lock(last_node);
        tree_.unlock(state.last_node);
        num_private_ -= state.num_stored - state.num_in_tree;
        state.num_in_tree = state.num_stored;
        state.last_node = last_node;
    }

    void finish(RequestIndex request) {
        keep_in_tree(request);
        tree_.unlock(requests_[request].last_node);
        is_full_ = false;
    }

    void decode() {
        bool has_retracted = false;
        while (num_available() < static_cast<int64_t>(running_.size())) {
            retract();
            has_retracted = true;
        }
        if (running_.empty()) return;  // the chunked request has the pool to itself now
        ratio_ = has_retracted ? retracted_ratio() : std::max(ratio_ - kRatioDecay, kLeastRatio);
        make_room(static_cast<int64_t>(running_.size()));
        for (const RequestIndex request : running_) store(request, 1);
        recorder_.end_step(pool_tokens_ - num_available(),
                           static_cast<int64_t>(running_.size()) + (chunked_ == kNone ? 0 : 1));
        std::vector<RequestIndex> still_running;
        for (const RequestIndex request : running_) {
            if (recorder_.emit(request)) {
                finish(request);
            } else {
                still_running.push_back(request);
            }
        }
        running_ = std::move(still_running);
    }

    double retracted_ratio() const {
        int64_t generated = kRetractSteps * static_cast<int64_t>(running_.size());
        int64_t bound = 1;
        for (const RequestIndex request : running_) {
            generated += recorder_.num_outputs(request);
            bound += job_.max_output_tokens[request];
        }
        return std::min(1.0, static_cast<double>(generated) / static_cast<double>(bound));
    }

    void retract() {
        const auto fewer_outputs = [&](RequestIndex a, RequestIndex b) {
            const int32_t outputs_a = recorder_.num_outputs(a), outputs_b = recorder_.num_outputs(b);
            if (outputs_a != outputs_b) return outputs_a < outputs_b;
            return job_.prompts.prompt_length(a) > job_.prompts.prompt_length(b);
        };
        const auto victim = std::min_element(running_.begin(), running_.end(), fewer_outputs);
        const RequestIndex request = *victim;
        running_.erase(victim);
        Request& state = requests_[request];
        num_private_ -= state.num_stored - state.num_in_tree;
        tree_.unlock(state.last_node);
        state = {};
        recorder_.preempt();
        queue_.append(request);
        is_full_ = false;
    }

    const SimulatedJob& job_;
    const int64_t pool_tokens_;
    const int32_t max_batch_tokens_;
    const int32_t max_running_requests_;
    const PromptIndex index_;
    RadixTree tree_;
    PrefixFrontier inserted_;  // what was ever in the tree
    Recorder recorder_;
    RadixQueue queue_;

    std::vector<Request> requests_;      // [num_requests]
    std::vector<RequestIndex> running_;  // those that decode
    RequestIndex chunked_ = kNone;       // the one in the middle of its prefill
    int64_t num_private_ = 0;            // tokens with K/V outside the tree
    bool is_full_ = false;               // nothing more was admitted, and no request has left since
    double ratio_ = kInitialRatio;
};

}  // namespace

Simulation simulate_radix(const SimulatedJob& job, const PoolOptions& pool, RadixOrder order,
                          int32_t max_running_requests) {
    check_simulation(job, pool, KeptKv::kAll);
    if (max_running_requests < 1) {
        throw std::invalid_argument("max_running_requests: expected at least 1, got " +
                                    std::to_string(max_running_requests));
    }
    return RadixScheduler(job, pool, order, max_running_requests).run();
}

}  // namespace batchllm
