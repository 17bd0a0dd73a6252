#pragma once

#include <iosfwd>
#include <nlohmann/json_fwd.hpp>

#include <tools/bench_measure.h>

namespace offload::tools {

/// The stack with none and half of its layers on the device, and `selection.callers` at the same time; then calls that
/// arrive at random, at `selection.loads`.
CallersResult measure_callers(const Case& stack, const Selection& selection, const MeasureOptions& options);

void write_callers(const CallersResult& result, std::ostream& out);
nlohmann::ordered_json callers_json(const CallersResult& result);

} // namespace offload::tools
