// The memory that kernels see. Every piece ends at a page that faults, so that a fast build stops at what runs over its
// end; a checked build looks each access up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "simt/emulator/findings.h"

namespace simt {

struct Cell;  // shadow.h

enum class Use : uint8_t { kInput, kOutput };

// A buffer of the device's memory, aligned to 16 bytes at both ends. Kernels may read it all; the rounding at its end
// holds NaN.
class GlobalBuffer {
 public:
    GlobalBuffer(std::string name, size_t bytes, Use use);
    ~GlobalBuffer();
    GlobalBuffer(const GlobalBuffer&) = delete;
    GlobalBuffer& operator=(const GlobalBuffer&) = delete;

    template <typename T = std::byte>
    T* data() const {
        return reinterpret_cast<T*>(data_);
    }
    size_t size() const { return bytes_; }
    const std::string& name() const { return name_; }
    Use use() const { return use_; }
    bool contains(uintptr_t address, size_t bytes) const;
    Cell* cell(uintptr_t address) const;  // of an output

    // The buffer of this access; nullptr: none.
    static const GlobalBuffer* find(uintptr_t address, size_t bytes);
    static bool is_near(uintptr_t address);  // where buffers and their guard pages lie

 private:
    std::string name_;
    size_t bytes_;
    Use use_;
    std::byte* pages_;
    size_t page_bytes_;
    std::byte* data_;
    std::unique_ptr<Cell[]> cells_;
};

// The shared memory of the block that runs: arrays of fixed size, and one that is sized at launch.
class SharedMemory {
 public:
    static SharedMemory& instance();

    void start_block(size_t dynamic_bytes);  // everything holds NaN and counts as never written
    std::byte* dynamic() const { return dynamic_; }
    // `key` names the array; its first thread allocates it.
    void* array(const void* key, size_t bytes, size_t alignment);

    bool is_near(uintptr_t address) const;
    bool contains(uintptr_t address, size_t bytes) const;  // in one array
    Cell* cell(uintptr_t address) const;                   // of an address that is near
    std::string describe(uintptr_t address) const;

 private:
    SharedMemory();

    struct Extent {
        std::byte* begin;
        size_t bytes;
    };

    std::byte* memory_;
    std::byte* dynamic_ = nullptr;
    size_t dynamic_bytes_ = 0;
    std::map<const void*, Extent> arrays_;
    size_t array_bytes_ = 0;
    std::unique_ptr<Cell[]> cells_;
};

}  // namespace simt
