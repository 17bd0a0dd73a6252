#include <offload/plan/advice.h>

#include <algorithm>
#include <sstream>

#include <offload/bytes.h>

namespace offload {

namespace {

constexpr double kAgrees = 1.5;

/// What copies are predicted to reach, with what each of them costs beside its bytes.
double copies_bytes_per_us(const Expected& expected) {
  const double bytes = static_cast<double>(expected.round.streamed_bytes) * expected.callers;
  return expected.round.link_us > 0 ? bytes / expected.round.link_us : 0;
}

Deviation slower(const RunFigures& run, const Expected& expected) {
  Deviation deviation{run.least_us / expected.round.time_us, expected.binding.device};
  const double more_us = run.least_us - expected.round.time_us;
  if (run.crossed_bytes > 0 && run.stall_us - expected.round.stall_us >= more_us / 2) {
    deviation.cost = expected.binding.copies;
    const double profile = copies_bytes_per_us(expected);
    const double rate = static_cast<double>(run.crossed_bytes) / run.stall_us; // the link worked for longer than that
    if (expected.callers == 1 && rate < profile) {
      deviation.bytes_per_us = rate;
      deviation.profile_bytes_per_us = profile;
    }
  }
  return deviation;
}

Deviation faster(const RunFigures& run, const Expected& expected) {
  Deviation deviation{run.most_us / expected.round.time_us};
  if (run.cached_bytes > 0 && 2 * run.cached_bytes > expected.round.streamed_bytes) {
    deviation.cost = expected.binding.copies;
    deviation.cached_bytes = run.cached_bytes;
  } else if (run.crossed_bytes > 0 && expected.round.link_us > std::max(run.most_us, expected.round.compute_us)) {
    deviation.cost = expected.binding.copies;
    if (expected.callers == 1) {
      deviation.bytes_per_us = static_cast<double>(run.crossed_bytes) / run.most_us;
      deviation.profile_bytes_per_us = copies_bytes_per_us(expected);
    }
  } else if (expected.round.compute_us > run.most_us) {
    deviation.cost = expected.binding.device;
  }
  return deviation;
}

/// "2.5 ms", of any length.
std::string ms(double us) {
  std::ostringstream out;
  out.precision(3);
  out << us / 1e3 << " ms";
  return out.str();
}

/// As of a rate, a gain: three significant figures.
std::string figure(double value) {
  std::ostringstream out;
  out.precision(3);
  out << value;
  return out.str();
}

const char* describe_copies(Bound cost) {
  return cost == Bound::disk ? "weights come from the disk" : "weights cross the link";
}

} // namespace

const char* to_string(Change change) {
  switch (change) {
    case Change::budget:
      return "budget";
    case Change::link:
      return "link";
    case Change::disk:
      return "disk";
    case Change::rows:
      return "rows";
  }
  return "unknown";
}

Deviation deviation_of(const RunFigures& run, const Expected& expected) {
  constexpr std::uint64_t kEnough = 3; // calls: the first may find an empty ring
  if (run.calls < kEnough || expected.round.time_us <= 0) {
    return {};
  }
  if (run.least_us > kAgrees * expected.round.time_us) {
    return slower(run, expected);
  }
  if (run.most_us > 0 && run.most_us < expected.round.time_us / kAgrees) {
    return faster(run, expected);
  }
  return {};
}

Bound bound_of(const RunFigures& run, const Expected& expected, const Deviation& deviation) {
  constexpr double kSeldom = 0.05;
  if (deviation.factor == 1) {
    return bound_of(expected.round, expected.binding);
  }
  return 2 * run.stall_us >= run.least_us         ? expected.binding.copies
         : run.stall_us >= kSeldom * run.least_us ? Bound::neither
                                                  : expected.binding.device;
}

std::vector<Advice> advise(const Alternatives& alternatives, Binding binding) {
  constexpr double kHelps = 1.05;
  constexpr std::size_t kBudgets = 9;
  const SweepPoint& now = alternatives.now;
  std::vector<Advice> advice;
  const auto add = [&](Change change, const SweepPoint& then, double times) {
    const double gain = then.time_us > 0 ? times * now.time_us / then.time_us : 1;
    if (gain >= kHelps) {
      advice.push_back({change, then, gain});
    }
  };
  if (alternatives.with_budget && alternatives.most_vram > now.vram) {
    const auto points = sweep_between(
        now.vram, alternatives.most_vram,
        [&](std::uint64_t vram) { return vram == now.vram ? now : alternatives.with_budget(vram); }, kBudgets);
    add(Change::budget, points.back(), 1);
    const auto knee = knee_of(points);
    if (knee && *knee > 0 && *knee + 1 < points.size()) {
      add(Change::budget, points[*knee], 1);
    }
  }
  if (alternatives.with_faster_copies) {
    add(binding.copies == Bound::disk ? Change::disk : Change::link, alternatives.with_faster_copies(), 1);
  }
  if (alternatives.with_twice_the_rows) {
    add(Change::rows, alternatives.with_twice_the_rows(), 2);
  }
  std::stable_sort(advice.begin(), advice.end(), [](const Advice& a, const Advice& b) { return a.gain > b.gain; });
  return advice;
}

std::string describe(Bound bound) {
  switch (bound) {
    case Bound::compute:
      return "Calls are bound by what the device computes.";
    case Bound::launches:
      return "Calls are bound by the host, which launches nodes.";
    case Bound::link:
      return "Calls are bound by the link.";
    case Bound::disk:
      return "Calls are bound by the disk that weights are read from.";
    case Bound::neither:
      return "Calls are bound by neither alone: link and compute wait for each other, or both for callers.";
  }
  return "";
}

std::string describe(const Advice& advice) {
  const std::string effect =
      "calls are predicted to be " + figure(advice.gain) + " times as fast, at " + ms(advice.then.time_us) + ".";
  switch (advice.change) {
    case Change::budget:
      return "With vram_budget " + format_bytes(advice.then.vram) + " (" + std::to_string(advice.then.vram) +
             " bytes), " +
             (advice.then.streamed_bytes == 0
                  ? "where nothing streams"
                  : "where " + format_bytes(advice.then.streamed_bytes) + " a call stream") +
             ", " + effect;
    case Change::link:
      return "With a link twice as fast, " + effect;
    case Change::disk:
      return "With a disk twice as fast, " + effect;
    case Change::rows:
      return "With twice the rows in a call, rows are predicted to come " + figure(advice.gain) +
             " times as fast, at " + ms(advice.then.time_us) + " a call.";
  }
  return "";
}

std::string describe(const Deviation& deviation) {
  if (deviation.factor == 1) {
    return "";
  }
  const bool is_slower = deviation.factor > 1;
  std::string text = "Calls take " + figure(deviation.factor) + " times as long as predicted: ";
  if (deviation.cached_bytes > 0) {
    return text + format_bytes(deviation.cached_bytes) + " of weights a call were in the page cache.";
  }
  switch (deviation.cost) {
    case Bound::link:
    case Bound::disk:
      text += std::string(describe_copies(deviation.cost)) + (is_slower ? " more slowly" : " faster") +
              " than by the profile";
      if (deviation.bytes_per_us > 0) {
        text += ", at " + figure(deviation.bytes_per_us / 1e3) + " GB/s at the " + (is_slower ? "most" : "least") +
                " instead of " + figure(deviation.profile_bytes_per_us / 1e3);
      }
      return text + ".";
    case Bound::compute:
      return text + "the device computes " + (is_slower ? "more slowly" : "faster") +
             " than by the profile, or operators cost what the plan does not know.";
    case Bound::launches:
      return text + "nodes are launched " + (is_slower ? "more slowly" : "faster") + " than by the profile.";
    case Bound::neither:
      break;
  }
  return text + "which cost is off can not be told.";
}

} // namespace offload
