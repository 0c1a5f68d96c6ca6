#include "bindings/array_in.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "cuda/stream.h"

namespace py = pybind11;

namespace batchllm {
namespace {

std::string to_text(int64_t value) {
    return std::to_string(value);
}

ElementType element_type(dlpack::DLDataType type) {
    if (type.lanes != 1) return ElementType::kOther;
    const auto is = [type](uint8_t code, uint8_t bits) { return type.code == code && type.bits == bits; };
    if (is(dlpack::kFloat, 64)) return ElementType::kFloat64;
    if (is(dlpack::kFloat, 32)) return ElementType::kFloat32;
    if (is(dlpack::kBFloat, 16)) return ElementType::kBFloat16;
    if (is(dlpack::kFloat, 16)) return ElementType::kFloat16;
    if (is(dlpack::kUInt, 16)) return ElementType::kUInt16;
    if (is(dlpack::kUInt, 8)) return ElementType::kUInt8;
    if (is(dlpack::kInt, 32)) return ElementType::kInt32;
    if (is(dlpack::kInt, 64)) return ElementType::kInt64;
    if (is(dlpack::kBool, 8)) return ElementType::kBool;
    return ElementType::kOther;
}

std::string type_text(dlpack::DLDataType type) {
    const char* const names[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    std::string text = type.code < std::size(names) ? names[type.code] : "DLPack type code " + to_text(type.code) + ":";
    text += to_text(type.bits);
    return text;
}

std::string device_text(dlpack::DLDevice device) {
    if (device.device_type == dlpack::kCpu) return "the CPU";
    if (device.device_type == dlpack::kCuda) return "cuda:" + to_text(device.device_id);
    return "DLPack device type " + to_text(device.device_type);
}

// Native formats of the struct module that are numbers.
std::optional<dlpack::DLDataType> data_type(const char* format, int64_t bytes) {
    if (*format == '@' || *format == '=' || *format == '<') ++format;  // the machines we build for are little endian
    if (std::strlen(format) != 1) return std::nullopt;
    const auto bits = static_cast<uint8_t>(8 * bytes);
    if (*format == '?') return dlpack::DLDataType{dlpack::kBool, bits, 1};
    if (std::strchr("bhilqn", *format) != nullptr) return dlpack::DLDataType{dlpack::kInt, bits, 1};
    if (std::strchr("BHILQN", *format) != nullptr) return dlpack::DLDataType{dlpack::kUInt, bits, 1};
    if (std::strchr("efd", *format) != nullptr) return dlpack::DLDataType{dlpack::kFloat, bits, 1};
    return std::nullopt;
}

const dlpack::DLPackExchangeApi* exchange_api_of(py::handle type) {
    const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    const auto* api =
        static_cast<dlpack::DLPackExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    return api->version.major == 1 ? api : nullptr;
}

// The fast way of libraries that have it (torch since 2.10), else null. Tensors that require gradients are left to
// __dlpack__, which refuses them. Every layer's tensors come this way, nearly always of the type of the one before, so
// what that type offers is remembered. The GIL guards it.
dlpack::DLManagedTensorVersioned* export_directly(py::handle object) {
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    static PyObject* last_type = nullptr;  // a reference: its address is nobody else's
    static const dlpack::DLPackExchangeApi* api = nullptr;
    const py::handle type = py::type::handle_of(object);
    if (type.ptr() != last_type) {
        api = exchange_api_of(type);
        Py_XDECREF(std::exchange(last_type, type.inc_ref().ptr()));
    }
    if (api == nullptr) return nullptr;
    if (py::getattr(object, requires_grad, py::none()).is(py::bool_(true))) return nullptr;
    dlpack::DLManagedTensorVersioned* managed = nullptr;
    if (api->managed_tensor_from_py_object_no_sync(object.ptr(), &managed) == 0) return managed;
    PyErr_Clear();
    return nullptr;
}

bool is_on_cuda(py::handle object) {
    return py::hasattr(object, "__dlpack_device__") &&
           object.attr("__dlpack_device__")()[py::int_(0)].cast<int32_t>() == dlpack::kCuda;
}

// Whoever takes a tensor out of its capsule renames the capsule, and calls the deleter later.
template <typename Managed>
Managed* open_capsule(py::handle capsule, const char* name) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
    const bool is_versioned = std::is_same_v<Managed, dlpack::DLManagedTensorVersioned>;
    PyCapsule_SetName(capsule.ptr(), is_versioned ? "used_dltensor_versioned" : "used_dltensor");
    return managed;
}

template <typename Managed>
std::unique_ptr<void, void (*)(void*)> own(Managed* managed) {
    return {managed, [](void* self) {
                auto* tensor = static_cast<Managed*>(self);
                if (tensor->deleter != nullptr) tensor->deleter(tensor);
            }};
}

}  // namespace

const char* element_type_name(ElementType type) {
    switch (type) {
        case ElementType::kFloat64:
            return "float64";
        case ElementType::kFloat32:
            return "float32";
        case ElementType::kBFloat16:
            return "bfloat16";
        case ElementType::kFloat16:
            return "float16";
        case ElementType::kUInt16:
            return "uint16";
        case ElementType::kUInt8:
            return "uint8";
        case ElementType::kInt32:
            return "int32";
        case ElementType::kInt64:
            return "int64";
        case ElementType::kBool:
            return "bool";
        default:
            return "other";
    }
}

void Tensor::fail(const std::string& message) const {
    throw py::value_error(std::string(name_) + ": " + message);
}

void Tensor::fail_type(const std::string& message) const {
    throw py::type_error(std::string(name_) + ": " + message);
}

Tensor::Tensor(const char* name, py::handle object, Where where) : name_(name), where_(where) {
    if (PyObject_CheckBuffer(object.ptr())) {
        take_buffer(object);
    } else {
        take_dlpack(object);
    }
    if (type_ != ElementType::kOther && reinterpret_cast<uintptr_t>(data_) % element_bytes_ != 0) {
        fail("expected memory aligned to its " + to_text(element_bytes_) + "-byte elements");
    }
}

// JAX's arrays have a buffer and __dlpack__, but the first neither of bfloat16 nor on a GPU.
void Tensor::take_buffer(py::handle object) {
    if (where_ == Where::kCuda) {
        if (py::hasattr(object, "__dlpack__")) return take_dlpack(object);
        fail("expected a CUDA tensor, got one on the CPU");
    }
    Py_buffer& buffer = buffer_.view;
    if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
        py::error_already_set error;
        if (py::hasattr(object, "__dlpack__")) return take_dlpack(object);
        fail(std::string("its buffer cannot be read: ") + error.what());
    }
    check_num_dims(buffer.ndim);
    data_ = buffer.buf;
    element_bytes_ = buffer.itemsize;
    read_only_ = buffer.readonly;
    const char* const format = buffer.format == nullptr ? "B" : buffer.format;
    const std::optional<dlpack::DLDataType> type = data_type(format, buffer.itemsize);
    if (type) type_ = element_type(*type);
    if (type_ == ElementType::kOther) type_text_ = type ? type_text(*type) : std::string("format '") + format + "'";
    for (int dim = 0; dim < num_dims_; ++dim) {
        shape_[dim] = buffer.shape[dim];
        if (type_ == ElementType::kOther) continue;  // refused later; such elements may have no bytes
        if (buffer.strides[dim] % element_bytes_ != 0) fail("expected strides of whole elements");
        strides_[dim] = buffer.strides[dim] / element_bytes_;
    }
}

