#include <doctest/doctest.h>

#include "simulate/block_pool.h"

using namespace batchllm;

TEST_CASE("the block longest without users is taken first, and forgets its content") {
    BlockPool pool(3, 10);
    const BlockId a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
    pool.publish(a, 4);
    pool.publish(b, 5);
    pool.release(b);
    pool.release(a);
    CHECK(pool.num_free() == 2);
    CHECK(pool.find(4) == a);
    CHECK(pool.allocate() == b);
    CHECK(pool.find(5) == kNone);
    CHECK(pool.was_findable(5));
    pool.use(a);  // found: it leaves the queue
    CHECK(pool.num_free() == 0);
    pool.release(c);
    CHECK(pool.allocate() == c);
    CHECK(pool.find(4) == a);
}

TEST_CASE("of blocks with the same content the first is found, and the next one once that is gone") {
    BlockPool pool(3, 1);
    const BlockId a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
    for (const BlockId block : {a, b, c}) pool.publish(block, 0);
    CHECK(pool.find(0) == a);
    pool.release(b);
    CHECK(pool.allocate() == b);  // the one in the middle is gone
    pool.release(a);
    CHECK(pool.allocate() == a);
    CHECK(pool.find(0) == c);
    pool.release(c);
    CHECK(pool.allocate() == c);
    CHECK(pool.find(0) == kNone);
}
