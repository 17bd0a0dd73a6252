#include <tools/serve_connection.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace offload::tools {

namespace {

constexpr std::size_t kBuffer = 64 << 10;
constexpr std::uint64_t kMostHead = 64 << 10;
constexpr std::uint64_t kMostPath = 1024;

bool needs_body(const httplib::Request& request) { return request.method != "GET" && request.method != "HEAD"; }

} // namespace

Connection::Connection(int socket, int stopped, const ConnectionLimits& limits)
    : socket_(socket), stopped_(stopped), limits_(limits), received_{std::vector<char>(kBuffer)} {
  const int on = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

Connection::~Connection() {
  if (is_over_ || has_more()) {
    linger();
  }
  close(socket_);
}

bool Connection::wait_for_request() {
  body_ = {};
  problem_.reset();
  if (received_.at == received_.end) {
    std::array<pollfd, 2> events = {{{socket_, POLLIN, 0}, {stopped_, POLLIN, 0}}};
    const auto most = std::chrono::duration_cast<std::chrono::milliseconds>(limits_.idle).count();
    const Clock::time_point end = Clock::now() + limits_.idle;
    int ready = 0;
    do {
      ready = poll(events.data(), events.size(), static_cast<int>(most));
    } while (ready < 0 && errno == EINTR && Clock::now() < end);
    if (ready <= 0 || events[1].revents != 0) {
      return false;
    }
  }
  head_left_ = kMostHead;
  deadline_ = Clock::now() + limits_.patience;
  return true;
}

void Connection::expect(std::uint64_t bytes) {
  deadline_ = Clock::now() + limits_.patience + std::chrono::milliseconds(bytes * 1000 / limits_.slowest);
}

void Connection::take_head(httplib::Request& request) {
  head_left_.reset();
  request.ranges.clear();
  request.headers.erase("Accept-Encoding");
  set_body(request);
  is_over_ = problem_.has_value();
  expect(body_.bytes);
}

void Connection::set_body(const httplib::Request& request) {
  const std::size_t lengths = request.get_header_value_count("Content-Length");
  if (request.path.size() > kMostPath) {
    problem_ = RequestError(414, "the path has more than " + std::to_string(kMostPath) + " bytes");
  } else if (request.has_header("Transfer-Encoding") || (lengths == 0 && needs_body(request))) {
    problem_ = RequestError(411, "Content-Length is missing: bodies of unknown length are not taken");
  } else if (request.is_multipart_form_data()) {
    problem_ = RequestError(415, "Content-Type multipart/form-data is not taken: send JSON, or JSON and tensors");
  } else if (lengths > 0) {
    const std::string text = request.get_header_value("Content-Length");
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), body_.bytes);
    if (lengths > 1 || error != std::errc() || end != text.data() + text.size()) {
      problem_ = RequestError(400, "Content-Length is not one number of bytes");
      body_.bytes = 0;
    } else if (body_.bytes > limits_.body_bytes) {
      problem_ = RequestError(413, "the body has " + text + " bytes, and at most " +
                                       std::to_string(limits_.body_bytes) + " are taken (--body)");
      body_.bytes = 0;
    } else if (body_.bytes > 0 && !needs_body(request)) {
      problem_ = RequestError(400, request.method + " has no body, and one of " + text + " bytes came");
    }
  }
  body_.left = body_.bytes;
}

bool Connection::is_gone() const {
  char next = 0;
  const ssize_t bytes = recv(socket_, &next, 1, MSG_PEEK | MSG_DONTWAIT);
  return bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

bool Connection::wait(short events) {
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now());
    if (left.count() <= 0) {
      return false;
    }
    pollfd ready{socket_, events, 0};
    // In short steps, since the end of the server moves the deadline.
    const int found = poll(&ready, 1, static_cast<int>(std::min<std::int64_t>(left.count() + 1, 250)));
    if (found > 0) {
      return true;
    }
    if (found < 0 && errno != EINTR) {
      return false;
    }
    pollfd stopped{stopped_, POLLIN, 0};
    if (poll(&stopped, 1, 0) > 0) {
      deadline_ = std::min(deadline_, Clock::now() + limits_.patience);
    }
  }
}

ssize_t Connection::read(char* to, size_t size) {
  if (!unsent_.empty() && !send({})) { // "100 Continue"
    return -1;
  }
  while (received_.at == received_.end) {
    const ssize_t bytes = recv(socket_, received_.bytes.data(), received_.bytes.size(), MSG_DONTWAIT);
    if (bytes > 0) {
      moved_.in += static_cast<std::uint64_t>(bytes);
      received_.at = 0;
      received_.end = static_cast<std::size_t>(bytes);
    } else if (bytes == 0) {
      is_over_ = true;
      return 0;
    } else if ((errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) || !wait(POLLIN)) {
      is_over_ = true;
      return -1;
    }
  }
  std::size_t taken = std::min(size, received_.end - received_.at);
  if (head_left_) {
    taken = std::min<std::size_t>(taken, *head_left_);
    *head_left_ -= taken;
  } else {
    body_.left -= std::min<std::uint64_t>(body_.left, taken);
  }
  if (taken == 0) { // a head without an end
    is_over_ = true;
    return -1;
  }
  std::memcpy(to, received_.bytes.data() + received_.at, taken);
  received_.at += taken;
  return static_cast<ssize_t>(taken);
}

ssize_t Connection::write(const char* from, size_t size) {
  constexpr std::size_t kSmall = 16 << 10; // heads of answers, which then go with the first of their body
  if (unsent_.empty() && size < kSmall) {
    unsent_.assign(from, size);
    return static_cast<ssize_t>(size);
  }
  return send({from, size}) ? static_cast<ssize_t>(size) : -1;
}

bool Connection::send(std::string_view bytes) {
  std::string head = std::move(unsent_);
  unsent_.clear();
  expect(head.size() + bytes.size());
  std::array<iovec, 2> parts = {{{head.data(), head.size()}, {const_cast<char*>(bytes.data()), bytes.size()}}};
  while (parts[0].iov_len + parts[1].iov_len > 0) {
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t sent = sendmsg(socket_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if ((errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) || !wait(POLLOUT)) {
        is_over_ = true;
        return false;
      }
      continue;
    }
    moved_.out += static_cast<std::uint64_t>(sent);
    auto left = static_cast<std::size_t>(sent);
    for (iovec& part : parts) {
      const std::size_t gone = std::min(left, part.iov_len);
      part.iov_base = static_cast<char*>(part.iov_base) + gone;
      part.iov_len -= gone;
      left -= gone;
    }
  }
  return true;
}

bool Connection::finish() {
  is_over_ = is_over_ || head_left_.has_value() || body_.left > 0; // what follows is no head
  return (unsent_.empty() || send({})) && !is_over_;
}

bool Connection::has_more() const {
  char next = 0;
  return received_.at < received_.end || recv(socket_, &next, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/// A client that still sends would lose the answer if the connection was closed at once.
void Connection::linger() {
  shutdown(socket_, SHUT_WR);
  deadline_ = Clock::now() + std::min<std::chrono::seconds>(limits_.patience, std::chrono::seconds(2));
  while (wait(POLLIN)) {
    const ssize_t bytes = recv(socket_, received_.bytes.data(), received_.bytes.size(), MSG_DONTWAIT);
    if (bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
      return;
    }
  }
}

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  ip.clear(); // nobody asks
  port = 0;
}

void Connection::get_local_ip_and_port(std::string& ip, int& port) const { get_remote_ip_and_port(ip, port); }

} // namespace offload::tools
