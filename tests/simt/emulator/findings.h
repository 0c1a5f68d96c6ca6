// What the emulator found wrong with a kernel.
#pragma once

#include <source_location>
#include <string>
#include <vector>

namespace simt {

// Where in a kernel something happened: the place of a call, or of a load or store, whose line its address tells.
class Location {
 public:
    Location(const std::source_location& place) : file_(place.file_name()), line_(place.line()) {}
    explicit Location(const void* return_address) : address_(return_address) {}

    bool operator==(const Location&) const = default;
    std::string text() const;  // "file.cuh:12"; an address where the line is not known

 private:
    const char* file_ = nullptr;
    unsigned line_ = 0;
    const void* address_ = nullptr;
};

enum class Kind {
    kSharedBounds,     // shared memory that was not allocated
    kGlobalBounds,     // no buffer's memory
    kReadOnly,         // a write into an input
    kUninitialised,    // shared memory that nobody wrote in this block
    kSharedRace,       // two threads, one of them writing, and no barrier between
    kGlobalRace,       // likewise; the threads of two blocks have none, nor those of two launches that overlap
    kNeverWaits,       // a launch that begins early, and no thread of it waits for the earlier ones
    kAsyncPending,     // memory that a cp.async has yet to fill
    kMisaligned,       // an address that the instruction does not take
    kDivergence,       // lanes that do not meet where they must
    kDeadlock,         // nobody can go on
    kStackOverflow,    // or any other fault outside of shared and global memory
    kTooManyResources  // a launch that the device refuses
};

const char* name(Kind kind);

struct Finding {
    Kind kind;
    Location location;
    std::string text;
};

// Of all launches since the last clear; one of a kind at a place.
std::vector<Finding>& findings();
bool has_finding(Kind kind);
void report(Kind kind, const Location& location, const std::string& text);
std::string describe_findings();  // a line each

}  // namespace simt
