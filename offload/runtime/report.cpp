// What calls have taken: see module.h.

#include <algorithm>
#include <ostream>

#include <offload/bytes.h>
#include <offload/runtime/session.h>

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
  now.stall_us -= before.stall_us;
  now.wait_turn_us -= before.wait_turn_us;
  now.wait_door_us -= before.wait_door_us;
  now.wait_calls_us -= before.wait_calls_us;
  return now;
}

double per(double sum, std::uint64_t count) { return count == 0 ? 0 : sum / static_cast<double>(count); }

} // namespace

double Report::calls_in_pass() const { return per(static_cast<double>(since.calls_in_passes), since.passes); }

std::uint64_t Report::bytes_per_call() const {
  return since.calls == 0 ? 0 : (since.bytes_streamed - since.bytes_ahead) / since.calls;
}

/// What was ahead when weights were placed had been given up by then.
Report Session::report() const {
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
  return report;
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

std::ostream& operator<<(std::ostream& out, const Report& report) {
  const Stats& since = report.since;
  const PredictedRound& round = report.predicted.round;
  const auto wait_ms = [&](double us) { return per(us / 1e3, since.calls); };
  return out << since.calls << " calls in " << report.seconds << " s, " << report.calls_in_pass()
             << " in a pass; over the link " << format_bytes(report.bytes_per_call()) << " a call (predicted "
             << format_bytes(round.streamed_bytes) << " for " << round.callers
             << (round.callers == 1 ? " caller" : " callers") << "), which was in use for " << report.link_share * 100
             << "% of the time; each waited " << wait_ms(since.wait_turn_us) << " ms for its turn, "
             << wait_ms(since.wait_door_us) << " for its pass and " << wait_ms(since.wait_calls_us)
             << " for others in it\n";
}

} // namespace offload
