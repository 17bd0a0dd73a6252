// What calls have taken: see module.h.

#include <algorithm>
#include <optional>
#include <ostream>
#include <sstream>

#include <offload/bytes.h>
#include <offload/plan/advice.h>
#include <offload/runtime/own_session.h>

namespace offload {

namespace {

std::uint64_t bytes_crossed(const Stats& stats) { return left_of(stats.bytes_streamed, stats.bytes_in_cache); }

Stats difference(Stats now, const Stats& before) {
  now.calls -= before.calls;
  now.calls_repeated -= before.calls_repeated;
  now.bytes_streamed -= before.bytes_streamed;
  now.copies -= before.copies;
  now.passes -= before.passes;
  now.calls_in_passes -= before.calls_in_passes;
  now.misses -= before.misses;
  now.bytes_in_place -= before.bytes_in_place;
  now.bytes_in_cache -= before.bytes_in_cache;
  now.call_us -= before.call_us;
  now.stall_us -= before.stall_us;
  now.wait_turn_us -= before.wait_turn_us;
  now.wait_door_us -= before.wait_door_us;
  now.wait_calls_us -= before.wait_calls_us;
  return now;
}

double per(double sum, std::uint64_t count) { return count == 0 ? 0 : sum / static_cast<double>(count); }

/// Of a call of one of `callers`, on average.
RunFigures figures_of(const Report& report, int callers) {
  const Stats& since = report.since;
  return {since.calls,
          report.call_us(),
          per(report.seconds * 1e6 * callers, since.calls),
          per(since.stall_us, since.calls),
          left_of(bytes_crossed(since), since.bytes_ahead) / since.calls,
          since.bytes_in_cache / since.calls};
}

} // namespace

double Report::calls_in_pass() const { return per(static_cast<double>(since.calls_in_passes), since.passes); }

std::uint64_t Report::bytes_per_call() const {
  return since.calls == 0 ? 0 : (since.bytes_streamed - since.bytes_ahead) / since.calls;
}

double Report::call_us() const { return per(since.call_us, since.calls); }

/// What was ahead when weights were placed had been given up by then.
Report Session::report() {
  Report report;
  const auto [stats, when] = [this] {
    const std::lock_guard lock(placed_mutex_);
    return placed_;
  }();
  report.since = difference(this->stats(), stats);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - when).count();
  const double link_us = static_cast<double>(bytes_crossed(report.since)) / model_.machine.link_bytes_per_us +
                         static_cast<double>(report.since.copies) * model_.machine.copy_overhead_us;
  report.link_share = std::min(1.0, link_us / 1e6 / report.seconds);
  report.predicted = placement().predicted;
  const Plan plan = state_.plan();
  const Observations observed = state_.observations();
  if (report.since.calls > 0 && plan.round.time_us > 0) {
    report.bound = bound_of(plan.round, observed.binding(plan.residency));
    judge(report, plan, observed);
  }
  return report;
}

void OwnSession::judge(Report& report, const Plan& plan, const Observations& observed) const {
  const RunFigures run = figures_of(report, plan.callers.count);
  const Expected expected{plan.round, observed.binding(plan.residency), plan.callers.count};
  report.deviation = deviation_of(run, expected);
  report.bound = bound_of(run, expected, report.deviation);
  if (report.bound == bound_of(plan.round, expected.binding)) {
    report.advice = advise(plan, observed);
  } // else what is predicted for other plans is off, too
}

/// A budget beyond what the device has is of no use.
std::vector<Advice> OwnSession::advise(const Plan& now, const Observations& observed) const {
  const std::uint64_t vram = state_.given().vram;
  const Binding binding = observed.binding(now.residency);
  Alternatives other;
  other.now = {vram, now.round.time_us, now.round.streamed_bytes, bound_of(now.round, binding)};
  if (now.round.streamed_bytes > 0) {
    const std::uint64_t device = model_.machine.device_memory_bytes;
    other.most_vram = std::min(observed.resident_vram(), device > 0 ? device : ~std::uint64_t{0});
    other.with_budget = [&](std::uint64_t bytes) { return observed.point(bytes); };
    other.with_faster_copies = [&] { return observed.with_faster_copies(binding.copies).point(vram); };
  }
  const std::optional<Observations> larger = observed.with_twice_the_rows();
  if (larger && larger->divide(vram).minimum() <= vram) {
    other.with_twice_the_rows = [&] { return larger->point(vram); };
  }
  return offload::advise(other, binding);
}

std::ostream& operator<<(std::ostream& out, const Stats& stats) {
  return out << "calls " << stats.calls << ", repeated " << stats.calls_repeated << ", streamed "
             << format_bytes(stats.bytes_streamed) << " in " << stats.copies << " copies and " << stats.passes
             << " passes, read in place " << format_bytes(stats.bytes_in_place) << ", in the page cache "
             << format_bytes(stats.bytes_in_cache) << ", resident " << format_bytes(stats.bytes_resident) << ", misses "
             << stats.misses << ", stalled " << stats.stall_us / 1e3 << " ms, waited " << stats.wait_turn_us / 1e3
             << " ms for a turn, " << stats.wait_door_us / 1e3 << " for a pass, " << stats.wait_calls_us / 1e3
             << " for others in it, peak " << format_bytes(stats.peak_device_bytes) << " on the device"
             << (stats.outside_bytes == 0 ? "" : ", in use beside budgets " + format_bytes(stats.outside_bytes))
             << '\n';
}

std::ostream& operator<<(std::ostream& to, const Report& report) {
  std::ostringstream out;
  out.precision(4);
  const Stats& since = report.since;
  const PredictedRound& round = report.predicted.round;
  const auto call_ms = [&](double us) { return per(us / 1e3, since.calls); };
  const auto several = [](std::uint64_t count, const char* what) {
    return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
  };
  out << several(since.calls, "call") << " in " << report.seconds << " s, " << report.calls_in_pass()
      << " in a pass. A call took " << report.call_us() / 1e3 << " ms (predicted " << round.time_us / 1e3 << " for "
      << several(static_cast<std::uint64_t>(round.callers), "caller") << "), of which it stalled "
      << call_ms(since.stall_us) << " for copies; before that it waited " << call_ms(since.wait_turn_us)
      << " for its turn, and in it " << call_ms(since.wait_door_us) << " for its pass and "
      << call_ms(since.wait_calls_us) << " for others in it. Over the link came "
      << format_bytes(report.bytes_per_call()) << " a call (predicted " << format_bytes(round.streamed_bytes)
      << "), with " << since.misses << (since.misses == 1 ? " miss" : " misses") << "; it was in use for "
      << report.link_share * 100 << "% of the time. The peak was " << format_bytes(since.peak_device_bytes)
      << " on the device (predicted " << format_bytes(report.predicted.peak_device_bytes) << ").\n";
  if (since.calls == 0 || round.time_us <= 0) {
    return to << out.str();
  }
  if (report.deviation.factor != 1) {
    out << describe(report.deviation) << '\n';
  }
  out << describe(report.bound) << '\n';
  if (report.deviation.factor != 1 && report.advice.empty()) {
    out << "What would help can not be told from costs that are off: `bench --profile` measures them.\n";
  }
  for (const Advice& advice : report.advice) {
    out << describe(advice) << '\n';
  }
  return to << out.str();
}

} // namespace offload
