#include <tools/serve_metrics.h>

#include <algorithm>
#include <charconv>
#include <functional>

namespace offload::tools {

void RequestCounters::answered(int status) {
  const std::scoped_lock lock(mutex_);
  ++counts_.requests[status];
}

void RequestCounters::opened() {
  const std::scoped_lock lock(mutex_);
  ++counts_.connections;
}

void RequestCounters::refused_connection() {
  const std::scoped_lock lock(mutex_);
  ++counts_.connections_refused;
}

void RequestCounters::closed() {
  const std::scoped_lock lock(mutex_);
  --counts_.connections;
}

void RequestCounters::moved(const Moved& bytes) {
  const std::scoped_lock lock(mutex_);
  counts_.moved.in += bytes.in;
  counts_.moved.out += bytes.out;
}

bool RequestCounters::take_body(std::uint64_t bytes, std::uint64_t most) {
  const std::scoped_lock lock(mutex_);
  if (bytes > most || counts_.body_bytes > most - bytes) {
    return false;
  }
  counts_.body_bytes += bytes;
  return true;
}

void RequestCounters::give_body(std::uint64_t bytes) {
  const std::scoped_lock lock(mutex_);
  counts_.body_bytes -= bytes;
}

RequestCounters::Counts RequestCounters::counts() const {
  const std::scoped_lock lock(mutex_);
  return counts_;
}

namespace {

/// Values of labels: names of models are what the command line says.
std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '\\' || c == '"') {
      result += '\\';
    }
    result += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return result;
}

class MetricsText {
 public:
  void family(const char* name, const char* type, const char* help) {
    name_ = std::string("torch_offload_") + name;
    text_ += "# HELP " + name_ + " " + help + "\n# TYPE " + name_ + " " + type + "\n";
  }
  void value(double value, const std::string& label = "", const std::string& of = "") {
    char digits[32];
    const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), value);
    text_ += name_ + (label.empty() ? "" : "{" + label + "=\"" + escaped(of) + "\"}") + " " + std::string(digits, end) +
             "\n";
  }
  void single(const char* name, const char* type, const char* help, double of) {
    family(name, type, help);
    value(of);
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
  std::string name_;
};

/// A figure of each model.
struct ModelMetric {
  const char* name;
  const char* type;
  const char* help;
  double (*of)(const Stats& stats);
};

constexpr double kSecond = 1e6; // in microseconds

const ModelMetric kModelMetrics[] = {
    {"calls_total", "counter", "Calls that returned, example calls among them.",
     [](const Stats& s) { return static_cast<double>(s.calls); }},
    {"calls_repeated_total", "counter", "Times that a call was stopped for want of memory.",
     [](const Stats& s) { return static_cast<double>(s.calls_repeated); }},
    {"streamed_bytes_total", "counter", "Bytes of weights over the link.",
     [](const Stats& s) { return static_cast<double>(s.bytes_streamed); }},
    {"in_place_bytes_total", "counter", "Bytes of rows that were looked up in host memory.",
     [](const Stats& s) { return static_cast<double>(s.bytes_in_place); }},
    {"copies_total", "counter", "Copies that the link was asked for.",
     [](const Stats& s) { return static_cast<double>(s.copies); }},
    {"passes_total", "counter", "Passes over streamed weights.",
     [](const Stats& s) { return static_cast<double>(s.passes); }},
    {"calls_in_passes_total", "counter", "Calls begun that were to read streamed weights.",
     [](const Stats& s) { return static_cast<double>(s.calls_in_passes); }},
    {"misses_total", "counter", "Weights that were wanted before they were under way.",
     [](const Stats& s) { return static_cast<double>(s.misses); }},
    {"call_seconds_total", "counter", "Seconds that calls took.", [](const Stats& s) { return s.call_us / kSecond; }},
    {"stall_seconds_total", "counter", "Seconds that compute waited for copies.",
     [](const Stats& s) { return s.stall_us / kSecond; }},
    {"wait_turn_seconds_total", "counter", "Seconds that calls waited for a lane and memory.",
     [](const Stats& s) { return s.wait_turn_us / kSecond; }},
    {"wait_door_seconds_total", "counter", "Seconds that calls waited for the passes before theirs.",
     [](const Stats& s) { return s.wait_door_us / kSecond; }},
    {"wait_calls_seconds_total", "counter", "Seconds that calls waited for other calls of their pass.",
     [](const Stats& s) { return s.wait_calls_us / kSecond; }},
    {"resident_bytes", "gauge", "Bytes of weights and buffers on the device now.",
     [](const Stats& s) { return static_cast<double>(s.bytes_resident); }},
};

} // namespace

