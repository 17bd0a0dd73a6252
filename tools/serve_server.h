#pragma once

// The HTTP server around models of a pool: routes, limits, what goes to whom, and an end in order.

#include <httplib.h>
#include <nlohmann/json_fwd.hpp>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <offload/pool.h>
#include <tools/serve_calls.h>
#include <tools/serve_connection.h>
#include <tools/serve_metrics.h>
#include <tools/serve_model.h>

namespace offload::tools {

struct ServeOptions {
  std::string bind = "127.0.0.1";
  int port = 8000;
  int calls = 8;           ///< at the same time
  std::size_t queue = 256; ///< calls that may wait besides
  std::size_t connections = 256;
  std::uint64_t bodies_bytes = std::uint64_t{1} << 30; ///< of all requests at the same time
  ConnectionLimits connection;
};

using ServedModels = std::map<std::string, std::unique_ptr<ServedModel>>;

/// Each connection has a thread of its own, which reads, writes, and waits while one of the threads that call models
/// makes its call. stop() may come from any thread; everything else belongs to the one that made it.
class InferenceServer : private httplib::Server {
 public:
  /// Takes the port. Throws InputError when it can not be had.
  InferenceServer(const ServeOptions& options, std::shared_ptr<Pool> pool, ServedModels models);
  ~InferenceServer() override;

  int port() const { return port_; }

  /// Serves until stop(), and returns when all that was under way has been answered.
  void run();

  /// No request begins any more.
  void stop();

 private:
  using Path = std::vector<std::string>;

  bool process_and_close_socket(socket_t socket) override;
  void set_handlers();
  void answer_get(const httplib::Request& request, httplib::Response& response);
  void answer_post(const httplib::Request& request, httplib::Response& response, const httplib::ContentReader& reader);
  nlohmann::json answer_for(const Path& path, httplib::Response& response);
  void infer(ServedModel& model, const httplib::Request& request, const std::string& body, httplib::Response& response);
  nlohmann::json index() const;
  ServedModel& model_of(const Path& path) const;

  const ServeOptions options_;
  const std::shared_ptr<Pool> pool_;
  const ServedModels models_;
  const int stopped_; // an eventfd
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> is_over_{false};
  RequestCounters counters_;
  CallThreads calls_;
};

} // namespace offload::tools
