#include <omp.h>

#include <optional>
#include <string>

#include "bindings/array_in.h"
#include "bindings/bindings.h"
#include "rows/row_ops.h"

namespace py = pybind11;

namespace batchllm {
namespace {

void expect_contiguous_rows(const Tensor& tensor, ElementType type) {
    tensor.expect_type({type});
    tensor.expect_unit_last_stride();
}

// float32 or bfloat16 [num_rows, size]
DType float_rows(const Tensor& tensor, Dim& num_rows, Dim& size) {
    check_shape(tensor, {&num_rows, &size});
    tensor.expect_type({ElementType::kFloat32, ElementType::kBFloat16});
    tensor.expect_unit_last_stride();
    return tensor.type() == ElementType::kFloat32 ? DType::kFloat32 : DType::kBFloat16;
}

struct Quantized {
    Quantized(py::handle out_object, py::handle scales_object)
        : out("out", out_object), scales("scales", scales_object) {}

    QuantizedRows rows(Dim& num_rows, Dim& size) const {
        check_shape(out, {&num_rows, &size});
        expect_contiguous_rows(out, ElementType::kUInt8);
        check_shape(scales, {&num_rows});
        expect_contiguous_rows(scales, ElementType::kFloat32);
        out.expect_writable();
        scales.expect_writable();
        return {static_cast<uint8_t*>(out.data()), out.stride(0), static_cast<float*>(scales.data())};
    }

    Tensor out, scales;
};

// Products, by the names of the arguments.
struct Scaled {
    Scaled(const char* name, py::handle object, const char* scales_name, py::handle scales_object,
           const char* bias_name, py::handle bias_object)
        : products(name, object), scales(scales_name, scales_object) {
        if (!bias_object.is_none()) bias.emplace(bias_name, bias_object);
    }

    ScaledRows rows(Dim& num_rows, Dim& size) const {
        check_shape(products, {&num_rows, &size});
        expect_contiguous_rows(products, ElementType::kFloat32);
        check_shape(scales, {&num_rows});
        expect_contiguous_rows(scales, ElementType::kFloat32);
        if (bias) {
            check_shape(*bias, {&size});
            expect_contiguous_rows(*bias, ElementType::kFloat32);
        }
        const auto floats = [](const Tensor& tensor) { return static_cast<const float*>(tensor.data()); };
        return {floats(products), products.stride(0), floats(scales), bias ? floats(*bias) : nullptr};
    }

