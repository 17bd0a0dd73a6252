#pragma once

// A connection of a client, as httplib reads and writes it, with the limits that httplib has none for: how long a head
// may be, how long a client may take, how many bytes of a body there are and whether all of them have been read.

#include <httplib.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <tools/serve_protocol.h>

namespace offload::tools {

struct ConnectionLimits {
  std::uint64_t body_bytes = 64 << 20;
  std::chrono::seconds patience{10}; ///< for a head, and for a body or an answer beside what its bytes take
  std::uint64_t slowest = 64 << 10;  ///< bytes a second that a client sends or takes at least, after that
  std::chrono::seconds idle{60};     ///< between requests
};

/// Bytes that clients have sent, and have been sent.
struct Moved {
  std::uint64_t in = 0;
  std::uint64_t out = 0;
};

/// Owns its socket, and belongs to one thread. `stopped` becomes readable when the server stops: then no request begins
/// any more, and those under way have `patience` to end.
class Connection : public httplib::Stream {
 public:
  Connection(int socket, int stopped, const ConnectionLimits& limits);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// True when a request begins; false when none will.
  bool wait_for_request();

  /// Called with the head of a request, before its body is read. What httplib would do on its own is taken from the
  /// request: parts of answers (Range), and their compression.
  void take_head(httplib::Request& request);

  /// What is wrong with that head, if anything. Such a request is the last one of the connection.
  const std::optional<RequestError>& problem() const { return problem_; }
  std::uint64_t body_bytes() const { return body_.bytes; }

  /// Whether the client has gone, or will not read on. Any thread may ask while a request is under way.
  bool is_gone() const;

  /// Sends what is left of an answer. True when the next request can follow.
  bool finish();

  /// Since it was asked last.
  Moved take_moved() { return std::exchange(moved_, {}); }

  // What httplib calls. Less than 0 where the client is too slow, or has gone.
  bool is_readable() const override { return true; }
  bool is_writable() const override { return true; }
  ssize_t read(char* to, size_t size) override;
  ssize_t write(const char* from, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

 private:
  using Clock = std::chrono::steady_clock;

  /// What has come and has not been read, from `at` to `end`.
  struct Received {
    std::vector<char> bytes;
    std::size_t at = 0;
    std::size_t end = 0;
  };
  struct Body {
    std::uint64_t bytes = 0;
    std::uint64_t left = 0; // to be read
  };

  /// Waits until the socket is ready for `events` of poll(). False when that comes too late.
  bool wait(short events);
  bool send(std::string_view bytes);
  void expect(std::uint64_t bytes);
  void set_body(const httplib::Request& request);
  bool has_more() const;
  void linger();

  const int socket_;
  const int stopped_;
  const ConnectionLimits limits_;
  Clock::time_point deadline_;
  Received received_;
  std::string unsent_; // an answer's head, which goes with its body
  std::optional<std::uint64_t> head_left_;
  Body body_;
  std::optional<RequestError> problem_;
  Moved moved_;
  bool is_over_ = false;
};

} // namespace offload::tools