std::string metrics_of(const Pool& pool, const std::map<std::string, std::unique_ptr<ServedModel>>& models,
                       const RequestCounters::Counts& requests, const CallThreads& calls) {
  MetricsText text;
  std::map<std::string, Stats> stats;
  std::map<std::string, CallTimes> times;
  for (const auto& [name, model] : models) {
    stats[name] = model->module().stats();
    times[name] = model->times();
  }
  for (const ModelMetric& metric : kModelMetrics) {
    text.family(metric.name, metric.type, metric.help);
    for (const auto& [name, of] : stats) {
      text.value(metric.of(of), "model", name);
    }
  }
  text.family("link_share", "gauge", "Share of the time since the last plan in which a model used the link.");
  for (const auto& [name, model] : models) {
    text.value(model->module().report().link_share, "model", name);
  }
  const auto tally = [&](const char* name, const char* help, const std::function<double(const CallTimes&)>& of) {
    text.family(name, "counter", help);
    for (const auto& [model, known] : times) {
      text.value(of(known), "model", model);
    }
  };
  const auto seconds = [](const Tally& of) { return std::chrono::duration<double>(of.time).count(); };
  tally("infer_succeeded_total", "Requests that were answered with outputs.",
        [](const CallTimes& of) { return static_cast<double>(of.succeeded.count); });
  tally("infer_failed_total", "Requests that reached a model and were answered with an error.",
        [](const CallTimes& of) { return static_cast<double>(of.failed.count); });
  tally("infer_seconds_total", "Seconds of requests that succeeded: in the queue, and in the call.",
        [&](const CallTimes& of) { return seconds(of.succeeded); });
  tally("infer_queue_seconds_total", "Seconds of them in the queue.",
        [&](const CallTimes& of) { return seconds(of.waited); });
  const Stats all = pool.stats();
  text.single("pool_budget_bytes", "gauge", "The budget of all models.", static_cast<double>(pool.vram_budget()));
  text.single("pool_peak_bytes", "gauge", "Most that has counted against it.",
              static_cast<double>(all.peak_device_bytes));
  text.single("pool_streamed_bytes_total", "counter", "Bytes of weights over the link, of all models.",
              static_cast<double>(all.bytes_streamed));
  text.family("http_requests_total", "counter", "Requests by the status of their answer.");
  for (const auto& [status, count] : requests.requests) {
    text.value(static_cast<double>(count), "code", std::to_string(status));
  }
  text.single("http_received_bytes_total", "counter", "Bytes that clients sent.",
              static_cast<double>(requests.moved.in));
  text.single("http_sent_bytes_total", "counter", "Bytes that clients were sent.",
              static_cast<double>(requests.moved.out));
  text.single("http_connections", "gauge", "Connections that are open.", static_cast<double>(requests.connections));
  text.single("http_connections_refused_total", "counter", "Connections beyond the most that are taken.",
              static_cast<double>(requests.connections_refused));
  text.single("http_body_bytes", "gauge", "Bytes of bodies of requests under way.",
              static_cast<double>(requests.body_bytes));
  text.single("queue_calls", "gauge", "Calls that wait for a thread.", static_cast<double>(calls.waiting()));
  text.single("calls_at_work", "gauge", "Calls that are being made.", static_cast<double>(calls.at_work()));
  return text.take();
}

} // namespace offload::tools
