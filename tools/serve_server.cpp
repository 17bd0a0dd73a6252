#include <tools/serve_server.h>

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include <offload/core/printable.h>
#include <offload/version.h>
#include <tools/serve_threads.h>

namespace offload::tools {

namespace {

using nlohmann::json;

constexpr const char* kJson = "application/json";
constexpr const char* kLength = "Inference-Header-Content-Length";
constexpr std::uint64_t kJsonGrows = 32; // "1," are two bytes of JSON, and sixteen while it is read; strings grow most
constexpr int kGone = 499;               // nobody reads it: the client has gone

/// Of the request that the calling thread is at.
thread_local Connection* current_connection = nullptr;

std::vector<std::string> split_path(const std::string& path) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at + 1), path.size());
    parts.push_back(path.substr(at + 1, end - at - 1));
    at = end;
  }
  return parts;
}

void refuse(httplib::Response& response, int status, std::string_view what) {
  response.status = status;
  response.set_content(error_body(what), kJson);
  if (status == 503) {
    response.set_header("Retry-After", "1");
  }
  if (current_connection && current_connection->problem()) {
    response.set_header("Connection", "close");
  }
}

/// Runs `answer`: what it throws becomes an answer.
template <typename Answer>
void guard(httplib::Response& response, Answer answer) {
  try {
    answer();
  } catch (const RequestError& error) {
    refuse(response, error.status(), error.what());
  } catch (const std::bad_alloc&) {
    refuse(response, 503, "there is no memory for this request");
  } catch (const std::exception& error) {
    refuse(response, 500, error.what());
  }
}

[[noreturn]] void refuse_route(const httplib::Request& request) {
  throw RequestError(404, "there is nothing for " + request.method + " at " + printable(request.path) +
                              "; /v2 is where the protocol begins");
}

/// Bytes of a body that count until the request has been answered.
class BodyBytes {
 public:
  BodyBytes(RequestCounters& counters, std::uint64_t most) : counters_(counters), most_(most) {}
  ~BodyBytes() { counters_.give_body(bytes_); }
  BodyBytes(const BodyBytes&) = delete;
  BodyBytes& operator=(const BodyBytes&) = delete;

  /// Throws RequestError where there is no room for them.
  void take(std::uint64_t bytes) {
    if (bytes > most_ - bytes_) {
      throw RequestError(413, "the request, with the numbers that its JSON holds, takes more than the " +
                                  std::to_string(most_) + " bytes that there are for all bodies (--bodies)");
    }
    if (!counters_.take_body(bytes, most_)) {
      throw RequestError(503, "the requests under way take all of the " + std::to_string(most_) +
                                  " bytes that there are for bodies (--bodies): try again");
    }
    bytes_ += bytes;
  }

 private:
  RequestCounters& counters_;
  const std::uint64_t most_;
  std::uint64_t bytes_ = 0;
};

/// The body of a POST, inflated where it came compressed. Throws RequestError.
std::string read_body(const httplib::ContentReader& reader, const ConnectionLimits& limits, BodyBytes& taken) {
  const std::uint64_t announced = current_connection->body_bytes();
  taken.take(announced);
  std::string body;
  body.reserve(announced);
  std::optional<RequestError> problem;
  const bool read = reader([&](const char* bytes, std::size_t size) {
    if (body.size() + size > limits.body_bytes) {
      problem = RequestError(413, "the body, inflated, has more than the " + std::to_string(limits.body_bytes) +
                                      " bytes that are taken (--body)");
      return false;
    }
    if (body.size() + size > body.capacity()) { // inflated: it doubles, as strings do
      try {
        const std::size_t more = std::max(body.capacity(), body.size() + size - body.capacity());
        taken.take(more);
        body.reserve(body.capacity() + more);
      } catch (const RequestError& error) {
        problem = error;
        return false;
      }
    }
    body.append(bytes, size);
    return true;
  });
  if (problem) {
    throw RequestError(*problem);
  }
  if (!read) {
    throw RequestError(400, "the body ended early, came too slowly, or is not what Content-Encoding says; " +
                                std::to_string(announced) + " bytes were announced");
  }
  return body;
}

/// At most; where a client lies, its request is refused when it is read.
std::uint64_t json_bytes_of(const httplib::Request& request, const std::string& body) {
  if (!request.has_header(kLength)) {
    return body.size();
  }
  const std::string text = request.get_header_value(kLength);
  std::uint64_t bytes = 0;
  std::from_chars(text.data(), text.data() + text.size(), bytes);
  return std::min<std::uint64_t>(bytes, body.size());
}

