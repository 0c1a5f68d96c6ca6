#include "bindings/array_out.h"

#include <string>

namespace py = pybind11;

namespace batchllm {

py::object new_output(const char* name, py::handle q, NewType type, std::initializer_list<int64_t> shape) {
    py::tuple size(shape.size());
    size_t dim = 0;
    for (int64_t extent : shape) size[dim++] = extent;

    const std::string library = py::str(py::type::handle_of(q).attr("__module__"));
    const bool is_torch = library == "torch" || library.starts_with("torch.");
    const bool is_numpy = library == "numpy" || library.starts_with("numpy.");
    // Nobody may write to JAX's arrays. NumPy stands in, whose dtypes they have, but has no bfloat16.
    const bool is_jax = library.starts_with("jax") && q.attr("dtype").attr("kind").cast<std::string>() == "f";
    if (!is_torch && !is_numpy && !is_jax) {
        throw py::value_error(std::string(name) + ": expected a tensor to write to, since q is of " + library +
                              ", for which none can be made; pass " + name + "=");
    }
    const py::module_ module = py::module_::import(is_torch ? "torch" : "numpy");
    const py::object empty = is_torch ? q.attr("new_empty") : module.attr("empty");
    return empty(size, py::arg("dtype") = type == NewType::kLikeQ ? q.attr("dtype") : module.attr("float32"));
}

}  // namespace batchllm
