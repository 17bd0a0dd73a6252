#pragma once

// What a server tells Prometheus.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include <offload/pool.h>
#include <tools/serve_calls.h>
#include <tools/serve_connection.h>
#include <tools/serve_model.h>

namespace offload::tools {

/// What is counted of requests. Any thread may call any member at any time.
class RequestCounters {
 public:
  struct Counts {
    std::map<int, std::uint64_t> requests; ///< by status
    Moved moved;
    std::uint64_t connections = 0; ///< that are open
    std::uint64_t connections_refused = 0;
    std::uint64_t body_bytes = 0; ///< of requests under way
  };

  void answered(int status);
  void opened();
  void refused_connection();
  void closed();
  void moved(const Moved& bytes);

  /// Counts the bytes of a body until they are given back. False, and nothing is counted, where they would be more than
  /// `most` together.
  bool take_body(std::uint64_t bytes, std::uint64_t most);
  void give_body(std::uint64_t bytes);

  Counts counts() const;

 private:
  mutable std::mutex mutex_;
  Counts counts_;
};

/// In the text format of Prometheus.
std::string metrics_of(const Pool& pool, const std::map<std::string, std::unique_ptr<ServedModel>>& models,
                       const RequestCounters::Counts& requests, const CallThreads& calls);

} // namespace offload::tools