void refuse_connection(socket_t socket) {
  const std::string body = error_body("the server has as many connections as it takes (--connections): try again");
  const std::string text =
      "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: " + std::string(kJson) +
      "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  send(socket, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  shutdown(socket, SHUT_RDWR);
  close(socket);
}

} // namespace

InferenceServer::InferenceServer(const ServeOptions& options, std::shared_ptr<Pool> pool, ServedModels models)
    : options_(options),
      pool_(std::move(pool)),
      models_(std::move(models)),
      stopped_(eventfd(0, EFD_CLOEXEC)),
      calls_(options.calls, options.queue, pool_->device()) {
  new_task_queue = [this] { return new ConnectionThreads(options_.connections); };
  set_socket_options([](socket_t socket) { // unlike its default, which lets two servers share a port
    const int on = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  });
  set_keep_alive_timeout(options_.connection.idle.count());
  set_handlers();
  errno = 0;
  port_ = options_.port == 0                           ? bind_to_any_port(options_.bind)
          : bind_to_port(options_.bind, options_.port) ? options_.port
                                                       : -1;
  if (port_ < 0) {
    throw InputError("port " + std::to_string(options_.port) + " of '" + options_.bind + "' can not be had" +
                     (errno != 0 ? std::string(": ") + std::strerror(errno) : "") +
                     "; give another --port (0 takes any free one), and for --bind an address of this machine");
  }
  ::listen(svr_sock_,
           static_cast<int>(options_.connections)); // httplib's own is 5: more at once would wait for a second
}

InferenceServer::~InferenceServer() { close(stopped_); }

void InferenceServer::run() {
  listen_after_bind();
  is_over_ = true;
}

void InferenceServer::stop() {
  stopping_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(stopped_, &one, sizeof(one));
  while (!is_running() && !is_over_) { // httplib would not notice before
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Server::stop();
}

bool InferenceServer::process_and_close_socket(socket_t socket) {
  if (!ConnectionThreads::is_one()) {
    counters_.refused_connection();
    refuse_connection(socket);
    return false;
  }
  counters_.opened();
  Connection connection(socket, stopped_, options_.connection);
  current_connection = &connection;
  bool closed = false;
  while (!closed && !stopping_ && connection.wait_for_request()) {
    const bool answered = process_request(connection, /*close_connection=*/false, closed,
                                          [&](httplib::Request& request) { connection.take_head(request); });
    closed = !connection.finish() || !answered || closed;
    counters_.moved(connection.take_moved());
  }
  current_connection = nullptr;
  counters_.closed();
  return true;
}

void InferenceServer::set_handlers() {
  set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    if (request.method == "POST" && !current_connection->problem()) {
      return HandlerResponse::Unhandled; // only a route can read a body
    }
    guard(response, [&] { answer_get(request, response); });
    return HandlerResponse::Handled;
  });
  Post(".*",
       [this](const httplib::Request& request, httplib::Response& response, const httplib::ContentReader& reader) {
         guard(response, [&] { answer_post(request, response, reader); });
       });
  set_error_handler(HandlerWithResponse([](const httplib::Request&, httplib::Response& response) {
    if (!response.body.empty()) {
      return HandlerResponse::Unhandled;
    }
    refuse(response, response.status, // what httplib refuses by itself
           response.status == 414   ? "the request's first line is too long"
           : response.status == 416 ? "Range is not understood"
           : response.status == 500 ? "there are too many connections"
                                    : "the head of the request is no HTTP/1.1, or has more than 64 KiB");
    response.set_header("Connection", "close");
    return HandlerResponse::Handled;
  }));
  set_logger(
      [this](const httplib::Request&, const httplib::Response& response) { counters_.answered(response.status); });
}

void InferenceServer::answer_get(const httplib::Request& request, httplib::Response& response) {
  if (const auto& problem = current_connection->problem()) {
    throw RequestError(*problem);
  }
  if (request.method != "GET" && request.method != "HEAD") {
    throw RequestError(405, request.method + " is not taken: GET and POST are");
  }
  if (request.path == "/metrics") {
    response.set_content(metrics_of(*pool_, models_, counters_.counts(), calls_), "text/plain; version=0.0.4");
    return;
  }
  const Path path = split_path(request.path);
  if (path.empty() || path[0] != "v2") {
    refuse_route(request);
  }
  const json answer = answer_for(path, response);
  if (answer.is_discarded()) {
    refuse_route(request);
  }
  response.set_content(dump(answer), kJson);
}

