// One-dimensional, contiguous NumPy arrays as spans, checked: a wrong one is refused by its name.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "planner/prompts.h"

namespace batchllm {

inline std::string python_repr(const pybind11::handle& object) {
    return pybind11::repr(object).cast<std::string>();
}

// `expected`: what a message says, where it is more than T.
template <typename T>
std::span<const T> vector_view(const pybind11::handle& object, const std::string& name,
                               const std::string& expected = python_repr(pybind11::dtype::of<T>())) {
    if (!pybind11::isinstance<pybind11::array>(object)) {
        throw pybind11::type_error(name + ": expected a NumPy array of " + expected + ", got " +
                                   python_repr(pybind11::type::of(object)));
    }
    const auto array = pybind11::reinterpret_borrow<pybind11::array>(object);
    if (!array.dtype().equal(pybind11::dtype::of<T>())) {
        throw pybind11::type_error(name + ": expected " + expected + ", got " + python_repr(array.dtype()));
    }
    if (array.ndim() != 1) {
        throw pybind11::value_error(name + ": expected 1 dimension, got " + std::to_string(array.ndim()));
    }
    if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0) {
        throw pybind11::value_error(name + ": expected memory aligned to its " + std::to_string(sizeof(T)) +
                                    "-byte elements");
    }
    if (array.size() > 1 && array.strides(0) != static_cast<pybind11::ssize_t>(sizeof(T))) {
        throw pybind11::value_error(name + ": expected contiguous memory, got a stride of " +
                                    std::to_string(array.strides(0)) + " bytes for items of " +
                                    std::to_string(sizeof(T)));
    }
    return {static_cast<const T*>(array.data()), static_cast<size_t>(array.size())};
}

template <typename T>
std::vector<T> vector_copy(const pybind11::handle& object, const std::string& name) {
    const auto view = vector_view<T>(object, name);
    return {view.begin(), view.end()};
}

// Of what may still grow, or is about to go, where a view would not do.
template <typename T>
pybind11::array_t<T> array_copy(std::span<const T> values) {
    return pybind11::array_t<T>(static_cast<pybind11::ssize_t>(values.size()), values.data());
}

// indptr of int64 or int32; prompt_of_request of int32, or None.
inline Prompts prompts_view(const pybind11::handle& tokens, const pybind11::handle& indptr,
                            const pybind11::handle& prompt_of_request, int32_t drop_last) {
    const auto token_ids = vector_view<TokenId>(tokens, "tokens");
    std::span<const int32_t> prompts;
    if (!prompt_of_request.is_none()) prompts = vector_view<int32_t>(prompt_of_request, "prompt_of_request");
    if (pybind11::isinstance<pybind11::array_t<int32_t>>(indptr)) {
        return Prompts(token_ids, vector_view<int32_t>(indptr, "indptr"), drop_last, prompts);
    }
    return Prompts(token_ids, vector_view<int64_t>(indptr, "indptr", "dtype('int64') or dtype('int32')"), drop_last,
                   prompts);
}

}  // namespace batchllm
