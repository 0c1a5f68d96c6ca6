// A plan for some rows of a batch out of the one for all of them, in a fraction of the time: its tiles without the
// other rows. What is shared, and which tiles it is read by, was chosen for all rows.
#pragma once

#include <cstdint>
#include <span>

#include "attention/plan/attention_plan.h"
#include "attention/plan/plan_draft.h"

namespace batchllm {

// `rows` ascend, and are of the plan; row i of the draft is rows[i].
PlanDraft draft_of_rows(const AttentionPlan& plan, std::span<const int32_t> rows, const CostModel& cost);

}  // namespace batchllm
