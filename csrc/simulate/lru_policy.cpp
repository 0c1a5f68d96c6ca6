#include "simulate/lru_policy.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "planner/stored_segment.h"
#include "simulate/block_pool.h"
#include "simulate/prompt_index.h"
#include "simulate/recorder.h"

namespace batchllm {

namespace {

// Assigns content ids to the full blocks of every request: within a prompt by what the prompts share, with generated
// tokens a unique id each.
class BlockContents {
 public:
    BlockContents(const SimulatedJob& job, const PromptIndex& index, int32_t page_size)
        : indptr_(job.num_requests() + 1), first_generated_(job.num_requests()) {
        for (RequestIndex r = 0; r < job.num_requests(); ++r) {
            indptr_[r + 1] = indptr_[r] + job.prompts.prompt_length(r) / page_size;
        }
        in_prompts_.resize(indptr_.back());
        int64_t next = 0;
        for (int32_t rank = 0; rank < job.num_requests(); ++rank) {
            const RequestIndex request = index.request(rank);
            const int64_t num_shared = index.neighbour_prefix(rank) / page_size;
            if (num_shared > 0) {
                const auto before = in_prompts_.begin() + indptr_[index.request(rank - 1)];
                std::copy_n(before, num_shared, in_prompts_.begin() + indptr_[request]);
            }
            for (int64_t i = indptr_[request] + num_shared; i < indptr_[request + 1]; ++i) {
                in_prompts_[i] = static_cast<ContentId>(next++);
            }
        }
        for (RequestIndex r = 0; r < job.num_requests(); ++r) {
            first_generated_[r] = static_cast<ContentId>(next);
            next += job.num_kv_tokens(r) / page_size - num_in_prompt(r);
        }
        if (next > std::numeric_limits<ContentId>::max()) throw std::length_error("more than 2^31 - 1 distinct blocks");
        num_contents_ = static_cast<int32_t>(next);
    }

    int32_t num_contents() const { return num_contents_; }
    ContentId operator()(RequestIndex request, int32_t block) const {
        const int32_t in_prompt = num_in_prompt(request);
        return block < in_prompt ? in_prompts_[indptr_[request] + block]
                                 : first_generated_[request] + block - in_prompt;
    }

 private:
    int32_t num_in_prompt(RequestIndex request) const {
        return static_cast<int32_t>(indptr_[request + 1] - indptr_[request]);
    }

    std::vector<int64_t> indptr_;             // [num_requests + 1]
    std::vector<ContentId> in_prompts_;       // [full blocks of all prompts]
    std::vector<ContentId> first_generated_;  // [num_requests]
    int32_t num_contents_ = 0;
};

class LruScheduler {
 public:
    LruScheduler(const SimulatedJob& job, const PoolOptions& pool, int32_t max_num_seqs, bool is_sorted)
        : job_(job),
          page_size_(pool.page_size),
          max_batch_tokens_(pool.max_batch_tokens),
          max_num_seqs_(max_num_seqs),
          window_(widest_window(pool.windows), pool.page_size, pool.max_batch_tokens),
          index_(job.prompts),
          contents_(job, index_, pool.page_size),
          pool_(num_useful_blocks(job, pool), contents_.num_contents()),
          recorder_(job, pool),
          requests_(job.num_requests()) {
        std::vector<RequestIndex> arrivals(job.num_requests());
        std::iota(arrivals.begin(), arrivals.end(), 0);
        const std::vector<RequestIndex>& order = is_sorted ? index_.trie().order() : arrivals;
        waiting_.assign(order.begin(), order.end());
    }

    Simulation run() {
        while (!running_.empty() || !waiting_.empty()) step();
        return recorder_.finish(index_.trie().num_tokens());
    }

 private:
    struct Request {
        int32_t num_stored = 0;     // tokens with K/V, including those of the current step
        int32_t num_published = 0;  // its first full blocks
        int32_t num_dropped = 0;    // its first blocks that it does not hold, because no later row sees them
        std::vector<BlockId> blocks;
    };

    // A pool that holds all requests at once never reuses a block, so more blocks than that are not needed.
    static int32_t num_useful_blocks(const SimulatedJob& job, const PoolOptions& pool) {
        int64_t num_blocks = 0;
        for (RequestIndex request = 0; request < job.num_requests(); ++request) {
            num_blocks += (job.num_kv_tokens(request) + pool.page_size - 1) / pool.page_size;
        }
        return static_cast<int32_t>(std::min(num_blocks, pool.kv_tokens / pool.page_size));
    }

    void step() {
        int32_t budget = max_batch_tokens_;
        const bool has_preempted = !schedule_running(budget);
        if (!has_preempted) admit_waiting(budget);
        recorder_.end_step(int64_t{pool_.num_blocks() - pool_.num_free()} * page_size_,
                           static_cast<int64_t>(running_.size()));
        std::vector<RequestIndex> still_running;
        for (const RequestIndex request : running_) {
            const bool is_complete = requests_[request].num_stored == recorder_.num_tokens(request);
            if (is_complete && recorder_.emit(request)) {
                release_blocks(request);
            } else {
                still_running.push_back(request);
            }
        }
        running_ = std::move(still_running);
    }

