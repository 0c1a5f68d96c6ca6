// All prompts of a job: a view of ragged int32 rows (CSR). The tokens live as long as `tokens_owner`; indptr is
// copied, so that it cannot change after the check.
//
//   tokens  5 7 2 | 5 7 | 9 1 1 4
//   indptr  0       3     5         9        row(1) = 5 7;  with drop_last = 1: row(1) = 5
//
// Usually request i has row i. If several requests (samples) have one prompt, `prompt_of_request` names each one's row,
// and the tokens are stored once.
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
    // tokens [num_tokens], indptr [num_prompts + 1] of int32 or int64, prompt_of_request [num_requests], or empty: one
    // request per prompt. Every row is read without its last `drop_last` tokens. tokens_owner null: the caller keeps
    // the tokens alive.
    template <typename Index>
    Prompts(std::span<const TokenId> tokens, std::span<const Index> indptr, int32_t drop_last = 0,
            std::span<const int32_t> prompt_of_request = {}, std::shared_ptr<const void> tokens_owner = nullptr)
        : tokens_(tokens),
          tokens_owner_(std::move(tokens_owner)),
          arrays_(std::make_shared<const Arrays>(
              Arrays{{indptr.begin(), indptr.end()}, {prompt_of_request.begin(), prompt_of_request.end()}})),
          indptr_(arrays_->indptr),
          prompt_of_request_(arrays_->prompt_of_request),
          drop_last_(drop_last) {
        validate();
        num_prompt_tokens_ = prompt_of_request_.empty() ? indptr_.back() : 0;
        for (const int32_t prompt : prompt_of_request_) num_prompt_tokens_ += indptr_[prompt + 1] - indptr_[prompt];
    }

    RequestIndex num_requests() const {
        return static_cast<RequestIndex>(prompt_of_request_.empty() ? indptr_.size() - 1 : prompt_of_request_.size());
    }
    const std::shared_ptr<const void>& tokens_owner() const { return tokens_owner_; }
    int64_t num_prompt_tokens() const { return num_prompt_tokens_; }  // of all requests, including dropped ones

    int32_t prompt_length(RequestIndex request) const {  // including dropped ones
        const int64_t row = row_of(request);
        return static_cast<int32_t>(indptr_[row + 1] - indptr_[row]);
    }
    std::span<const TokenId> prompt(RequestIndex request) const {
        return {row_data(request), static_cast<size_t>(prompt_length(request))};
    }
    int32_t row_length(RequestIndex request) const {
        const int32_t length = prompt_length(request);
        return length > drop_last_ ? length - drop_last_ : 0;
    }
    const TokenId* row_data(RequestIndex request) const { return tokens_.data() + indptr_[row_of(request)]; }
    std::span<const TokenId> row(RequestIndex request) const {
        return {row_data(request), static_cast<size_t>(row_length(request))};
    }

 private:
    struct Arrays {
        std::vector<int64_t> indptr;
        std::vector<int32_t> prompt_of_request;
    };

    int64_t row_of(RequestIndex request) const {
        return prompt_of_request_.empty() ? request : prompt_of_request_[request];
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
        if (prompt_of_request_.size() > kMaxInt32) fail("prompt_of_request: more than 2^31 - 1 requests");
        const auto num_prompts = static_cast<int64_t>(indptr_.size()) - 1;
        for (size_t i = 0; i < prompt_of_request_.size(); ++i) {
            if (prompt_of_request_[i] >= 0 && prompt_of_request_[i] < num_prompts) continue;
            fail("prompt_of_request[" + number(i) + "]: expected 0 to " + number(num_prompts - 1) + ", got " +
                 number(prompt_of_request_[i]));
        }
    }

    static constexpr uint32_t kMaxInt32 = std::numeric_limits<int32_t>::max();

    std::span<const TokenId> tokens_;
    std::shared_ptr<const void> tokens_owner_;
    std::shared_ptr<const Arrays> arrays_;  // of this and its copies
    std::span<const int64_t> indptr_;       // arrays_, one step nearer
    std::span<const int32_t> prompt_of_request_;
    int64_t num_prompt_tokens_;
    int32_t drop_last_;
};

}  // namespace batchllm
