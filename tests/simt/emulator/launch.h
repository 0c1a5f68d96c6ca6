// Runs a kernel, block after block.
#pragma once

#include <tuple>
#include <type_traits>

#include "simt/emulator/block.h"

namespace simt {

// `kernel(context)` is called by every thread. What goes wrong becomes a finding.
void launch_raw(const LaunchConfig& config, const Schedule& schedule, void (*kernel)(void*), void* context);

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchConfig& config, const Schedule& schedule,
            const Arguments&... arguments) {
    const std::tuple<std::decay_t<Parameters>...> all(arguments...);
    auto call = [&] { std::apply(kernel, all); };
    launch_raw(config, schedule, [](void* context) { (*static_cast<decltype(call)*>(context))(); }, &call);
}

}  // namespace simt
