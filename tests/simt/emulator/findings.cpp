#include "simt/emulator/findings.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "simt/emulator/block.h"

namespace simt {
namespace {

std::string base_name(const std::string& path) {
    return path.substr(path.rfind('/') + 1);
}

// The innermost line of a kernel at this address: frames of the emulator itself are passed over.
std::string line_of(const void* return_address) {
    Dl_info module{};
    const auto address = reinterpret_cast<uintptr_t>(return_address) - 1;
    if (dladdr(return_address, &module) == 0) return "";
    // A position-independent module is described by offsets, another by addresses.
    const auto base = reinterpret_cast<uintptr_t>(module.dli_fbase);
    for (const uintptr_t at : {address - base, address}) {
        char command[1024];
        std::snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", module.dli_fname,
                      static_cast<size_t>(at));
        FILE* lines = popen(command, "r");
        if (lines == nullptr) return "";
        std::string found;
        char line[512];
        while (std::fgets(line, sizeof line, lines) != nullptr) {
            line[std::strcspn(line, " \n")] = '\0';
            const bool is_kernel = line[0] != '?' && std::strstr(line, "/simt/emulator/") == nullptr;
            if (found.empty() && is_kernel) found = base_name(line);
        }
        pclose(lines);
        if (!found.empty()) return found;
    }
    return "";
}

}  // namespace

std::string Location::text() const {
    if (file_ != nullptr) return base_name(file_) + ":" + std::to_string(line_);
    const std::string line = line_of(address_);
    if (!line.empty()) return line;
    char text[32];
    std::snprintf(text, sizeof text, "%p", address_);
    return text;
}

const char* name(Kind kind) {
    switch (kind) {
        case Kind::kSharedBounds:
            return "out of bounds in shared memory";
        case Kind::kGlobalBounds:
            return "out of bounds in global memory";
        case Kind::kReadOnly:
            return "write into an input";
        case Kind::kUninitialised:
            return "uninitialised shared memory";
        case Kind::kSharedRace:
            return "race in shared memory";
        case Kind::kGlobalRace:
            return "race in global memory";
        case Kind::kNeverWaits:
            return "earlier launches are not waited for";
        case Kind::kAsyncPending:
            return "asynchronous copy not waited for";
        case Kind::kMisaligned:
            return "misaligned address";
        case Kind::kDivergence:
            return "divergence";
        case Kind::kDeadlock:
            return "deadlock";
        case Kind::kStackOverflow:
            return "fault";
        case Kind::kTooManyResources:
            return "launch refused";
    }
    return "";
}

std::vector<Finding>& findings() {
    static std::vector<Finding> all;
    return all;
}

bool has_finding(Kind kind) {
    return std::ranges::any_of(findings(), [&](const Finding& finding) { return finding.kind == kind; });
}

void report(Kind kind, const Location& location, const std::string& text) {
    constexpr size_t kMostFindings = 100;
    const auto is_known = [&](const Finding& finding) { return finding.kind == kind && finding.location == location; };
    if (findings().size() >= kMostFindings || std::ranges::any_of(findings(), is_known)) return;
    std::string who;
    if (const Block* block = Block::running(); block != nullptr && block->has_self()) {
        who = "block " + std::to_string(block->index().x) + " thread " + std::to_string(block->self().id) + ": ";
    }
    findings().push_back({kind, location, who + text});
}

std::string describe_findings() {
    std::string text;
    for (const Finding& finding : findings()) {
        text += finding.location.text() + ": " + name(finding.kind) + ": " + finding.text + "\n";
    }
    return text;
}

}  // namespace simt
