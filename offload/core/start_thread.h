#pragma once

#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include <offload/error.h>

namespace offload {

/// A thread that does `work`. Throws Error, saying what it was for, when the system refuses one.
template <class Thread = std::thread, class Work>
Thread start_thread(const char* purpose, Work work) {
  try {
    return Thread(std::move(work));
  } catch (const std::system_error& error) {
    throw Error(std::string("the system gives no thread for ") + purpose + ": " + error.code().message() +
                "; it has no memory for one, or the limit of threads is reached (ulimit -v, ulimit -u, pids.max)");
  }
}

} // namespace offload
