#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "planner/choose_segments.h"
#include "random_job.h"

using namespace batchllm;
using batchllm::testing::Job;
using batchllm::testing::RandomJobs;

namespace {

// The optimum by tabulating (node, nearest chosen ancestor): quadratic, and plain.
class Table {
 public:
    Table(const PrefixTrie& trie, bool chained, double reader_cost)
        : trie_(trie), chained_(chained), reader_cost_(reader_cost), children_(trie.num_nodes()) {
        for (NodeId node = 1; node < trie.num_nodes(); ++node) children_[trie.parent()[node]].push_back(node);
    }

    double best(NodeId node = 0, NodeId ancestor = 0) {
        const auto [entry, is_new] = table_.try_emplace({node, ancestor}, 0.0);
        if (!is_new) return entry->second;
        double value = below(node, ancestor);
        if (node > 0) {
            const double again = chained_ ? trie_.token_end()[ancestor] : 0.0;
            const double links = chained_ ? reader_cost_ * trie_.num_readers(node) : 0.0;
            value = std::max(value, below(node, node) - (trie_.token_end()[node] - again) - links);
        }
        return table_[{node, ancestor}] = value;
    }

 private:
    double below(NodeId node, NodeId ancestor) {
        double value = 0.0;
        int32_t num_leaves = trie_.num_readers(node);
        for (const NodeId child : children_[node]) {
            num_leaves -= trie_.num_readers(child);
            value += best(child, ancestor);
        }
        const double link = !chained_ && ancestor > 0 ? reader_cost_ : 0.0;
        return value + num_leaves * (trie_.token_end()[ancestor] - link);
    }

    const PrefixTrie& trie_;
    const bool chained_;
    const double reader_cost_;
    std::vector<std::vector<NodeId>> children_;
    std::map<std::pair<NodeId, NodeId>, double> table_;
};

double value_of(const Segments& segments, double reader_cost) {
    int64_t num_links = 0;
    for (RequestIndex request = 0; request < segments.num_requests(); ++request) {
        for (SegmentId s = segments.request_segment()[request]; s != kNoSegment; s = segments.parent()[s.index]) {
            ++num_links;
        }
    }
    return static_cast<double>(segments.saved_tokens()) - reader_cost * static_cast<double>(num_links);
}

}  // namespace

TEST_CASE("choices are worth what the full table says, on tries too large for brute force") {
    RandomJobs random(1);
    for (const double reader_cost : {0.0, 0.125, 0.5, 1.0, 3.25}) {
        for (int i = 0; i < 400; ++i) {
            const Job job = random.job(80, 0);
            const PrefixTrie trie(job.prompts());
            const double single = Table(trie, false, reader_cost).best();
            const double any_depth = Table(trie, true, reader_cost).best();
            CHECK(value_of(choose_segments(trie, SharingLevels::kSingle, reader_cost), reader_cost) == single);
            CHECK(value_of(choose_segments(trie, SharingLevels::kAny, reader_cost), reader_cost) ==
                  std::max(single, any_depth));
            CHECK(choose_segments_paper(trie).saved_tokens() <= Table(trie, false, 0.0).best());
        }
    }
}

TEST_CASE("free readers: any depth saves every repeated token") {
    RandomJobs random(2);
    for (int i = 0; i < 500; ++i) {
        const Job job = random.job(40, 0);
        const PrefixTrie trie(job.prompts());
        const Segments segments = choose_segments(trie, SharingLevels::kAny);
        CHECK(segments.prompt_tokens() - segments.saved_tokens() == trie.num_tokens());
    }
}

TEST_CASE("detaching a reader takes its share of the counts") {
    RandomJobs random(3);
    for (int i = 0; i < 500; ++i) {
        const Job job = random.job(20, 0);
        Segments segments = choose_segments(PrefixTrie(job.prompts()), SharingLevels::kAny);
        for (RequestIndex request = 0; request < segments.num_requests(); ++request) {
            segments.detach(request);
            segments.detach(request);  // a loner has nothing to lose
            const Segments again(segments.parent(), segments.token_begin(), segments.token_end(),
                                 segments.owner_request(), segments.request_segment());
            CHECK(segments.num_readers() == again.num_readers());
            CHECK(segments.saved_tokens() == again.saved_tokens());
        }
        CHECK(segments.saved_tokens() == 0);
    }
}
