// Incoming arrays as views: by the buffer protocol (NumPy, array.array, memoryview) or DLPack (torch, JAX, CuPy, ...).
// Every array of every call is received and checked here, so the same mistake is the same exception everywhere:
// TypeError for a non-array or wrong elements, ValueError for everything else. A message names the array, the
// dimension, what was expected and what was found.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bindings/dlpack.h"

namespace batchllm {

enum class ElementType : uint8_t {
    kFloat64,
    kFloat32,
    kBFloat16,
    kFloat16,
    kUInt16,
    kUInt8,
    kInt32,
    kInt64,
    kBool,
    kOther
};

const char* element_type_name(ElementType type);

// Where a tensor may be.
enum class Where : uint8_t { kCpu, kCuda, kCpuOrCuda };

// A view of foreign memory, which it keeps alive.
class Tensor {
 public:
    static constexpr int kMaxDims = 4;

    // `name` is the argument's name in error messages; it must outlive the tensor. Throws unless `object` is an array
    // of at most kMaxDims dimensions on an allowed device.
    Tensor(const char* name, pybind11::handle object, Where where = Where::kCpu);
    const char* name() const { return name_; }
    void* data() const { return data_; }
    int num_dims() const { return num_dims_; }
    int64_t size(int dim) const { return shape_[dim]; }
    int64_t stride(int dim) const { return strides_[dim]; }  // in elements
    ElementType type() const { return type_; }
    int64_t element_bytes() const { return element_bytes_; }
    bool read_only() const { return read_only_; }
    bool is_cuda() const { return device_.device_type == dlpack::kCuda; }
    int device_id() const { return device_.device_id; }

    // NumPy has no bfloat16: its uint16 arrays count as bfloat16 if the caller says so.
    void reinterpret_uint16_as_bfloat16();

    void expect_type(std::initializer_list<ElementType> types) const;
    void expect_device_of(const Tensor& other) const;
    // Checks that elements do not overlap and may be written.
    void expect_writable() const;
    void expect_unit_last_stride() const;
    // Checks that the address and every stride except the last are multiples of this many bytes.
    void expect_aligned(int64_t bytes) const;

 private:
    void take_buffer(pybind11::handle object);
    void take_dlpack(pybind11::handle object);
    pybind11::object export_capsule(pybind11::handle object) const;
    void take_versioned(dlpack::DLManagedTensorVersioned* managed);
    void take_description(const dlpack::DLTensor& tensor);
    void take_device(dlpack::DLDevice device);
    void check_num_dims(int64_t num_dims);
    [[noreturn]] void fail(const std::string& message) const;
    [[noreturn]] void fail_type(const std::string& message) const;

    const char* name_;
    Where where_;
    dlpack::DLDevice device_{dlpack::kCpu, 0};
    void* data_ = nullptr;
    int num_dims_ = 0;
    int64_t shape_[kMaxDims] = {};
    int64_t strides_[kMaxDims] = {};
    ElementType type_ = ElementType::kOther;
    int64_t element_bytes_ = 0;
    bool read_only_ = false;
    std::string type_text_;  // for messages, if type_ is kOther

    // One of these two keeps the memory alive.
    struct Buffer {
        Py_buffer view = {};
        Buffer() = default;
        Buffer(const Buffer&) = delete;
        ~Buffer() { PyBuffer_Release(&view); }
    };
    Buffer buffer_;
    std::unique_ptr<void, void (*)(void*)> managed_{nullptr, nullptr};
};

// A dimension that several tensors share. The first tensor (or the caller) sets its size, the others must agree.
struct Dim {
    const char* name;
    int64_t size = -1;
    const char* set_by = nullptr;

    void set(int64_t new_size, const char* by) {
        size = new_size;
        set_by = by;
    }
};

void check_shape(const Tensor& tensor, std::initializer_list<Dim*> dims);

// A size that a plan or a batch holds in int32; ValueError if it does not fit.
int32_t int32_size(const Dim& dim);

// The elements of a one-dimensional, contiguous array of int32, int64 or bool.
std::span<const int32_t> int32_array(const Tensor& tensor);
std::span<const int64_t> int64_array(const Tensor& tensor);
std::span<const uint8_t> bool_array(const Tensor& tensor);

// A copy of an array of int32, each element converted to T.
template <typename T = int32_t>
std::vector<T> int32_copy(const char* name, pybind11::handle object) {
    const Tensor tensor(name, object);
    std::vector<T> copy;
    copy.reserve(int32_array(tensor).size());
    for (const int32_t value : int32_array(tensor)) copy.push_back(T{value});
    return copy;
}

// A tensor that outlives its call: it may be released without the GIL.
std::shared_ptr<const Tensor> keep_tensor(const char* name, pybind11::handle object);

}  // namespace batchllm
