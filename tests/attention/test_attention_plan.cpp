#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "attention/plan/attention_plan.h"
#include "attention/plan/device_model.h"

using namespace batchllm;

namespace {

using Ints = std::vector<int32_t>;

struct OwnedBatch {
    Ints span_indptr{0}, span_begin, link_indptr{0}, link_segment;
    Ints segment_page_indptr{0}, segment_page_ids, segment_begin, segment_num_tokens;
    int32_t page_size = 4;

    int32_t add_segment(int32_t begin, int32_t num_tokens) {
        segment_begin.push_back(begin);
        segment_num_tokens.push_back(num_tokens);
        for (int32_t i = 0; i < (num_tokens + page_size - 1) / page_size; ++i) {
            segment_page_ids.push_back(static_cast<int32_t>(segment_page_ids.size()));
        }
        segment_page_indptr.push_back(static_cast<int32_t>(segment_page_ids.size()));
        return static_cast<int32_t>(segment_begin.size()) - 1;
    }

    void add_span(const Ints& links, int32_t begin, int32_t num_rows) {
        span_begin.push_back(begin);
        span_indptr.push_back(span_indptr.back() + num_rows);
        link_segment.insert(link_segment.end(), links.begin(), links.end());
        link_indptr.push_back(static_cast<int32_t>(link_segment.size()));
    }

    AttentionBatch view() const {
        return {span_indptr,         span_begin,       link_indptr,   link_segment,
                segment_page_indptr, segment_page_ids, segment_begin, segment_num_tokens};
    }
};

// A random forest of segments, with spans that read a path of it and a segment of their own.
OwnedBatch random_batch(std::mt19937& random) {
    const auto draw = [&random](int32_t low, int32_t high) {
        return std::uniform_int_distribution<int32_t>(low, high)(random);
    };
    OwnedBatch batch;
    std::vector<Ints> paths{{}};
    const auto path_end = [&batch](const Ints& path) {
        return path.empty() ? 0 : batch.segment_begin[path.back()] + batch.segment_num_tokens[path.back()];
    };
    for (int32_t i = draw(0, 6); i > 0; --i) {
        Ints path = paths[draw(0, static_cast<int32_t>(paths.size()) - 1)];
        path.push_back(batch.add_segment(path_end(path), draw(0, 9) ? draw(0, 200) : draw(500, 800)));
        paths.push_back(path);
    }
    for (int32_t i = draw(0, 20); i > 0; --i) {
        Ints path = paths[draw(0, static_cast<int32_t>(paths.size()) - 1)];
        const int32_t begin = path_end(path);
        const int32_t own = draw(0, 90);
        path.push_back(batch.add_segment(begin, own));
        const int32_t num_rows = draw(0, 3) ? 1 : draw(0, begin + own);
        batch.add_span(path, std::max(0, begin + own - num_rows), num_rows);
    }
    return batch;
}

using RowKeys = std::vector<std::pair<int32_t, int64_t>>;  // (token, page_id * page_size + offset), sorted

// Every (row, key) that the batch makes visible, by plain loops.
RowKeys visible_keys(const AttentionBatch& batch, const AttentionShape& shape) {
    RowKeys result;
    for (int32_t span = 0; span < batch.num_spans(); ++span) {
        for (int32_t row = 0; row < batch.num_rows(span); ++row) {
            const int32_t position = batch.span_begin[span] + row;
            for (int32_t link = batch.link_indptr[span]; link < batch.link_indptr[span + 1]; ++link) {
                const int32_t segment = batch.link_segment[link];
                for (int32_t i = 0; i < batch.segment_num_tokens[segment]; ++i) {
                    const int32_t key = batch.segment_begin[segment] + i;
                    if (key > position || (shape.window_left >= 0 && key < position - shape.window_left)) continue;
                    const int64_t page =
                        batch.segment_page_ids[batch.segment_page_indptr[segment] + i / shape.page_size];
                    result.push_back({batch.span_indptr[span] + row, page * shape.page_size + i % shape.page_size});
                }
            }
        }
    }
    std::sort(result.begin(), result.end());
    return result;
}

// Walks through the plan as a kernel does, and checks every invariant on the way.
RowKeys audit(const AttentionPlan& plan, const DeviceCosts& costs = kCpuCosts) {
    const AttentionShape& shape = plan.shape();
    RowKeys read;
    std::map<int32_t, Ints> slots_of_token;
    std::map<int32_t, int32_t> num_items_of_token;
    for (const WorkItem& item : plan.items()) {
        const int32_t num_rows = item.row_end - item.row_begin;
        CHECK(num_rows >= 1);
        CHECK(num_rows <= std::min(plan.max_item_rows(), CostModel(shape, costs).max_tile_rows()));
        CHECK(item.kv_begin < item.kv_end);
        Ints num_readers(item.kv_end - item.kv_begin, 0);
        for (const WorkRow& row : plan.rows().subspan(item.row_begin, num_rows)) {
            REQUIRE(row.kv_begin >= item.kv_begin);
            REQUIRE(row.kv_begin < row.kv_end);
            REQUIRE(row.kv_end <= item.kv_end);
            ++num_items_of_token[row.token];
            if (row.slot != kWriteThrough) slots_of_token[row.token].push_back(row.slot);
            int32_t piece = item.piece_begin;
            for (int32_t key = row.kv_begin; key < row.kv_end; ++key) {
                ++num_readers[key - item.kv_begin];
                while (plan.pieces()[piece].position_end <= key) ++piece;
                if (piece >= item.piece_end || plan.pieces()[piece].position_begin > key)
                    FAIL("no piece holds " << key);
                const int32_t slot = key - plan.pieces()[piece].segment_begin;
                const int64_t page = plan.page_ids()[plan.pieces()[piece].first_page + slot / shape.page_size];
                read.push_back({row.token, page * shape.page_size + slot % shape.page_size});
            }
        }
        CHECK(*std::min_element(num_readers.begin(), num_readers.end()) > 0);  // a kernel may read all of an item
    }
    std::sort(read.begin(), read.end());
    CHECK(std::adjacent_find(read.begin(), read.end()) == read.end());  // no key counts twice

    std::set<int32_t> merged_tokens, slots;
    for (const MergeRow& row : plan.merge_rows()) {
        Ints expected = slots_of_token[row.token];
        std::sort(expected.begin(), expected.end());
        Ints got;
        for (int32_t slot = row.slot_begin; slot < row.slot_end; ++slot) got.push_back(slot);
        CHECK(got == expected);
        CHECK(got.size() != 1);
        for (int32_t slot : got) slots.insert(slot);
        CHECK(merged_tokens.insert(row.token).second);
    }
    CHECK(static_cast<int32_t>(slots.size()) == plan.num_slots());
    for (int32_t token = 0; token < plan.num_tokens(); ++token) {  // every row is written once
        const bool writes_through = num_items_of_token[token] == 1;
        CHECK(writes_through != merged_tokens.contains(token));
    }
    return read;
}

}  // namespace

