#include <python/progress.h>

#include <python/errors.h>
#include <unistd.h>

#include <atomic>

namespace offload::python {

namespace py = pybind11;

namespace {

// Python ends a thread that asks for its lock when it is being finalized, in the middle of whatever C++ it is in. So
// before that, nobody enters any more, and those who have are waited for.
std::atomic<bool> is_over = false;
std::atomic<int> inside = 0;
const pid_t kProcess = getpid(); // a child of fork() has none of those who are inside

class Entry {
 public:
  Entry() {
    ++inside;
    may_enter_ = !is_over;
  }
  ~Entry() {
    --inside;
    inside.notify_all();
  }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

  bool may_enter() const { return may_enter_; }

 private:
  bool may_enter_ = false;
};

/// Where Python looks at signals.
bool is_main_thread() { return gettid() == getpid(); }

} // namespace

Progress::Progress(const py::object& function)
    : function_(new py::object(function), [](const py::object* last) {
        const Entry entry;
        if (entry.may_enter()) { // else it is left
          const py::gil_scoped_acquire lock;
          delete last;
        }
      }) {}

void Progress::operator()(std::uint64_t done, std::uint64_t total) const {
  if (function_->is_none() && !is_main_thread()) {
    return;
  }
  const Entry entry;
  if (!entry.may_enter()) {
    return;
  }
  const py::gil_scoped_acquire lock;
  try {
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
    if (!function_->is_none()) {
      (*function_)(done, total);
    }
  } catch (py::error_already_set& error) {
    throw RaisedError(std::move(error));
  }
}

void end_progress() {
  is_over = true;
  const py::gil_scoped_release unlocked; // for those who are inside
  for (int count = inside; count != 0 && getpid() == kProcess; count = inside) {
    inside.wait(count);
  }
}

} // namespace offload::python