    // False if a request had to be preempted.
    bool schedule_running(int32_t& budget) {
        bool has_preempted = false;
        for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
            const RequestIndex request = running_[i];
            const int32_t pending = recorder_.num_tokens(request) - requests_[request].num_stored;
            const int32_t count = std::min(pending, budget);
            while (!try_compute(request, count)) {
                preempt(running_.back());
                has_preempted = true;
                if (i == running_.size()) return false;  // it was the last itself
            }
            budget -= count;
        }
        return !has_preempted;
    }

    void admit_waiting(int32_t& budget) {
        while (!waiting_.empty() && budget > 0 && static_cast<int32_t>(running_.size()) < max_num_seqs_) {
            const RequestIndex request = waiting_.front();
            const int32_t num_found = find_blocks(request);
            const int32_t pending = recorder_.num_tokens(request) - num_found * page_size_;
            const int32_t count = std::min(pending, budget);
            if (!try_start(request, num_found, count)) return;
            waiting_.pop_front();
            running_.push_back(request);
            budget -= count;
        }
    }

    int32_t find_limit(RequestIndex request) const { return (recorder_.num_tokens(request) - 1) / page_size_; }

    // The most of its first blocks of which all that the row behind them sees can be found.
    int32_t find_blocks(RequestIndex request) const {
        int32_t num_found = 0, found_begin = 0;
        for (int32_t block = 0; block < find_limit(request); ++block) {
            if (pool_.find(contents_(request, block)) == kNone) {
                if (!window_.slides()) break;
                found_begin = block + 1;
            } else if (found_begin <= window_.num_dropped_pages((block + 1) * page_size_)) {
                num_found = block + 1;
            }
        }
        return num_found;
    }

    bool try_start(RequestIndex request, int32_t num_found, int32_t count) {
        Request& state = requests_[request];
        const int32_t num_dropped = window_.num_dropped_pages(num_found * page_size_);
        int32_t num_taken = num_blocks(num_found * page_size_ + count) - num_found;  // from the free queue
        for (int32_t i = num_dropped; i < num_found; ++i) num_taken += pool_.is_free(pool_.find(contents_(request, i)));
        if (num_taken > pool_.num_free()) return false;

        int32_t num_findable = num_found;
        while (num_findable < find_limit(request) && pool_.was_findable(contents_(request, num_findable))) {
            ++num_findable;
        }
        recorder_.admit(request, num_findable * page_size_);
        state.num_dropped = num_dropped;
        state.blocks.assign(num_dropped, kNone);
        for (int32_t i = num_dropped; i < num_found; ++i) {
            state.blocks.push_back(pool_.find(contents_(request, i)));
            pool_.use(state.blocks.back());
        }
        state.num_published = num_found;
        state.num_stored = num_found * page_size_;
        return try_compute(request, count);
    }

    bool try_compute(RequestIndex request, int32_t count) {
        Request& state = requests_[request];
        drop_blocks(state);
        const int32_t begin = state.num_stored;
        const int32_t end = begin + count;
        const int32_t num_new = num_blocks(end) - static_cast<int32_t>(state.blocks.size());
        if (num_new > pool_.num_free()) return false;
        for (int32_t i = 0; i < num_new; ++i) state.blocks.push_back(pool_.allocate());
        for (; state.num_published < end / page_size_; ++state.num_published) {
            pool_.publish(state.blocks[state.num_published], contents_(request, state.num_published));
        }
        recorder_.compute(request, begin, end);
        state.num_stored = end;
        return true;
    }

    void preempt(RequestIndex request) {
        release_blocks(request);
        running_.pop_back();
        waiting_.push_front(request);
        recorder_.preempt();
    }

    void drop_blocks(Request& state) {
        const int32_t num_dropped = window_.num_dropped_pages(state.num_stored);
        release(state, state.num_dropped, num_dropped);
        state.num_dropped = num_dropped;
    }

    void release_blocks(RequestIndex request) {
        Request& state = requests_[request];
        release(state, state.num_dropped, static_cast<int32_t>(state.blocks.size()));
        state = {};
    }

    // The last first.
    void release(const Request& state, int32_t begin, int32_t end) {
        for (int32_t block = end - 1; block >= begin; --block) pool_.release(state.blocks[block]);
    }

    int32_t num_blocks(int64_t num_tokens) const {
        return static_cast<int32_t>((num_tokens + page_size_ - 1) / page_size_);
    }

    const SimulatedJob& job_;
    const int32_t page_size_;
    const int32_t max_batch_tokens_;
    const int32_t max_num_seqs_;
    const KvWindow window_;
    const PromptIndex index_;
    const BlockContents contents_;
    BlockPool pool_;
    Recorder recorder_;
    std::vector<Request> requests_;      // [num_requests]
    std::vector<RequestIndex> running_;  // in order of admission
    std::deque<RequestIndex> waiting_;
};

}  // namespace

Simulation simulate_lru(const SimulatedJob& job, const PoolOptions& pool, int32_t max_num_seqs, bool is_sorted) {
    check_simulation(job, pool, KeptKv::kVisible);
    if (max_num_seqs < 1) {
        throw std::invalid_argument("max_num_seqs: expected at least 1, got " + std::to_string(max_num_seqs));
    }
    return LruScheduler(job, pool, max_num_seqs, is_sorted).run();
}

}  // namespace batchllm
