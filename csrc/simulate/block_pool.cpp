#include "simulate/block_pool.h"

#include <cassert>

namespace batchllm {

BlockPool::BlockPool(int32_t num_blocks, int32_t num_contents) : blocks_(num_blocks + 1), contents_(num_contents) {
    blocks_[num_blocks].older = blocks_[num_blocks].newer = num_blocks;
    for (BlockId block = 0; block < num_blocks; ++block) append_free(block);
}

BlockId BlockPool::allocate() {
    assert(num_free_ > 0);
    const BlockId block = blocks_[num_blocks()].newer;
    remove_free(block);
    if (blocks_[block].content != kNone) forget(block);
    blocks_[block].num_users = 1;
    return block;
}

void BlockPool::use(BlockId block) {
    if (blocks_[block].num_users++ == 0) remove_free(block);
}

void BlockPool::release(BlockId block) {
    if (--blocks_[block].num_users == 0) append_free(block);
}

void BlockPool::publish(BlockId block, ContentId content) {
    Content& same = contents_[content];
    blocks_[block].content = content;
    blocks_[block].previous_same = same.last;
    blocks_[block].next_same = kNone;
    (same.last == kNone ? same.first : blocks_[same.last].next_same) = block;
    same.last = block;
    same.was_findable = true;
}

void BlockPool::forget(BlockId block) {
    Block& gone = blocks_[block];
    Content& same = contents_[gone.content];
    (gone.previous_same == kNone ? same.first : blocks_[gone.previous_same].next_same) = gone.next_same;
    (gone.next_same == kNone ? same.last : blocks_[gone.next_same].previous_same) = gone.previous_same;
    gone.content = kNone;
}

void BlockPool::append_free(BlockId block) {
    const BlockId end = num_blocks();
    blocks_[block].older = blocks_[end].older;
    blocks_[block].newer = end;
    blocks_[blocks_[end].older].newer = block;
    blocks_[end].older = block;
    ++num_free_;
}

void BlockPool::remove_free(BlockId block) {
    blocks_[blocks_[block].older].newer = blocks_[block].newer;
    blocks_[blocks_[block].newer].older = blocks_[block].older;
    --num_free_;
}

}  // namespace batchllm