    Tensor products, scales;
    std::optional<Tensor> bias;
};

template <typename Params>
void run(void (*operation)(const Params&, int64_t, int32_t), const Params& params, const Dim& num_rows,
         int32_t num_threads) {
    num_threads = thread_count(num_threads, omp_get_max_threads());
    const py::gil_scoped_release release;
    operation(params, num_rows.size, num_threads);
}

void check_segments(int64_t num_segments, const Dim& size) {
    if (num_segments < 1 || (num_segments & (num_segments - 1)) != 0 || size.size % num_segments != 0) {
        throw py::value_error("num_segments: expected a power of two that divides size, " + std::to_string(size.size) +
                              ", got " + std::to_string(num_segments));
    }
}

void quantize_rows_of(py::handle x_object, py::handle out_object, py::handle scales_object, int64_t num_segments,
                      int32_t num_threads) {
    const Tensor x("x", x_object);
    const Quantized out(out_object, scales_object);
    Dim num_rows{"num_rows"}, size{"size"};
    const DType dtype = float_rows(x, num_rows, size);
    const QuantizeParams params{
        .dtype = dtype,
        .x = x.data(),
        .x_stride = x.stride(0),
        .out = out.rows(num_rows, size),
        .size = size.size,
        .num_segments = num_segments,
    };
    check_segments(num_segments, size);
    run(&quantize_rows, params, num_rows, num_threads);
}

void dequantize_rows_of(py::handle x_object, py::handle scales_object, py::handle out_object, py::handle bias_object,
                        int32_t num_threads) {
    const Scaled x("x", x_object, "scales", scales_object, "bias", bias_object);
    const Tensor out("out", out_object);
    Dim num_rows{"num_rows"}, size{"size"};
    const ScaledRows products = x.rows(num_rows, size);
    const DequantizeParams params{
        .dtype = float_rows(out, num_rows, size),
        .x = products,
        .out = out.data(),
        .out_stride = out.stride(0),
        .size = size.size,
    };
    out.expect_writable();
    run(&dequantize_rows, params, num_rows, num_threads);
}

void norm_quantize_of(py::handle x_object, double eps, py::handle out_object, py::handle scales_object,
                      py::handle delta_object, py::handle delta_scales_object, py::handle delta_bias_object,
                      int32_t num_threads) {
    const Tensor x("x", x_object);
    const Quantized out(out_object, scales_object);
    if (delta_object.is_none() != delta_scales_object.is_none()) {
        throw py::value_error("delta, delta_scales: expected both or neither");
    }
    if (delta_object.is_none() && !delta_bias_object.is_none()) {
        throw py::value_error("delta_bias: expected none, because there is no delta");
    }
    Dim num_rows{"num_rows"}, size{"size"};
    check_shape(x, {&num_rows, &size});
    expect_contiguous_rows(x, ElementType::kFloat32);
    NormQuantizeParams params{
        .x = static_cast<float*>(x.data()),
        .x_stride = x.stride(0),
        .delta = {},
        .out = out.rows(num_rows, size),
        .size = size.size,
        .eps = static_cast<float>(eps),
    };
    std::optional<Scaled> delta;
    if (!delta_object.is_none()) {
        delta.emplace("delta", delta_object, "delta_scales", delta_scales_object, "delta_bias", delta_bias_object);
        params.delta = delta->rows(num_rows, size);
        x.expect_writable();
    }
    run(&norm_quantize, params, num_rows, num_threads);
}

void silu_mul_quantize_of(py::handle gate_up_object, py::handle gate_up_scales_object, py::handle out_object,
                          py::handle scales_object, py::handle bias_object, int64_t num_segments, int32_t num_threads) {
    const Scaled gate_up("gate_up", gate_up_object, "gate_up_scales", gate_up_scales_object, "bias", bias_object);
    const Quantized out(out_object, scales_object);
    Dim num_rows{"num_rows"}, size{"size"}, both{"2 size"};
    const QuantizedRows quantized = out.rows(num_rows, size);
    both.set(2 * size.size, "out");
    check_segments(num_segments, size);
    const SiluMulQuantizeParams params{
        .gate_up = gate_up.rows(num_rows, both),
        .out = quantized,
        .size = size.size,
        .num_segments = num_segments,
    };
    run(&silu_mul_quantize, params, num_rows, num_threads);
}

}  // namespace

void bind_quantized_rows(py::module_& module) {
    module.def("quantize_rows", &quantize_rows_of, py::arg("x"), py::kw_only(), py::arg("out"), py::arg("scales"),
               py::arg("num_segments") = 1, py::arg("num_threads") = 0,
               "Rows, through a Hadamard transform, to 8 bits, and the scale of each.");
    module.def("dequantize_rows", &dequantize_rows_of, py::arg("x"), py::arg("scales"), py::kw_only(), py::arg("out"),
               py::arg("bias") = py::none(), py::arg("num_threads") = 0, "out = scales * x + bias.");
    module.def("norm_quantize", &norm_quantize_of, py::arg("x"), py::kw_only(), py::arg("eps"), py::arg("out"),
               py::arg("scales"), py::arg("delta") = py::none(), py::arg("delta_scales") = py::none(),
               py::arg("delta_bias") = py::none(), py::arg("num_threads") = 0,
               "Root-mean-square norm without weights, of x + delta, which x becomes, to 8 bits.");
    module.def("silu_mul_quantize", &silu_mul_quantize_of, py::arg("gate_up"), py::arg("gate_up_scales"), py::kw_only(),
               py::arg("out"), py::arg("scales"), py::arg("bias") = py::none(), py::arg("num_segments") = 1,
               py::arg("num_threads") = 0, "silu(gate) * up through a Hadamard transform, to 8 bits.");
}

}  // namespace batchllm
