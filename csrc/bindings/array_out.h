// Outgoing arrays: views of our memory, copies, and new outputs made by a caller's library.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <vector>

#include "planner/ids.h"

namespace batchllm {

// The element types in Python: ids are int32.
template <typename T>
struct PythonElement {
    using Type = T;
};
template <typename Kind>
struct PythonElement<Id<Kind>> {
    using Type = int32_t;
};

// array.flags.writeable = False, but much faster: a step reads many arrays.
inline void set_readonly(const pybind11::array& array) {
    pybind11::detail::array_proxy(array.ptr())->flags &= ~pybind11::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

// A read-only view, which keeps `owner` alive.
template <typename T>
pybind11::array readonly_view(const std::vector<T>& values, pybind11::handle owner) {
    pybind11::array view(pybind11::dtype::of<typename PythonElement<T>::Type>(), {values.size()}, {sizeof(T)},
                         values.data(), owner);
    set_readonly(view);
    return view;
}

// A property that returns a vector member, or what a const method returns by reference, as a view.
template <typename Class, typename Getter, typename... Options>
void def_array(pybind11::class_<Class, Options...>& cls, const char* name, Getter getter, const char* doc = "") {
    cls.def_property_readonly(
        name,
        [getter](const pybind11::object& self) {
            return readonly_view(std::invoke(getter, self.cast<const Class&>()), self);
        },
        doc);
}

// Structs of int32 as rows of such a view.
template <typename T>
pybind11::array_t<int32_t> readonly_rows(std::span<const T> structs, pybind11::handle owner) {
    constexpr pybind11::ssize_t kFields = sizeof(T) / sizeof(int32_t);
    const auto num_rows = static_cast<pybind11::ssize_t>(structs.size());
    pybind11::array_t<int32_t> rows({num_rows, kFields}, reinterpret_cast<const int32_t*>(structs.data()), owner);
    set_readonly(rows);
    return rows;
}

// A copy of memory that may still grow or is about to be freed, where a view would not do.
template <typename T>
pybind11::array_t<T> array_copy(std::span<const T> values) {
    return pybind11::array_t<T>(static_cast<pybind11::ssize_t>(values.size()), values.data());
}

template <typename Kind>
pybind11::array_t<int32_t> ids_copy(const std::vector<Id<Kind>>& ids) {
    pybind11::array_t<int32_t> copy(static_cast<pybind11::ssize_t>(ids.size()));
    std::ranges::transform(ids, copy.mutable_data(), &Id<Kind>::index);
    return copy;
}

// An uninitialised tensor for the output `name`, of q's library (NumPy or torch; NumPy for JAX) and on q's
// device.
enum class NewType : uint8_t { kLikeQ, kFloat32 };
pybind11::object new_output(const char* name, pybind11::handle q, NewType type, std::initializer_list<int64_t> shape);

}  // namespace batchllm
