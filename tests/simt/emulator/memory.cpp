#include "simt/emulator/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "simt/emulator/limits.h"
#include "simt/emulator/shadow.h"

namespace simt {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 16;
constexpr size_t kArrayArea = 64 * 1024;
constexpr size_t kRedZone = 32;  // before and behind each array of fixed size
constexpr size_t kDynamicArea = (kMaxDynamicShared + kPage - 1) / kPage * kPage;
constexpr size_t kSharedArea = kArrayArea + kPage + kDynamicArea + kPage;  // a guard page behind each

size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

std::byte* map(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(memory);
}

std::vector<const GlobalBuffer*>& buffers() {
    static std::vector<const GlobalBuffer*> all;
    return all;
}

// Addresses that no other memory has. Buffers take them one behind the other, until none is left and all begins anew.
struct Arena {
    static constexpr size_t kBytes = size_t{1} << 38;

    std::byte* memory = map(kBytes);
    size_t used_bytes = 0;

    static Arena& instance() {
        static Arena arena;
        return arena;
    }
};

}  // namespace

GlobalBuffer::GlobalBuffer(std::string name, size_t bytes, Use use) : name_(std::move(name)), bytes_(bytes), use_(use) {
    Arena& arena = Arena::instance();
    const size_t rounded = round_up(bytes, kAlignment);
    page_bytes_ = round_up(rounded, kPage);
    pages_ = arena.memory + arena.used_bytes + kPage;
    arena.used_bytes += kPage + page_bytes_ + kPage;
    if (arena.used_bytes > Arena::kBytes || mprotect(pages_, page_bytes_, PROT_READ | PROT_WRITE) != 0) {
        throw std::bad_alloc();
    }
    data_ = pages_ + page_bytes_ - rounded;
    std::memset(data_, 0xff, rounded);
    if (use == Use::kOutput) cells_ = std::make_unique<Cell[]>(rounded / kCellBytes);
    buffers().push_back(this);
}

GlobalBuffer::~GlobalBuffer() {
    std::erase(buffers(), this);
    madvise(pages_, page_bytes_, MADV_DONTNEED);
    mprotect(pages_, page_bytes_, PROT_NONE);
    if (buffers().empty()) Arena::instance().used_bytes = 0;
}

bool GlobalBuffer::contains(uintptr_t address, size_t bytes) const {
    const auto begin = reinterpret_cast<uintptr_t>(data_);
    return address >= begin && address + bytes <= begin + bytes_;
}

Cell* GlobalBuffer::cell(uintptr_t address) const {
    return cells_.get() + (address - reinterpret_cast<uintptr_t>(data_)) / kCellBytes;
}

const GlobalBuffer* GlobalBuffer::find(uintptr_t address, size_t bytes) {
    std::vector<const GlobalBuffer*>& all = buffers();
    for (size_t i = 0; i < all.size(); ++i) {
        if (!all[i]->contains(address, bytes)) continue;
        std::swap(all[i], all[i / 2]);  // what is asked for often moves to the front
        return all[i / 2];
    }
    return nullptr;
}

bool GlobalBuffer::is_near(uintptr_t address) {
    return address - reinterpret_cast<uintptr_t>(Arena::instance().memory) < Arena::kBytes;
}

SharedMemory& SharedMemory::instance() {
    static SharedMemory memory;
    return memory;
}

SharedMemory::SharedMemory() : memory_(map(kSharedArea)), cells_(std::make_unique<Cell[]>(kSharedArea / kCellBytes)) {
    mprotect(memory_, kArrayArea, PROT_READ | PROT_WRITE);
}

void SharedMemory::start_block(size_t dynamic_bytes) {
    std::byte* area = memory_ + kArrayArea + kPage;
    if (dynamic_bytes != dynamic_bytes_ || dynamic_ == nullptr) {
        constexpr size_t kDynamicAlignment = 128;
        mprotect(area, kDynamicArea, PROT_NONE);
        dynamic_ = area + kDynamicArea - round_up(dynamic_bytes, kDynamicAlignment);
        dynamic_bytes_ = dynamic_bytes;
        const size_t used_pages = round_up(dynamic_bytes, kPage);
        mprotect(area + kDynamicArea - used_pages, used_pages, PROT_READ | PROT_WRITE);
    }
    std::memset(dynamic_, 0xff, dynamic_bytes_);
    std::memset(memory_, 0xff, array_bytes_);
    arrays_.clear();
    array_bytes_ = kRedZone;
}

void* SharedMemory::array(const void* key, size_t bytes, size_t alignment) {
    const auto known = arrays_.find(key);
    if (known != arrays_.end()) return known->second.begin;
    const size_t begin = round_up(array_bytes_, alignment);
    array_bytes_ = begin + bytes + kRedZone;
    if (array_bytes_ > kArrayArea) throw std::bad_alloc();
    return (arrays_[key] = {memory_ + begin, bytes}).begin;
}

bool SharedMemory::is_near(uintptr_t address) const {
    return address - reinterpret_cast<uintptr_t>(memory_) < kSharedArea;
}

bool SharedMemory::contains(uintptr_t address, size_t bytes) const {
    const auto inside = [&](const std::byte* begin, size_t size) {
        const auto first = reinterpret_cast<uintptr_t>(begin);
        return address >= first && address + bytes <= first + size;
    };
    if (inside(dynamic_, dynamic_bytes_)) return true;
    return std::ranges::any_of(arrays_, [&](const auto& item) { return inside(item.second.begin, item.second.bytes); });
}

Cell* SharedMemory::cell(uintptr_t address) const {
    return cells_.get() + (address - reinterpret_cast<uintptr_t>(memory_)) / kCellBytes;
}

std::string SharedMemory::describe(uintptr_t address) const {
    const auto offset = static_cast<ptrdiff_t>(address - reinterpret_cast<uintptr_t>(dynamic_));
    if (address < reinterpret_cast<uintptr_t>(memory_) + kArrayArea) return "beside an array of fixed size";
    return "at byte " + std::to_string(offset) + " of " + std::to_string(dynamic_bytes_);
}

}  // namespace simt
