// All prompts of a job: a view of ragged int32 rows (CSR). The caller keeps the tokens alive; indptr is copied, so that
// nobody changes what was checked.
//
//   tokens  5 7 2 | 5 7 | 9 1 1 4
//   indptr  0       3     5         9        row(1) = 5 7;  with drop_last = 1: row(1) = 5
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

class Prompts {
 public:
    using Offsets = std::vector<int64_t>;

    // tokens [num_tokens], indptr [num_requests + 1]. Every row is read without its last `drop_last` tokens.
    Prompts(std::span<const TokenId> tokens, std::span<const int64_t> indptr, int32_t drop_last = 0)
        : Prompts(tokens, std::make_shared<const Offsets>(indptr.begin(), indptr.end()), drop_last) {}
    Prompts(std::span<const TokenId> tokens, std::span<const int32_t> indptr, int32_t drop_last = 0)
        : Prompts(tokens, std::make_shared<const Offsets>(indptr.begin(), indptr.end()), drop_last) {}

    RequestId num_requests() const { return static_cast<RequestId>(indptr_.size()) - 1; }
    int64_t num_prompt_tokens() const { return indptr_.back(); }  // dropped ones included

    int32_t prompt_length(RequestId request) const {  // dropped ones included
        return static_cast<int32_t>(indptr_[request + 1] - indptr_[request]);
    }
    std::span<const TokenId> prompt(RequestId request) const {
        return {row_data(request), static_cast<size_t>(prompt_length(request))};
    }
    int32_t row_length(RequestId request) const {
        const int32_t length = prompt_length(request);
        return length > drop_last_ ? length - drop_last_ : 0;
    }
    const TokenId* row_data(RequestId request) const { return tokens_.data() + indptr_[request]; }
    std::span<const TokenId> row(RequestId request) const {
        return {row_data(request), static_cast<size_t>(row_length(request))};
    }

 private:
    Prompts(std::span<const TokenId> tokens, std::shared_ptr<const Offsets> indptr, int32_t drop_last)
        : tokens_(tokens), offsets_(std::move(indptr)), indptr_(*offsets_), drop_last_(drop_last) {
        validate();
    }

    void validate() const {
        const auto fail = [](const std::string& what) { throw std::invalid_argument(what); };
        const auto number = [](auto value) { return std::to_string(value); };
        if (drop_last_ < 0) fail("drop_last: expected at least 0, got " + number(drop_last_));
        if (indptr_.empty()) fail("indptr: expected num_requests + 1 entries, got none");
        if (indptr_.size() - 1 > kMaxInt32) fail("indptr: more than 2^31 - 1 requests");
        if (indptr_.front() != 0) fail("indptr[0]: expected 0, got " + number(indptr_.front()));
        for (size_t i = 0; i + 1 < indptr_.size(); ++i) {
            if (indptr_[i + 1] < indptr_[i]) fail("indptr decreases at entry " + number(i + 1));
            const int64_t length = indptr_[i + 1] - indptr_[i];
            if (length > int64_t{kMaxInt32}) fail("prompt " + number(i) + " is longer than 2^31 - 1 tokens");
        }
        if (indptr_.back() != static_cast<int64_t>(tokens_.size())) {
            fail("indptr: the last entry is " + number(indptr_.back()) + ", but tokens has " + number(tokens_.size()) +
                 " entries");
        }
    }

    static constexpr uint32_t kMaxInt32 = std::numeric_limits<int32_t>::max();

    std::span<const TokenId> tokens_;
    std::shared_ptr<const Offsets> offsets_;  // of this and its copies
    std::span<const int64_t> indptr_;         // offsets_, one step nearer
    int32_t drop_last_;
};

}  // namespace batchllm