void Tensor::check_num_dims(int64_t num_dims) {
    if (num_dims > kMaxDims) fail("expected at most " + to_text(kMaxDims) + " dimensions, got " + to_text(num_dims));
    num_dims_ = static_cast<int>(num_dims);
}

void Tensor::take_dlpack(py::handle object) {
    if (dlpack::DLManagedTensorVersioned* managed = export_directly(object)) return take_versioned(managed);
    const py::object capsule = export_capsule(object);
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        take_versioned(open_capsule<dlpack::DLManagedTensorVersioned>(capsule, "dltensor_versioned"));
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        auto* managed = open_capsule<dlpack::DLManagedTensor>(capsule, "dltensor");
        managed_ = own(managed);
        take_description(managed->dl_tensor);
    } else {
        fail("its __dlpack__ returned no DLPack capsule");
    }
}

py::object Tensor::export_capsule(py::handle object) const {
    if (!py::hasattr(object, "__dlpack__")) {
        fail_type("expected an array with the buffer protocol or __dlpack__, got " +
                  std::string(py::str(py::type::handle_of(object).attr("__name__"))));
    }
    try {
        const py::object export_tensor = object.attr("__dlpack__");
        try {
            // -1: the producer need not order its work for us. The caller has said on which stream ours is.
            if (is_on_cuda(object)) return export_tensor(py::arg("stream") = -1);
            return export_tensor(py::arg("max_version") = py::make_tuple(1, 0));
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_TypeError)) throw;
            return export_tensor();  // a producer that does not know versions
        }
    } catch (py::error_already_set& error) {
        fail(std::string("its library does not export it: ") + error.what());
    } catch (const py::cast_error&) {
        fail("its __dlpack_device__ returned no device");
    }
}

