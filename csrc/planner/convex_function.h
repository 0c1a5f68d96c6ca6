// A convex, piecewise linear function with integer values on the integers [0, right].
//
//   value                       Kept as its value and slope at both ends and the kinks between them:
//     |             /           slope_left + sum of kinks = slope_right. All arithmetic is exact.
//     |         _ -'
//     | ___ - '     kinks: position -> by how much the slope grows there
//     +-----------------
//     0              right
#pragma once

#include <cassert>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory_resource>
#include <utility>

namespace batchllm {

class ConvexFunction {
 public:
    // x -> slope * x. Functions that are added up take their kinks from one memory resource.
    static ConvexFunction linear(int64_t slope, int64_t right,
                                 std::pmr::memory_resource* memory = std::pmr::get_default_resource()) {
        ConvexFunction line(memory);
        line.right_ = right;
        line.value_right_ = slope * right;
        line.slope_left_ = line.slope_right_ = slope;
        return line;
    }

    int64_t value_left() const { return value_left_; }
    int64_t value_right() const { return value_right_; }

    // Adds a function over the same range. The smaller map of kinks is moved into the larger one, so that n kinks
    // are moved O(n log n) times altogether.
    void add(ConvexFunction&& other) {
        assert(right_ == other.right_);
        if (kinks_.size() < other.kinks_.size()) kinks_.swap(other.kinks_);
        for (const auto& [position, growth] : other.kinks_) kinks_[position] += growth;
        value_left_ += other.value_left_;
        value_right_ += other.value_right_;
        slope_left_ += other.slope_left_;
        slope_right_ += other.slope_right_;
    }

    // f := max(f, line) for a line value_at_0 + slope * x that is nowhere steeper than f and not above it at
    // `right`. Returns the smallest x >= 0 from which on the line is nowhere above f.
    int64_t raise_to_line(int64_t value_at_0, int64_t slope) {
        const auto line = [&](int64_t x) { return value_at_0 + slope * x; };
        if (line(0) <= value_left_) return 0;
        int64_t position = 0;
        int64_t value = value_left_;
        int64_t current_slope = slope_left_;
        while (!kinks_.empty()) {
            const auto [next, growth] = *kinks_.begin();
            const int64_t next_value = value + current_slope * (next - position);
            if (line(next) <= next_value) break;
            position = next;
            value = next_value;
            current_slope += growth;
            kinks_.erase(kinks_.begin());
        }
        // The line is last above f at `below`; between there and `below + 1` runs a piece of its own.
        const int64_t below = position + (line(position) - value - 1) / (current_slope - slope);
        const int64_t rise = value + current_slope * (below + 1 - position) - line(below);
        if (current_slope > rise) kinks_[below + 1] += current_slope - rise;
        if (below == 0) {
            slope_left_ = rise;
        } else {
            slope_left_ = slope;
            if (rise > slope) kinks_[below] += rise - slope;
        }
        value_left_ = line(0);
        return below + 1;
    }

    // Forgets f beyond `right`.
    void cut(int64_t right) {
        assert(right <= right_);
        while (!kinks_.empty() && std::prev(kinks_.end())->first >= right) {
            const auto [position, growth] = *std::prev(kinks_.end());
            value_right_ -= slope_right_ * (right_ - position);
            slope_right_ -= growth;
            right_ = position;
            kinks_.erase(std::prev(kinks_.end()));
        }
        value_right_ -= slope_right_ * (right_ - right);
        right_ = right;
    }

 private:
    explicit ConvexFunction(std::pmr::memory_resource* memory) : kinks_(memory) {}

    int64_t right_ = 0;
    int64_t value_left_ = 0, value_right_ = 0;
    int64_t slope_left_ = 0, slope_right_ = 0;
    std::pmr::map<int64_t, int64_t> kinks_;  // strictly inside (0, right)
};

}  // namespace batchllm
