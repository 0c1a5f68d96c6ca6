// The arguments of one row operation: plain structs, no functions, like attention/params.h.
//
// Strides count elements; the last dimension is contiguous.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace batchllm {

struct HeadRows {  // [num_rows, num_heads, size]
    void* data;
    int64_t row_stride;
    int64_t head_stride;
};

// x += delta, rounded to its type (where there is a delta); out = x / sqrt(mean(x^2) + eps) * weight, a head at a time.
struct RmsNormParams {
    DType dtype;  // of all tensors
    HeadRows x;
    HeadRows delta;      // data is null if there is none
    const void* weight;  // [size]
    HeadRows out;        // may be x
    int64_t num_heads;
    int64_t size;
    float eps;
};

// Turns the pair (i, i + size / 2) of every head by the row's angle i.
struct RotateParams {
    DType dtype;
    HeadRows x;        // in place
    const float* cos;  // [num_rows, size / 2]
    const float* sin;  // [num_rows, size / 2]
    int64_t cos_stride;
    int64_t sin_stride;
    int64_t num_heads;
    int64_t size;
};

struct PagedHeads {  // [num_pages, page_size, num_kv_heads, size]
    void* data;
    int64_t page_stride;
    int64_t slot_stride;
    int64_t head_stride;
};

// q = rotated(normed(q)) in place, k_pages[slot] = rotated(normed(k)), v_pages[slot] = v. Each result is rounded,
// including that of the norm.
struct NormRotateAppendParams {
    DType dtype;         // bfloat16 or float16
    HeadRows qkv;        // num_qo_heads + 2 num_kv_heads heads: q, k, v
    const void* q_norm;  // [size]; null: no norms
    const void* k_norm;  // [size]
    float eps;
    const float* cos;  // [num_rows, size / 2]
    const float* sin;
    int64_t cos_stride;
    int64_t sin_stride;
    const int64_t* slots;  // [num_rows]; K and V of a row whose slot lies outside the pages are not written
    PagedHeads k_pages;
    PagedHeads v_pages;
    int64_t page_size;
    uint32_t num_slots;  // of all pages
    int64_t num_rows;
    int64_t num_qo_heads;
    int64_t num_kv_heads;
    int64_t size;  // a multiple of 16, at most 256
};

// out = gate / (1 + exp(-gate)) * up
struct SiluAndMulParams {
    DType dtype;
    const void* gate_up;  // [num_rows, 2 size]: gate, then up
    int64_t gate_up_stride;
    void* out;  // [num_rows, size]
    int64_t out_stride;
    int64_t size;
};

// The largest logit of a row (the first of equals) and log(sum(exp(logits))).
struct ArgmaxAndLseParams {
    DType dtype;
    const void* logits;  // [num_rows, vocab_size]
    int64_t row_stride;
    int64_t vocab_size;
    int32_t* token_ids;  // [num_rows]
    float* lse;          // [num_rows], natural log
};

// One token per row. Temperature 0: the largest logit, the first of equals. Otherwise with the weights
//     exp((logit - the row's largest) / temperature)
// in this order, which is vLLM's,
//     min_p   leaves out tokens whose weight is below min_p, of which the likeliest has 1
//     top_k   keeps the k likeliest
//     top_p   keeps the fewest likeliest tokens with top_p of the remaining mass
// and the token is the first, in the order of the vocabulary, at which the sum of the kept weights exceeds uniform
// times their total. Of equal logits, lower indices are likelier. The likeliest token always stays.
//
// Orders and counts are exact. Sums of weights are within 1e-5 of their value: weights are float32, and so are the sums
// of a tile; those of tiles are added up in float64.
//
// The log-probability is that of `logits`, before rules, temperature and filters. It and the lse are NaN if a logit
// is NaN or +infinity, or all are -infinity; a token is still returned. Logits that are NaN are never drawn.
struct SampleParams {
    DType dtype;         // of logits
    const void* logits;  // [num_rows, vocab_size]
    int64_t row_stride;
    int64_t vocab_size;         // from 1 to 2^31 - 1
    const float* ruled_logits;  // [num_ruled, vocab_size]: drawn from instead in some rows
    int64_t ruled_row_stride;
    int64_t num_ruled;
    const int32_t* ruled_rows;  // [num_rows], index into them; outside [0, num_ruled): none. May be null
    // [num_allowed, ceil(vocab_size / 32)]: bit i % 32 of word i / 32 says whether token i may be drawn
    const int32_t* allowed;
    int64_t allowed_stride;
    int64_t num_allowed;
    const int32_t* allowed_rows;  // [num_rows], index into them; outside [0, num_allowed): all allowed. May be null
    const float* temperature;     // [num_rows]
    const int32_t* top_k;         // [num_rows]; off below 1
    const float* top_p;           // [num_rows]; off from 1 on
    const float* min_p;           // [num_rows]; off at 0
    const double* uniform;        // [num_rows], in [0, 1)
    int32_t* token_ids;           // [num_rows]
    float* logprobs;              // [num_rows]
    float* lse;                   // [num_rows], of `logits`, natural log
};

// Rows in 8 bits: an element represents scales[row] * (data - 128). A row's scale is its largest magnitude / 127 (NaN
// if an element is NaN), and elements are rounded to nearest, ties to even.
struct QuantizedRows {
    uint8_t* data;  // [num_rows, size]
    int64_t row_stride;
    float* scales;  // [num_rows]
};
constexpr float kInt8Max = 127.0f;

// Products of quantised rows, which represent scales[row] * data + bias.
struct ScaledRows {
    const float* data;  // [num_rows, size]; null if there are none
    int64_t row_stride;
    const float* scales;  // [num_rows]
    const float* bias;    // [size]; may be null
};

struct QuantizeParams {
    DType dtype;    // of x
    const void* x;  // [num_rows, size]
    int64_t x_stride;
    QuantizedRows out;
    int64_t size;
    int64_t num_segments;  // as of SiluMulQuantizeParams
};

struct DequantizeParams {
    DType dtype;  // of out
    ScaledRows x;
    void* out;  // [num_rows, size]; may be x
    int64_t out_stride;
    int64_t size;
};

// x += delta (where there is a delta); out = x / sqrt(mean(x^2) + eps)
struct NormQuantizeParams {
    float* x;  // [num_rows, size]
    int64_t x_stride;
    ScaledRows delta;
    QuantizedRows out;
    int64_t size;
    float eps;
};

// out = H(gate / (1 + exp(-gate)) * up), where H is the orthogonal Hadamard transform over num_segments equal segments
// of a row: it mixes elements that are a multiple of size / num_segments apart, and with one segment changes nothing.
struct SiluMulQuantizeParams {
    ScaledRows gate_up;  // [num_rows, 2 size]: gate, then up
    QuantizedRows out;
    int64_t size;
    int64_t num_segments;  // a power of two that divides size
};

}  // namespace batchllm