void Tensor::take_versioned(dlpack::DLManagedTensorVersioned* managed) {
    managed_ = own(managed);
    if (managed->version.major != 1) fail("expected DLPack 1.x, got " + to_text(managed->version.major) + ".x");
    read_only_ = (managed->flags & dlpack::kReadOnlyFlag) != 0;
    take_description(managed->dl_tensor);
}

void Tensor::take_description(const dlpack::DLTensor& tensor) {
    if (tensor.device.device_type != dlpack::kCpu || where_ == Where::kCuda) take_device(tensor.device);
    check_num_dims(tensor.ndim);
    data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
    type_ = element_type(tensor.dtype);
    if (type_ == ElementType::kOther) type_text_ = type_text(tensor.dtype);
    element_bytes_ = (tensor.dtype.bits * tensor.dtype.lanes + 7) / 8;
    const bool is_empty = std::find(tensor.shape, tensor.shape + num_dims_, 0) != tensor.shape + num_dims_;
    const bool has_strides = tensor.strides != nullptr && !is_empty;  // NumPy says 0 where there are no elements
    int64_t contiguous = 1;
    for (int dim = num_dims_ - 1; dim >= 0; --dim) {
        shape_[dim] = tensor.shape[dim];
        strides_[dim] = has_strides ? tensor.strides[dim] : contiguous;
        contiguous *= shape_[dim];
    }
}

void Tensor::take_device(dlpack::DLDevice device) {
    const bool is_cuda = device.device_type == dlpack::kCuda;
    if (is_cuda && where_ != Where::kCpu && cuda::kIsBuilt) {
        device_ = device;
        return;
    }
    std::string reason;
    if (is_cuda) {
        reason = where_ == Where::kCpu ? ": only kernels take CUDA tensors, attention with a DevicePlan"
                                       : ": this build has no CUDA kernels: rebuild with BATCHLLM_CUDA=ON";
    }
    const char* const expected = where_ == Where::kCuda && !is_cuda ? "CUDA" : "CPU";
    fail(std::string("expected a ") + expected + " tensor, got one on " + device_text(device) + reason);
}

void Tensor::reinterpret_uint16_as_bfloat16() {
    if (type_ == ElementType::kUInt16) type_ = ElementType::kBFloat16;
}

void Tensor::expect_type(std::initializer_list<ElementType> types) const {
    std::string names;
    for (ElementType type : types) {
        if (type == type_) return;
        if (!names.empty()) names += " or ";
        names += element_type_name(type);
    }
    const std::string got = type_ == ElementType::kOther ? type_text_ : element_type_name(type_);
    fail_type("expected " + names + ", got " + got);
}