TEST_CASE("every visible key meets every row exactly once, and nothing else does") {
    for (uint32_t seed = 0; seed < 60; ++seed) {
        CAPTURE(seed);
        std::mt19937 random(seed);
        const OwnedBatch batch = random_batch(random);
        const AttentionShape shape{.num_qo_heads = 8,
                                   .num_kv_heads = seed % 2 ? 8 : 1,
                                   .head_dim = 64,
                                   .page_size = batch.page_size,
                                   .window_left = seed % 3 ? -1 : static_cast<int32_t>(random() % 100)};
        const RowKeys visible = visible_keys(batch.view(), shape);
        for (int32_t num_threads : {1, 7}) {
            for (Sharing sharing : {Sharing::kNever, Sharing::kWhereItPays, Sharing::kAlways}) {
                CHECK((audit(AttentionPlan(batch.view(), shape, num_threads, sharing)) == visible));
                for (GpuModel gpu : kGpus) {
                    gpu.num_multiprocessors = num_threads;
                    const AttentionPlan plan(batch.view(), shape, gpu, sharing);
                    CHECK((audit(plan, gpu_costs(gpu, shape.head_dim)) == visible));
                }
            }
        }
    }
}

TEST_CASE("of some rows a plan does the work that it does of them among all, on the same keys") {
    for (uint32_t seed = 0; seed < 60; ++seed) {
        CAPTURE(seed);
        std::mt19937 random(seed);
        const OwnedBatch batch = random_batch(random);
        const AttentionShape shape{.num_qo_heads = 8,
                                   .num_kv_heads = seed % 2 ? 8 : 1,
                                   .head_dim = 64,
                                   .page_size = batch.page_size,
                                   .window_left = seed % 3 ? -1 : static_cast<int32_t>(random() % 100)};
        Ints rows;
        for (int32_t row = 0; row < batch.view().num_tokens(); ++row) {
            if (random() % (1 + seed % 4) == 0) rows.push_back(row);
        }
        RowKeys visible;
        for (const auto& [row, key] : visible_keys(batch.view(), shape)) {
            const auto place = std::ranges::lower_bound(rows, row);
            if (place != rows.end() && *place == row)
                visible.push_back({static_cast<int32_t>(place - rows.begin()), key});
        }
        for (int32_t num_threads : {1, 7}) {
            for (Sharing sharing : {Sharing::kNever, Sharing::kWhereItPays, Sharing::kAlways}) {
                const AttentionPlan all(batch.view(), shape, num_threads, sharing);
                const AttentionPlan some = all.for_rows(rows);
                CHECK((audit(some) == visible));
                CHECK(some.num_tokens() == std::ssize(rows));
                CHECK(some.num_threads() == num_threads);
                CHECK(some.tasks().empty() == visible.empty());
                CHECK(some.stats().num_scores == std::ssize(visible));
                CHECK(some.stats().kv_tokens_read <= all.stats().kv_tokens_read);
                GpuModel gpu = kDefaultGpu;
                gpu.num_multiprocessors = num_threads;
                const AttentionPlan on_gpu = AttentionPlan(batch.view(), shape, gpu, sharing).for_rows(rows);
                CHECK((audit(on_gpu, gpu_costs(gpu, shape.head_dim)) == visible));
                CHECK(on_gpu.tasks().empty());
                const AttentionPlan alone = on_gpu.for_gpu(gpu, Sharing::kNever);  // planned anew, of these rows
                CHECK((audit(alone, gpu_costs(gpu, shape.head_dim)) == visible));
            }
        }
    }
}

