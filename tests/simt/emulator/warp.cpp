#include "simt/emulator/warp.h"

#include "simt/emulator/block.h"

namespace simt {
namespace {

struct ShuffleArgument {
    Shuffle kind;
    uint32_t value;
    int operand;
    int width;
    Location location;
    uint32_t result;
};

// PTX ISA, shfl.sync: a source outside of the lane's segment means the lane itself.
int source_lane(const ShuffleArgument& argument, int lane) {
    const int segment = lane & ~(argument.width - 1);
    int source = lane;
    switch (argument.kind) {
        case Shuffle::kIndex:
            return segment + (argument.operand & (argument.width - 1));
        case Shuffle::kUp:
            source = lane - argument.operand;
            return source < segment ? lane : source;
        case Shuffle::kDown:
            source = lane + argument.operand;
            return source >= segment + argument.width ? lane : source;
        case Shuffle::kXor:
            source = lane ^ argument.operand;
            return source >= segment + argument.width ? lane : source;
    }
    return lane;
}

void shuffle_lanes(void* const* arguments, uint32_t mask) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        auto& argument = *static_cast<ShuffleArgument*>(arguments[lane]);
        const int source = source_lane(argument, lane);
        if ((mask >> source & 1) == 0) {
            report(Kind::kDivergence, argument.location, "lane " + std::to_string(source) + " is not in the mask");
            continue;
        }
        argument.result = static_cast<ShuffleArgument*>(arguments[source])->value;
    }
}

struct BallotArgument {
    bool predicate;
    uint32_t result;
};

void ballot_lanes(void* const* arguments, uint32_t mask) {
    uint32_t result = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if (mask >> lane & 1) result |= uint32_t{static_cast<BallotArgument*>(arguments[lane])->predicate} << lane;
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if (mask >> lane & 1) static_cast<BallotArgument*>(arguments[lane])->result = result;
    }
}

}  // namespace

uint32_t shuffle(Shuffle kind, uint32_t mask, uint32_t value, int operand, int width, const Location& location) {
    ShuffleArgument argument{kind, value, operand, width, location, ~0u};
    Block::running()->meet(mask, shuffle_lanes, &argument, location);
    return argument.result;
}

uint32_t ballot(uint32_t mask, bool predicate, const Location& location) {
    BallotArgument argument{predicate, 0};
    Block::running()->meet(mask, ballot_lanes, &argument, location);
    return argument.result;
}

}  // namespace simt
