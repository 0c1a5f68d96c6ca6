// KV blocks of page_size tokens. Full ones can be found by their content until they are reused.
//
//   free queue   oldest ── 7 ── 3 ── 9 ── newest     a block without users can still be found here
//                allocate() takes from the left (the block forgets its content), release() appends on the right
//
// A content id represents a block's tokens together with all tokens before it (what an engine hashes). Several blocks
// may have the same content: they are not merged, and the first is found.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

using BlockId = int32_t;
using ContentId = int32_t;

class BlockPool {
 public:
    BlockPool(int32_t num_blocks, int32_t num_contents);

    int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()) - 1; }
    int32_t num_free() const { return num_free_; }
    bool is_free(BlockId block) const { return blocks_[block].num_users == 0; }

    BlockId find(ContentId content) const { return contents_[content].first; }  // or kNone
    bool was_findable(ContentId content) const { return contents_[content].was_findable; }

    BlockId allocate();                              // the one longest in the free queue; there must be one
    void use(BlockId block);                         // adds a user
    void release(BlockId block);                     // removes a user
    void publish(BlockId block, ContentId content);  // it is full, and can be found from now on

 private:
    struct Block {
        int32_t num_users = 0;
        ContentId content = kNone;
        BlockId older, newer;                              // in the free queue
        BlockId previous_same = kNone, next_same = kNone;  // of the same content, in order of publication
    };
    struct Content {
        BlockId first = kNone, last = kNone;
        bool was_findable = false;
    };

    void append_free(BlockId block);
    void remove_free(BlockId block);
    void forget(BlockId block);

    std::vector<Block> blocks_;  // the last one is the two ends of the free queue
    std::vector<Content> contents_;
    int32_t num_free_ = 0;
};

}  // namespace batchllm