TEST_CASE("a plan for some rows counts what they read alone, and what they share") {
    OwnedBatch batch;
    const int32_t prefix = batch.add_segment(0, 1000);
    for (int32_t i = 0; i < 4; ++i) batch.add_span({prefix, batch.add_segment(1000, 100)}, 1000, 100);
    const AttentionShape shape{.num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64, .page_size = batch.page_size};
    const AttentionPlan all(batch.view(), shape, 1, Sharing::kAlways);
    const AttentionPlan last_rows = all.for_rows(Ints{99, 199, 299, 399});
    CHECK(last_rows.stats().num_levels == 2);
    CHECK(last_rows.stats().per_request_kv_tokens_read == 4 * 1100);
    CHECK(last_rows.stats().num_scores == 4 * 1100);
    CHECK(all.for_rows(Ints{0, 1}).stats().num_shared_segments == 2);
    CHECK(all.for_rows(Ints{0, 399}).stats().num_shared_segments <= 1);
    CHECK(all.for_rows(Ints{5}).stats().num_shared_segments == 0);
}

TEST_CASE("what some rows read is divided among all threads of the plan") {
    OwnedBatch batch;
    for (int32_t i = 0; i < 64; ++i) batch.add_span({batch.add_segment(0, 100000)}, 99999, 1);
    const AttentionShape shape{.num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64, .page_size = batch.page_size};
    for (int32_t num_threads : {1, 8}) {
        const AttentionPlan all(batch.view(), shape, num_threads, Sharing::kAlways);
        CHECK(std::ssize(all.for_rows(Ints{63}).items()) >= num_threads);
    }
}

TEST_CASE("a plan for rows that are not the plan's, or not in order, is refused") {
    OwnedBatch batch;
    batch.add_span({batch.add_segment(0, 8)}, 4, 4);
    const AttentionShape shape{.num_qo_heads = 1, .num_kv_heads = 1, .head_dim = 1, .page_size = 4};
    const AttentionPlan plan(batch.view(), shape, 1, Sharing::kWhereItPays);
    CHECK_THROWS_WITH_AS(plan.for_rows(Ints{0, 4}), "rows[1]: expected a row in [1, 4), got 4", std::invalid_argument);
    CHECK_THROWS_WITH_AS(plan.for_rows(Ints{2, 2}), "rows[1]: expected a row in [3, 4), got 2", std::invalid_argument);
    CHECK_THROWS_WITH_AS(plan.for_rows(Ints{-1}), "rows[0]: expected a row in [0, 4), got -1", std::invalid_argument);
}

