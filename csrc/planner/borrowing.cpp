#include "planner/borrowing.h"

#include <algorithm>
#include <utility>

namespace batchllm {

namespace {

// The position of a walk from the root through the live segments: inside one, or at its end.
struct LivePosition {
    int32_t live = kNone;  // index; kNone: at the root
    bool lost = false;     // the tokens left the live segments
};

class LiveForest {
 public:
    explicit LiveForest(std::span<const LiveSegment> live) : live_(live), by_first_token_(live.size()) {
        for (size_t i = 0; i < live.size(); ++i) by_first_token_[i] = static_cast<int32_t>(i);
        std::sort(by_first_token_.begin(), by_first_token_.end(), [&](int32_t a, int32_t b) {
            return std::pair(key(a), live_[a].id) < std::pair(key(b), live_[b].id);
        });
    }

    const LiveSegment& operator[](int32_t index) const { return live_[index]; }

    // The live segment that holds row[begin], and up to where (at most `end`) it agrees with the row.
    std::pair<LivePosition, int32_t> step(LivePosition from, const TokenId* row, int32_t begin, int32_t end) const {
        if (from.live != kNone && begin < live_[from.live].end) return {from, agreement(from.live, row, begin, end)};
        const SegmentId parent = from.live == kNone ? kNoSegment : live_[from.live].id;
        const std::pair<SegmentId, TokenId> wanted(parent, row[begin]);
        auto child = std::lower_bound(by_first_token_.begin(), by_first_token_.end(), wanted,
                                      [&](int32_t index, const auto& value) { return key(index) < value; });
        LivePosition best;
        int32_t best_end = begin;
        for (; child != by_first_token_.end() && key(*child) == wanted; ++child) {
            const int32_t agreed = agreement(*child, row, begin, end);
            if (agreed > best_end) {
                best = {*child};
                best_end = agreed;
            }
        }
        return {best, best_end};
    }

 private:
    std::pair<SegmentId, TokenId> key(int32_t index) const {
        return {live_[index].parent, live_[index].prompt[live_[index].begin]};
    }
    int32_t agreement(int32_t index, const TokenId* row, int32_t begin, int32_t end) const {
        end = std::min(end, live_[index].end);
        const TokenId* tokens = live_[index].prompt;
        return static_cast<int32_t>(std::mismatch(row + begin, row + end, tokens + begin).first - row);
    }

    std::span<const LiveSegment> live_;
    std::vector<int32_t> by_first_token_;  // indices by (parent, first token)
};

// Rebuilds the forest of the added segments, cut where the live ones end.
class Borrower {
 public:
    Borrower(const LiveForest& live, const Prompts& prompts, const Segments& added, double reader_cost)
        : live_(live), prompts_(prompts), added_(added), reader_cost_(reader_cost) {}

    BorrowedSegments run() {
        reached_.resize(added_.num_segments());
        for (int32_t s = 0; s < added_.num_segments(); ++s) {
            Reached reached = reached_by(added_.parent()[s]);
            const RequestIndex owner = added_.owner_request()[s];
            const int32_t end = added_.token_end()[s];
            const int32_t begin = follow(reached, owner, added_.token_begin()[s], end, added_.num_readers()[s], true);
            if (begin < end) reached = {append(reached.segment, begin, end, owner, kNoSegment), {.lost = true}};
            reached_[s] = reached;
        }
        std::vector<SegmentId> request_segment(prompts_.num_requests());
        for (RequestIndex request = 0; request < prompts_.num_requests(); ++request) {
            Reached reached = reached_by(added_.request_segment()[request]);
            const int32_t end = prompts_.prompt_length(request) - 1;  // the last token is always its own
            follow(reached, request, added_.covered_tokens(request), end, 1, false);
            request_segment[request] = reached.segment;
        }
        return {Segments(std::move(parent_), std::move(token_begin_), std::move(token_end_), std::move(owner_),
                         std::move(request_segment), added_.prompt_tokens()),
                std::move(source_)};
    }

 private:
    struct Reached {                     // where an added segment ends
        SegmentId segment = kNoSegment;  // in the new forest
        LivePosition at = {};
    };

    Reached reached_by(SegmentId added) const { return added == kNoSegment ? Reached{} : reached_[added.index]; }

    // Appends pieces with a source for tokens [begin, end) of a prompt, as far as live segments hold them and borrowing
    // pays. Returns where they end. ends_here: a piece that reaches `end` adds no segment.
    int32_t follow(Reached& reached, RequestIndex request, int32_t begin, int32_t end, int32_t num_readers,
                   bool ends_here) {
        const TokenId* row = prompts_.row_data(request);
        while (begin < end && !reached.at.lost) {
            const auto [at, agreed] = live_.step(reached.at, row, begin, end);
            // A source is read from its first token: a piece that continues inside one replaces the piece before.
            const bool goes_on = agreed > begin && begin > live_[at.live].begin;
            const bool is_free = goes_on || (ends_here && agreed == end);
            if (agreed == begin || (!is_free && agreed - begin <= reader_cost_ * num_readers)) {
                reached.at.lost = true;
                break;
            }
            const SegmentId parent = goes_on ? parent_[reached.segment.index] : reached.segment;
            reached.segment = append(parent, live_[at.live].begin, agreed, request, live_[at.live].id);
            reached.at = at;
            begin = agreed;
        }
        return begin;
    }

    SegmentId append(SegmentId parent, int32_t begin, int32_t end, RequestIndex owner, SegmentId source) {
        parent_.push_back(parent);
        token_begin_.push_back(begin);
        token_end_.push_back(end);
        owner_.push_back(owner);
        source_.push_back(source);
        return {static_cast<int32_t>(parent_.size()) - 1};
    }

    const LiveForest& live_;
    const Prompts& prompts_;
    const Segments& added_;
    const double reader_cost_;
    std::vector<Reached> reached_;  // [added segments]
    std::vector<SegmentId> parent_, source_;
    std::vector<int32_t> token_begin_, token_end_;
    std::vector<RequestIndex> owner_;
};

}  // namespace

BorrowedSegments borrow_from(std::span<const LiveSegment> live, const Prompts& prompts, const Segments& added,
                             double reader_cost) {
    return Borrower(LiveForest(live), prompts, added, reader_cost).run();
}

}  // namespace batchllm
