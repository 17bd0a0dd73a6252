#include <offload/plan/planner.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include <offload/core/words.h>
#include <offload/plan/orders.h>

namespace offload {

namespace {

/// What each step needs in the ring while weights become resident, one after another, and the most of all.
class RingNeeds {
 public:
  explicit RingNeeds(const Pass& pass)
      : weights_(*pass.weights), resident_(weights_.size()), choices_of_(weights_.size()) {
    for (const PlanStep& step : pass.steps) {
      add({step.weights, step.weights.size()});
    }
    std::for_each(pass.choices.begin(), pass.choices.end(), [&](const Choice& choice) { add(choice); });
  }

  std::uint64_t most() const { return sorted_.empty() ? 0 : *sorted_.rbegin(); }

  void make_resident(WeightId weight) { change(weight, true); }
  void make_streamed(WeightId weight) { change(weight, false); }

 private:
  /// Largest first.
  void add(Choice choice) {
    std::sort(choice.weights.begin(), choice.weights.end(),
              [&](WeightId a, WeightId b) { return weights_[a].bytes > weights_[b].bytes; });
    for (const WeightId weight : choice.weights) {
      choices_of_[weight].push_back(choices_.size());
    }
    choices_.push_back(std::move(choice));
    needs_.push_back(need(choices_.back()));
    sorted_.insert(needs_.back());
  }

  std::uint64_t need(const Choice& choice) const {
    std::uint64_t bytes = 0;
    std::size_t left = choice.at_once;
    for (auto weight = choice.weights.begin(); weight != choice.weights.end() && left > 0; ++weight) {
      if (!resident_[*weight]) {
        bytes += weights_[*weight].bytes;
        --left;
      }
    }
    return bytes;
  }

  void change(WeightId weight, bool resident) {
    resident_[weight] = resident;
    for (const std::size_t choice : choices_of_[weight]) {
      sorted_.erase(sorted_.find(needs_[choice]));
      needs_[choice] = need(choices_[choice]);
      sorted_.insert(needs_[choice]);
    }
  }