TEST_CASE("a shared segment is read once for all its readers") {
    OwnedBatch batch;
    const int32_t prefix = batch.add_segment(0, 1000);
    for (int32_t i = 0; i < 8; ++i) batch.add_span({prefix, batch.add_segment(1000, 10 + i)}, 1009 + i, 1);
    const AttentionShape shape{.num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64, .page_size = batch.page_size};

    const AttentionPlan shared(batch.view(), shape, 1, Sharing::kWhereItPays);
    CHECK(shared.items().size() == 9);
    CHECK(shared.items()[0].row_end - shared.items()[0].row_begin == 8);  // longest first
    CHECK(shared.items()[0].kv_end == 1000);
    CHECK(shared.items()[1].kv_end - shared.items()[1].kv_begin == 17);
    CHECK(shared.num_slots() == 16);
    CHECK(shared.stats().kv_tokens_read == 1000 + 10 + 11 + 12 + 13 + 14 + 15 + 16 + 17);

    const AttentionPlan alone(batch.view(), shape, 1, Sharing::kNever);
    CHECK(alone.items().size() == 8);
    CHECK(alone.num_slots() == 0);
    CHECK(alone.stats().kv_tokens_read == shared.stats().per_request_kv_tokens_read);
}

TEST_CASE("a prefill chunk reads no tile of keys behind its rows") {
    OwnedBatch batch;
    batch.add_span({batch.add_segment(0, 1024)}, 0, 1024);
    const AttentionShape shape{.num_qo_heads = 4, .num_kv_heads = 1, .head_dim = 64, .page_size = batch.page_size};
    const AttentionPlan plan(batch.view(), shape, 1, Sharing::kWhereItPays);
    CHECK(plan.items().size() == 18);  // 60 tokens x 4 heads each, whole blocks of rows; the last 4 tokens
    for (const WorkItem& item : plan.items()) CHECK(item.kv_end == plan.rows()[item.row_end - 1].kv_end);
}

TEST_CASE("tasks are every item for every KV head, once") {
    for (uint32_t seed = 0; seed < 20; ++seed) {
        CAPTURE(seed);
        std::mt19937 random(seed);
        const OwnedBatch batch = random_batch(random);
        const AttentionShape shape{.num_qo_heads = 12, .num_kv_heads = 3, .head_dim = 64, .page_size = batch.page_size};
        const AttentionPlan plan(batch.view(), shape, 2, Sharing::kAlways);
        std::map<std::pair<int32_t, int32_t>, int> times;  // (item, head)
        for (const WorkTask& task : plan.tasks()) {
            for (int32_t item = task.item_begin; item < task.item_end; ++item) {
                for (int32_t head = task.head_begin; head < task.head_end; ++head) ++times[{item, head}];
            }
        }
        CHECK(times.size() == 3 * plan.items().size());
        for (const auto& [item_and_head, count] : times) CHECK(count == 1);
    }
}

TEST_CASE("the tasks of one long tile are a round of the threads, or several") {
    OwnedBatch batch;
    const int32_t prefix = batch.add_segment(0, 8192);
    for (int32_t reader = 0; reader < 64; ++reader) batch.add_span({prefix}, 8191, 1);
    const AttentionShape shape{.num_qo_heads = 9, .num_kv_heads = 3, .head_dim = 64, .page_size = batch.page_size};
    for (const int32_t num_threads : {2, 3, 4, 8}) {
        CAPTURE(num_threads);
        const AttentionPlan plan(batch.view(), shape, num_threads, Sharing::kAlways);
        CHECK(plan.tasks().size() > num_threads);
        CHECK(plan.tasks().size() % num_threads == 0);
        audit(plan);
    }
}

