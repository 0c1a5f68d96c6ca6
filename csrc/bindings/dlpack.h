// The DLPack structs (1.x and the unversioned ones before it), as far as a consumer needs them.
#pragma once

#include <cstdint>

namespace batchllm::dlpack {

constexpr int32_t kCpu = 1;
constexpr int32_t kCuda = 2;
constexpr uint64_t kReadOnlyFlag = 1;

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6 };

struct DLDevice {
    int32_t device_type;
    int32_t device_id;
};

struct DLDataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null: contiguous
    uint64_t byte_offset;
};

struct DLManagedTensor {  // capsule "dltensor"
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(DLManagedTensor* self);
};

struct DLManagedTensorVersioned {  // capsule "dltensor_versioned"
    struct {
        uint32_t major;
        uint32_t minor;
    } version;
    void* manager_ctx;
    void (*deleter)(DLManagedTensorVersioned* self);
    uint64_t flags;
    DLTensor dl_tensor;
};

// Exports without a call into Python: capsule "dlpack_exchange_api", the attribute __dlpack_c_exchange_api__ of a
// tensor's type (DLPack 1.2). The functions that a mere consumer has no use for are left untyped.
struct DLPackExchangeApi {
    struct {
        uint32_t major;
        uint32_t minor;
    } version;
    DLPackExchangeApi* previous;
    void* managed_tensor_allocator;
    int (*managed_tensor_from_py_object_no_sync)(void* object, DLManagedTensorVersioned** result);
};

}  // namespace batchllm::dlpack