  const WeightTable& weights_;
  std::vector<bool> resident_;                       // by weight
  std::vector<std::vector<std::size_t>> choices_of_; // by weight
  std::vector<Choice> choices_;
  std::vector<std::uint64_t> needs_; // by choice
  std::multiset<std::uint64_t> sorted_;
};

/// Weights are made resident in `order`, beside those that are `kept`, while they leave a ring of `ring` bytes, or of
/// what the largest remaining step needs if that is more. The rest of the capacity goes to the ring.
Residency fill(const Pass& pass, RingNeeds needs, std::uint64_t capacity, const Order& order, std::uint64_t ring,
               const Residency& kept = {}) {
  Residency residency{std::vector<std::uint64_t>(pass.weights->size()), 0};
  std::uint64_t taken = 0;
  for (WeightId weight = 0; weight < kept.bytes.size(); ++weight) {
    if (kept.stays(weight)) {
      needs.make_resident(weight);
      residency.bytes[weight] = pass.bytes(weight);
      taken += pass.bytes(weight);
    }
  }
  const auto make_resident = [&](WeightId weight) {
    if (taken + pass.bytes(weight) > capacity) {
      return false;
    }
    needs.make_resident(weight);
    const std::uint64_t needed = std::max(needs.most(), std::min(ring, capacity));
    if (taken + pass.bytes(weight) + needed > capacity && needed > 0) {
      needs.make_streamed(weight);
      return false;
    }
    residency.bytes[weight] = pass.bytes(weight);
    taken += pass.bytes(weight);
    return true;
  };
  for (const WeightId weight : order.weights) {
    if (!residency.stays(weight) && !make_resident(weight) && order.is_prefix) {
      break;
    }
  }
  residency.ring_bytes = needs.most() == 0 ? 0 : left_of(capacity, taken);
  return residency;
}

/// A ring longer than eight batches smooths nothing more, however large a single step is.
std::uint64_t useful_ring(const Plan& p) { return std::min(p.residency.ring_bytes, 8 * kBatchBytes); }

/// What part of a time no simulation distinguishes: with several callers, or costs that were measured, chance is a part
/// of it.
double same_time(const Pass& pass, Callers callers) { return callers.count > 1 || pass.is_measured ? 1e-2 : 2e-3; }

/// The shorter time; among those that are the same, the longer ring, which also absorbs what is not simulated: then the
/// plan that streams less.
bool better(const Plan& a, const Plan& b, double same) {
  if (std::abs(a.round.time_us - b.round.time_us) > same * b.round.time_us) {
    return a.round.time_us < b.round.time_us;
  }
  const bool a_streams = a.round.streamed_bytes > 0;
  const bool b_streams = b.round.streamed_bytes > 0;
  if (a_streams != b_streams) {
    return !a_streams;
  }
  if (useful_ring(a) != useful_ring(b)) {
    return useful_ring(a) > useful_ring(b);
  }
  return a.round.streamed_bytes < b.round.streamed_bytes;
}

Plan evaluate(const Pass& pass, Residency residency, const MachineProfile& machine, Callers callers) {
  const Simulated round = simulate(pass, residency, machine, callers);
  return {std::move(residency), round, callers, round};
}

/// For callers that share a pass it is that of one, but for the time that the device computes for all.
Pass as_of_one(Pass pass, Callers callers) {
  for (PlanStep& step : pass.steps) {
    step.compute_us *= callers.lanes;
  }
  return pass;
}

/// Those of `plans`, which have been simulated roughly, that are simulated to the end: the fastest of them and the best
/// by better(); for several callers, whose rings count for more than this shows, the fastest of each length of ring.
std::vector<Plan> finalists(std::vector<Plan> plans, Callers callers, double same) {
  constexpr std::size_t kFinalists = 5;
  const auto faster = [](const Plan& a, const Plan& b) { return a.round.time_us < b.round.time_us; };
  std::vector<Plan> chosen;
  if (callers.count > 1) {
    std::map<std::uint64_t, Plan> by_ring; // in batches
    for (Plan& plan : plans) {
      const auto [known, is_new] = by_ring.try_emplace(plan.residency.ring_bytes / kBatchBytes, plan);
      if (!is_new && faster(plan, known->second)) {
        known->second = std::move(plan);
      }
    }
    for (auto& [ring, plan] : by_ring) {
      chosen.push_back(std::move(plan));
    }
    return chosen;
  }
  while (chosen.size() < kFinalists && !plans.empty()) {
    const auto before = [&](const Plan& a, const Plan& b) {
      return chosen.empty() ? faster(a, b) : better(a, b, same);
    };
    const auto next = std::min_element(plans.begin(), plans.end(), before);
    chosen.push_back(std::move(*next));
    plans.erase(next);
  }
  return chosen;
}

/// The best of `first` and `candidates`. These are simulated for eight calls, and some of them until calls repeat
/// themselves.
Plan best_of(const Pass& pass, const Plan& first, std::vector<Residency> candidates, const MachineProfile& machine) {
  constexpr std::size_t kFewCalls = 8;
  const Pass rough_pass = as_of_one(pass, first.callers);
  std::vector<Plan> plans;
  for (Residency& residency : candidates) {
    const Simulated rough = simulate(rough_pass, residency, machine, {}, kFewCalls);
    plans.push_back({std::move(residency), rough, {}, rough});
  }
  const double same = same_time(pass, first.callers);
  Plan best = first;
  for (Plan& plan : finalists(std::move(plans), first.callers, same)) {
    Plan finalist = evaluate(pass, std::move(plan.residency), machine, first.callers);
    if (better(finalist, best, same)) {
      best = std::move(finalist);
    }
  }
  return best;
}

} // namespace

std::uint64_t minimum_capacity(const Pass& pass) { return RingNeeds(pass).most(); }

std::uint64_t resident_capacity(const Pass& pass) {
  std::uint64_t bytes = 0;
  for (const WeightId weight : largest_first(pass).weights) {
    bytes += pass.bytes(weight);
  }
  return bytes;
}

Plan plan_larger_first(const Pass& pass, std::uint64_t capacity, const MachineProfile& machine, Callers callers) {
  return evaluate(pass, fill(pass, RingNeeds(pass), capacity, largest_first(pass), 0), machine, callers);
}

Plan plan_beside_ring(const Pass& pass, std::uint64_t capacity, std::uint64_t ring_bytes, const MachineProfile& machine,
                      const Residency& kept) {
  constexpr std::size_t kFewCalls = 8;
  const RingNeeds needs(pass);
  std::optional<Plan> best;
  for (const Order& order : {largest_first(pass), most_used_first(pass), spread(pass)}) {
    Residency residency = fill(pass, needs, capacity + ring_bytes, order, ring_bytes, kept);
    if (best && residency.bytes == best->residency.bytes) {
      continue;
    }
    std::uint64_t streamed = 0;
    std::uint64_t largest = 0;
    for (const Step& step : streamed_sequence(pass, residency)) {
      std::uint64_t bytes = 0;
      for (const WeightId weight : step) {
        bytes += pass.bytes(weight);
      }
      streamed += bytes;
      largest = std::max(largest, bytes);
    }
    // Others use it between two calls: nothing stays there until the next.
    residency.ring_bytes = std::min(ring_bytes, std::max(largest, streamed / 2));
    Simulated simulated = simulate(pass, residency, machine, {}, kFewCalls);
    if (simulated.streamed_bytes == 0) { // the last step, which does stay in the simulated one
      simulated.streamed_bytes = streamed;
      simulated.time_us += static_cast<double>(streamed) / machine.link_bytes_per_us;
      simulated.link_us += static_cast<double>(streamed) / machine.link_bytes_per_us;
    }
    residency.ring_bytes = streamed == 0 ? 0 : ring_bytes;
    Plan plan{std::move(residency), simulated, {}, simulated};
    if (!best || better(plan, *best, same_time(pass, {}))) {
      best = std::move(plan);
    }
    if (best->round.streamed_bytes == 0) {
      break;
    }
  }
  return std::move(*best);
}

Plan plan(const Pass& pass, std::uint64_t capacity, const MachineProfile& machine, Callers callers, Rule rule) {
  const std::vector<Order> orders = orders_by(rule, pass);
  const RingNeeds needs(pass);
  Plan plainest = evaluate(pass, fill(pass, needs, capacity, orders.front(), 0), machine, callers);
  if (plainest.round.streamed_bytes == 0) {
    plainest.predicted = callers.count == 1 ? plainest.round : simulate(pass, plainest.residency, machine);
    return plainest;
  }
  // The ring that pays is a few batches, or a few of the largest steps; more of it is worth less than weights that
  // stay. Where only small steps stream, it is less than a batch, and still more than the smallest.
  const std::uint64_t largest = needs.most();
  std::vector<std::uint64_t> rings = {0, largest * 2, largest * 3, largest * 4};
  for (std::uint64_t ring = kBatchBytes / 4; ring <= 8 * kBatchBytes; ring *= 2) {
    rings.push_back(ring);
  }
  std::sort(rings.begin(), rings.end());
  rings.erase(std::unique(rings.begin(), rings.end()), rings.end());
  std::vector<Residency> candidates;
  for (const Order& order : orders) {
    for (const std::uint64_t ring : rings) {
      if (ring <= capacity) {
        Residency candidate = fill(pass, needs, capacity, order, ring);
        if (!(candidate == plainest.residency) &&
            std::find(candidates.begin(), candidates.end(), candidate) == candidates.end()) {
          candidates.push_back(std::move(candidate));
        }
      }
    }
  }
  Plan best = best_of(pass, plainest, std::move(candidates), machine);
  // A row of choices between equals may have led away from the best by more than one of them.
  if (callers.count == 1 && best.round.time_us > plainest.round.time_us) {
    best = std::move(plainest);
  }
  best.predicted = callers.count == 1 ? best.round : simulate(pass, best.residency, machine);
  return best;
}

} // namespace offload