TEST_CASE("a plan for a GPU fills its tiles, and splits what would leave multiprocessors without work") {
    OwnedBatch batch;
    const int32_t prefix = batch.add_segment(0, 8192);
    for (int32_t reader = 0; reader < 34; ++reader) batch.add_span({prefix}, 8191, 1);
    const AttentionShape shape{.num_qo_heads = 32, .num_kv_heads = 8, .head_dim = 128, .page_size = batch.page_size};
    const AttentionPlan plan(batch.view(), shape, kDefaultGpu, Sharing::kAlways);
    audit(plan, gpu_costs(kDefaultGpu, shape.head_dim));
    std::map<int32_t, int32_t> num_items;  // by rows
    for (const WorkItem& item : plan.items()) ++num_items[item.row_end - item.row_begin];
    CHECK(num_items.size() == 2);  // 136 packed rows: a tile of 128, and one of the 8 that are left, not two of 68
    CHECK(num_items[32] * 8 >= 100);
    CHECK(num_items[2] * 8 >= 100);

    // Own parts of many requests give every multiprocessor enough to do as they are.
    OwnedBatch many;
    for (int32_t request = 0; request < 256; ++request) many.add_span({many.add_segment(0, 1000)}, 999, 1);
    CHECK(AttentionPlan(many.view(), shape, kDefaultGpu, Sharing::kAlways).items().size() == 256);
}

TEST_CASE("short items come several to a task, a long one has tasks of its own") {
    OwnedBatch batch;
    const int32_t prefix = batch.add_segment(0, 1024);
    for (int32_t reader = 0; reader < 256; ++reader) batch.add_span({prefix, batch.add_segment(1024, 80)}, 1103, 1);
    const AttentionShape shape{.num_qo_heads = 9, .num_kv_heads = 3, .head_dim = 64, .page_size = batch.page_size};
    const AttentionPlan plan(batch.view(), shape, 2, Sharing::kAlways);
    int32_t num_short_tasks = 0;
    for (const WorkTask& task : plan.tasks()) {
        const WorkItem& item = plan.items()[task.item_begin];
        const bool is_short = item.row_end - item.row_begin == 1;
        num_short_tasks += is_short;
        if (!is_short) CHECK(task.item_end - task.item_begin == 1);
    }
    CHECK(num_short_tasks >= 8);  // so that no thread waits long for the other's last
    CHECK(num_short_tasks <= 256 / 4);
}

TEST_CASE("rows with a gap between their windows share no item") {
    OwnedBatch batch;
    const int32_t prefix = batch.add_segment(0, 400);
    batch.add_span({prefix}, 50, 1);
    batch.add_span({prefix}, 300, 1);
    batch.add_span({prefix}, 305, 1);
    const AttentionShape shape{
        .num_qo_heads = 1, .num_kv_heads = 1, .head_dim = 64, .page_size = batch.page_size, .window_left = 10};
    const AttentionPlan plan(batch.view(), shape, 1, Sharing::kAlways);
    CHECK(plan.stats().kv_tokens_read <= 11 + 11 + 11);
    audit(plan);
}

TEST_CASE("a batch without spans makes a plan without items") {
    const OwnedBatch batch;
    const AttentionShape shape{.num_qo_heads = 1, .num_kv_heads = 1, .head_dim = 1, .page_size = 4};
    const AttentionPlan plan(batch.view(), shape, 3, Sharing::kWhereItPays);
    CHECK(plan.items().empty());
    CHECK(plan.num_tokens() == 0);
    CHECK(plan.max_page_id() == -1);
}

TEST_CASE("arrays that contradict each other are refused") {
    OwnedBatch batch;
    batch.add_span({batch.add_segment(0, 8)}, 7, 1);
    const AttentionShape shape{.num_qo_heads = 1, .num_kv_heads = 1, .head_dim = 1, .page_size = 4};
    CHECK_NOTHROW(AttentionPlan(batch.view(), shape, 1, Sharing::kWhereItPays));
    CHECK_THROWS_WITH_AS(AttentionPlan(batch.view(), shape, 0, Sharing::kNever),
                         "num_threads: expected at least 1, got 0", std::invalid_argument);
    batch.span_begin[0] = 2147483646;
    batch.span_indptr[1] = 2;
    CHECK_THROWS_WITH_AS(AttentionPlan(batch.view(), shape, 1, Sharing::kWhereItPays),
                         "span_begin[0]: the span's last position does not fit into int32", std::invalid_argument);
}
