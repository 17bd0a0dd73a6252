#include <offload/io/file_lease.h>

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <csignal>
#include <ctime>
#include <fstream>
#include <future>
#include <string>
#include <utility>

#include <offload/core/start_thread.h>
#include <offload/error.h>

namespace offload {

namespace {

/// The default is to ignore it, so that it does no harm wherever it should end up.
constexpr int kSignal = SIGURG;

/// Local file systems, which nobody writes but through the inode that the lease is on. (Not overlays: theirs is another
/// than that of the pages.)
bool binds_everybody(int descriptor) {
  constexpr long kXfs = 0x58465342; // not in linux/magic.h of every distribution
  struct statfs status{};
  if (fstatfs(descriptor, &status) != 0) {
    return false;
  }
  const auto type = static_cast<long>(status.f_type);
  return type == EXT4_SUPER_MAGIC || type == kXfs || type == BTRFS_SUPER_MAGIC || type == F2FS_SUPER_MAGIC ||
         type == TMPFS_MAGIC;
}

} // namespace

std::unique_ptr<FileLease> FileLease::take(const File& file, std::function<void()> wanted) {
  // Of its own, so that the lease ends with it; by the file's, since the name may be another's by now.
  const std::string path = "/proc/self/fd/" + std::to_string(file.descriptor());
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return nullptr;
  }
  std::unique_ptr<FileLease> lease(new FileLease(descriptor, std::move(wanted)));
  if (!binds_everybody(descriptor)) {
    return nullptr;
  }
  std::promise<bool> granted;
  try {
    lease->thread_ = start_thread("a lease on a file", [self = lease.get(), &granted] {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, nullptr);
      const bool is_granted = self->request();
      granted.set_value(is_granted);
      if (is_granted) {
        self->watch();
      }
    });
    if (!granted.get_future().get()) {
      return nullptr;
    }
    file.check_unchanged(); // from here on it stays so
  } catch (const Error&) {
    return nullptr;
  }
  return lease;
}

std::optional<int> FileLease::break_seconds() {
  int seconds = 0;
  return std::ifstream("/proc/sys/fs/lease-break-time") >> seconds ? std::optional(seconds) : std::nullopt;
}

FileLease::FileLease(int descriptor, std::function<void()> wanted)
    : descriptor_(descriptor), wanted_(std::move(wanted)) {}

FileLease::~FileLease() {
  if (thread_.joinable()) {
    stopping_ = true;
    pthread_kill(thread_.native_handle(), kSignal);
    thread_.join();
  }
  fcntl(descriptor_, F_SETLEASE, F_UNLCK); // closing is not enough where a child of the process has it open, too
  close(descriptor_);
}

bool FileLease::request() const {
  const f_owner_ex owner{F_OWNER_TID, gettid()};
  return fcntl(descriptor_, F_SETOWN_EX, &owner) == 0 && fcntl(descriptor_, F_SETSIG, kSignal) == 0 &&
         fcntl(descriptor_, F_SETLEASE, F_RDLCK) == 0;
}

void FileLease::watch() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, kSignal);
  const timespec look_again{1, 0}; // where too many signals are queued, none comes
  while (!stopping_) {
    // While somebody waits, what the lease is to become is what it is said to be.
    if (fcntl(descriptor_, F_GETLEASE) != F_RDLCK) {
      wanted_();
      fcntl(descriptor_, F_SETLEASE, F_UNLCK);
      return;
    }
    sigtimedwait(&signals, nullptr, &look_again);
  }
}

} // namespace offload
