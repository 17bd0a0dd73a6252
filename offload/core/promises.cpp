#include <offload/core/promises.h>

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include <offload/bytes.h>
#include <offload/core/mutex.h>
#include <offload/core/words.h>

namespace offload {

namespace {

struct Account {
  Mutex mutex;
  std::map<int, std::uint64_t> promised OFFLOAD_GUARDED_BY(mutex);                      // by place
  std::map<std::pair<int, const void*>, std::uint64_t> taken OFFLOAD_GUARDED_BY(mutex); // bytes, by place and address

  static Account& get() {
    static auto* account = new Account; // modules may end after whatever else is static
    return *account;
  }
};

/// A child of fork() has no modules yet, and finds the account open.
[[maybe_unused]] const int kPromisesRegistered = pthread_atfork(
    []() OFFLOAD_UNCHECKED { Account::get().mutex.lock(); }, []() OFFLOAD_UNCHECKED { Account::get().mutex.unlock(); },
    []() OFFLOAD_UNCHECKED {
      Account& account = Account::get();
      account.promised.clear();
      account.taken.clear();
      account.mutex.unlock();
    });

/// Of memory that has been mapped, what the system has given.
std::uint64_t resident_bytes(const void* data, std::uint64_t bytes) {
  constexpr std::uint64_t kPart = 256_MiB;
  std::int64_t pages = 0;
  std::vector<unsigned char> there;
  for (std::uint64_t done = 0; done < bytes; done += kPart) {
    const std::uint64_t part = std::min(kPart, bytes - done);
    there.assign(align_up(part, kPageBytes) / kPageBytes, 0);
    if (mincore(static_cast<std::byte*>(const_cast<void*>(data)) + done, part, there.data()) == 0) {
      pages += std::count_if(there.begin(), there.end(), [](auto page) { return page & 1; });
    }
  }
  return static_cast<std::uint64_t>(pages) * kPageBytes;
}

std::uint64_t outstanding_of(const Account& account, int place) OFFLOAD_REQUIRES(account.mutex) {
  const auto promised = account.promised.find(place);
  std::uint64_t left = promised == account.promised.end() ? 0 : promised->second;
  for (const auto& [key, bytes] : account.taken) {
    if (key.first == place && left > 0) {
      left -= std::min(left, place == kHost ? resident_bytes(key.second, bytes) : bytes);
    }
  }
  return left;
}

} // namespace

void Promise::set(std::uint64_t bytes) {
  Account& account = Account::get();
  const Lock lock(account.mutex);
  account.promised[place_] += bytes - bytes_;
  bytes_ = bytes;
}

void Promise::raise_to(std::uint64_t bytes) {
  Account& account = Account::get();
  const Lock lock(account.mutex);
  account.promised[place_] += std::max(bytes, bytes_) - bytes_;
  bytes_ = std::max(bytes, bytes_);
}

void Promise::set_by(const std::function<std::uint64_t(std::uint64_t)>& decide) {
  Account& account = Account::get();
  const Lock lock(account.mutex);
  account.promised[place_] -= std::exchange(bytes_, 0);
  bytes_ = decide(outstanding_of(account, place_));
  account.promised[place_] += bytes_;
}

std::uint64_t Promise::outstanding(int place) {
  Account& account = Account::get();
  const Lock lock(account.mutex);
  return outstanding_of(account, place);
}

std::uint64_t taken_bytes(int place) {
  Account& account = Account::get();
  const Lock lock(account.mutex);
  std::uint64_t total = 0;
  for (const auto& [key, bytes] : account.taken) {
    total += key.first == place ? bytes : 0;
  }
  return total;
}

void record_taken(int place, const void* data, std::uint64_t bytes) {
  Account& account = Account::get();
  const Lock lock(account.mutex);
  account.taken[{place, data}] = bytes;
}

void record_given_back(int place, const void* data) noexcept {
  Account& account = Account::get();
  const Lock lock(account.mutex);
  account.taken.erase({place, data});
}

} // namespace offload