void Tensor::expect_device_of(const Tensor& other) const {
    if (device_.device_type == other.device_.device_type && device_.device_id == other.device_.device_id) return;
    fail("expected a tensor on " + device_text(other.device_) + ", where " + other.name_ + " is, got one on " +
         device_text(device_));
}

void Tensor::expect_writable() const {
    if (read_only_) fail("expected a writable tensor, got a read-only one");
    if (std::find(shape_, shape_ + num_dims_, 0) != shape_ + num_dims_) return;
    for (int dim = 0; dim < num_dims_; ++dim) {
        if (shape_[dim] > 1 && strides_[dim] == 0) fail("expected its own memory for every element, got stride 0");
    }
}

void Tensor::expect_unit_last_stride() const {
    const int last = num_dims_ - 1;
    if (shape_[last] > 1 && strides_[last] != 1) {
        fail("expected stride 1 in its last dimension, got " + to_text(strides_[last]));
    }
}

void Tensor::expect_aligned(int64_t bytes) const {
    const auto check = [&](int64_t offset, const std::string& what) {
        if (offset % bytes != 0) fail("expected " + what + " a multiple of " + to_text(bytes) + " bytes");
    };
    check(reinterpret_cast<intptr_t>(data_), "an address that is");
    for (int dim = 0; dim + 1 < num_dims_; ++dim) {
        if (shape_[dim] < 2) continue;  // its stride is never used
        check(strides_[dim] * element_bytes_, "strides that are");
    }
}

void check_shape(const Tensor& tensor, std::initializer_list<Dim*> dims) {
    const auto fail = [&tensor](const std::string& message) {
        throw py::value_error(std::string(tensor.name()) + ": " + message);
    };
    if (tensor.num_dims() != static_cast<int>(dims.size())) {
        std::string names;
        for (const Dim* dim : dims) {
            if (!names.empty()) names += ", ";
            names += dim->name;
        }
        fail("expected " + to_text(static_cast<int64_t>(dims.size())) + " dimensions [" + names + "], got " +
             to_text(tensor.num_dims()));
    }
    int index = 0;
    for (Dim* dim : dims) {
        const int64_t size = tensor.size(index++);
        if (dim->size < 0) {
            dim->set(size, tensor.name());
        } else if (dim->size != size) {
            fail(std::string(dim->name) + " is " + to_text(size) + ", but " + dim->set_by + " has " +
                 to_text(dim->size));
        }
    }
}

int32_t int32_size(const Dim& dim) {
    if (dim.size <= std::numeric_limits<int32_t>::max()) return static_cast<int32_t>(dim.size);
    throw py::value_error(std::string(dim.set_by) + ": " + dim.name + ": expected at most 2^31 - 1, got " +
                          to_text(dim.size));
}

namespace {

template <typename T>
std::span<const T> elements(const Tensor& tensor, ElementType type) {
    tensor.expect_type({type});
    if (tensor.num_dims() != 1) {
        throw py::value_error(std::string(tensor.name()) + ": expected 1 dimension, got " + to_text(tensor.num_dims()));
    }
    tensor.expect_unit_last_stride();
    return {static_cast<const T*>(tensor.data()), static_cast<size_t>(tensor.size(0))};
}

}  // namespace

std::span<const int32_t> int32_array(const Tensor& tensor) {
    return elements<int32_t>(tensor, ElementType::kInt32);
}
std::span<const int64_t> int64_array(const Tensor& tensor) {
    return elements<int64_t>(tensor, ElementType::kInt64);
}
std::span<const uint8_t> bool_array(const Tensor& tensor) {
    return elements<uint8_t>(tensor, ElementType::kBool);
}

std::shared_ptr<const Tensor> keep_tensor(const char* name, py::handle object) {
    return {new Tensor(name, object), [](const Tensor* kept) {
                const py::gil_scoped_acquire locked;
                delete kept;
            }};
}

}  // namespace batchllm
