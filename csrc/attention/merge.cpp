#include "attention/merge.h"

#include <vector>

namespace batchllm {

template <typename T>
void merge_states(std::span<const StatesView<const T>> inputs, const StatesView<T>& merged, int64_t num_tokens,
                  int64_t num_heads, int64_t head_dim, LseBase base) {
    std::vector<float> row(head_dim);
    for (int64_t token = 0; token < num_tokens; ++token) {
        for (int64_t head = 0; head < num_heads; ++head) {
            StateMerger merger(row.data(), head_dim);
            for (const StatesView<const T>& input : inputs) {
                const T* out = input.out + token * input.out_strides[0] + head * input.out_strides[2];
                const float* lse = input.lse + token * input.lse_strides[0] + head * input.lse_strides[2];
                for (int64_t state = 0; state < input.num_states; ++state) {
                    merger.add(out + state * input.out_strides[1],
                               natural_lse(lse[state * input.lse_strides[1]], base));
                }
            }
            merger.write(merged.out + token * merged.out_strides[0] + head * merged.out_strides[2]);
            merged.lse[token * merged.lse_strides[0] + head * merged.lse_strides[2]] = lse_in_base(merger.lse(), base);
        }
    }
}

template void merge_states<float>(std::span<const StatesView<const float>>, const StatesView<float>&, int64_t, int64_t,
                                  int64_t, LseBase);
template void merge_states<Bf16>(std::span<const StatesView<const Bf16>>, const StatesView<Bf16>&, int64_t, int64_t,
                                 int64_t, LseBase);

}  // namespace batchllm