ServedModel& InferenceServer::model_of(const Path& path) const {
  const auto found = models_.find(path[2]);
  if (found == models_.end()) {
    std::string names;
    for (const auto& [name, model] : models_) {
      names += (names.empty() ? "" : ", ") + name;
    }
    throw RequestError(404, "there is no model '" + printable(path[2]) + "'; there are " + names);
  }
  if (path.size() > 4 && path[3] == "versions" && path[4] != "1") {
    throw RequestError(404, "model '" + path[2] + "' has no version '" + printable(path[4]) + "': 1 is the only one");
  }
  return *found->second;
}

/// Discarded where there is nothing at this path.
json InferenceServer::answer_for(const Path& path, httplib::Response& response) {
  json nothing(json::value_t::discarded);
  if (path.size() == 1) {
    return {{"name", "torch-offload"},
            {"version", version()},
            {"extensions", {"binary_tensor_data", "model_configuration", "model_repository", "statistics"}}};
  }
  if (path[1] == "health" && path.size() == 3 && (path[2] == "live" || path[2] == "ready")) {
    const bool yes = path[2] == "live" || !stopping_;
    response.status = yes ? 200 : 503;
    return {{path[2], yes}};
  }
  if (path[1] != "models" || path.size() < 3) {
    return nothing;
  }
  if (path[2] == "stats" && path.size() == 3 && !models_.contains("stats")) {
    json all = json::array();
    for (const auto& [name, model] : models_) {
      all.push_back(model->statistics());
    }
    return {{"model_stats", std::move(all)}};
  }
  const ServedModel& model = model_of(path);
  const std::size_t at = path.size() > 3 && path[3] == "versions" ? 5 : 3;
  const std::string what = path.size() == at ? "" : path.size() == at + 1 ? path[at] : "?";
  if (what.empty()) {
    return model.metadata();
  }
  if (what == "ready") {
    response.status = stopping_ ? 503 : 200;
    return {{"name", model.name()}, {"ready", !stopping_}};
  }
  return what == "config"  ? model.config()
         : what == "stats" ? json{{"model_stats", json::array({model.statistics()})}}
                           : nothing;
}

json InferenceServer::index() const {
  json list = json::array();
  for (const auto& [name, model] : models_) {
    list.push_back({{"name", name}, {"version", "1"}, {"state", "READY"}, {"reason", ""}});
  }
  return list;
}

void InferenceServer::answer_post(const httplib::Request& request, httplib::Response& response,
                                  const httplib::ContentReader& reader) {
  BodyBytes taken(counters_, options_.bodies_bytes);
  const std::string body = read_body(reader, options_.connection, taken);
  const Path path = split_path(request.path);
  if (path == Path{"v2", "repository", "index"}) {
    response.set_content(dump(index()), kJson);
    return;
  }
  if (path.size() == 5 && path[0] == "v2" && path[1] == "repository") {
    throw RequestError(400, "models are those of the command line: none is loaded or unloaded by a request");
  }
  const bool with_version = path.size() == 6 && path[3] == "versions";
  if ((path.size() != 4 && !with_version) || path[0] != "v2" || path[1] != "models" || path.back() != "infer") {
    refuse_route(request);
  }
  ServedModel& model = model_of(path);
  taken.take(kJsonGrows * json_bytes_of(request, body));
  infer(model, request, body, response);
}

void InferenceServer::infer(ServedModel& model, const httplib::Request& request, const std::string& body,
                            httplib::Response& response) {
  const InferRequest wanted = parse_infer_request(
      body, request.has_header(kLength) ? std::optional(request.get_header_value(kLength)) : std::nullopt);
  InferAnswer answer;
  const bool called = calls_.run([&, &connection = *current_connection](std::chrono::nanoseconds waited) {
    if (connection.is_gone()) {
      throw RequestError(kGone, "the client has gone");
    }
    answer = model.infer(wanted, waited);
  });
  if (!called) {
    throw RequestError(503, std::to_string(options_.queue) + " calls wait already (--queue): try again");
  }
  WireAnswer written = write_infer_answer(answer, wanted);
  if (written.json_bytes) {
    response.set_header(kLength, std::to_string(*written.json_bytes));
  }
  response.body = std::move(written.body); // set_content() would copy it
  response.set_header("Content-Type", written.json_bytes ? "application/octet-stream" : kJson);
}

} // namespace offload::tools
