// Where measured profiles are kept. Linked twice: for the host, and for the first GPU.

#include <gtest/gtest.h>
#include <offload/measure.h>
#include <offload/version.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "modules.h"

namespace offload::test {
namespace {

namespace fs = std::filesystem;

class CacheOfProfiles : public testing::Test {
 protected:
  CacheOfProfiles() {
    fs::create_directories(home_);
    set("HOME", home_.c_str());
    set("XDG_CACHE_HOME", nullptr);
  }
  ~CacheOfProfiles() override {
    for (const auto& [name, value] : before_) {
      set(name, value ? value->c_str() : nullptr);
    }
    const fs::recursive_directory_iterator all(home_); // libtorch has a remove_all() of its own, which crashes
    std::vector<fs::path> paths(begin(all), end(all));
    paths.insert(paths.begin(), home_);
    std::for_each(paths.rbegin(), paths.rend(), [](const fs::path& path) { fs::remove(path); });
  }

  static void set(const char* name, const char* value) { value ? setenv(name, value, 1) : unsetenv(name); }

  /// Puts a profile that no machine has in the place of the only one in `folder`.
  static void plant(const fs::path& folder) {
    MachineProfile planted = machine_profile(kDevice);
    planted.name = "planted";
    ASSERT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
    std::ofstream(fs::directory_iterator(folder)->path()) << to_json(planted);
  }

  static std::string read(const fs::path& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  static std::optional<std::string> value_of(const char* name) {
    const char* value = std::getenv(name);
    return value ? std::optional<std::string>(value) : std::nullopt;
  }

  // Tests of other kinds may run in this process later.
  const std::vector<std::pair<const char*, std::optional<std::string>>> before_ = {
      {"HOME", value_of("HOME")}, {"XDG_CACHE_HOME", value_of("XDG_CACHE_HOME")}};
  const fs::path home_ = fs::temp_directory_path() / ("offload-measure-test-" + std::to_string(getpid()));
};

TEST_F(CacheOfProfiles, IsKeptForThisUserAlone) {
  const fs::path folder = home_ / ".cache" / "torch-offload";
  const mode_t before = umask(0);
  EXPECT_NE(machine_profile(kDevice).name, "planted");
  umask(before);
  EXPECT_EQ(fs::status(folder).permissions(), fs::perms::owner_all);
  plant(folder);
  EXPECT_EQ(machine_profile(kDevice).name, "planted");
  set("XDG_CACHE_HOME", "relative");
  EXPECT_EQ(machine_profile(kDevice).name, "planted") << "a path that is not absolute is none";
  set("XDG_CACHE_HOME", (home_ / "other").c_str());
  EXPECT_NE(machine_profile(kDevice).name, "planted");
  EXPECT_TRUE(fs::exists(home_ / "other" / "torch-offload"));
}

/// A file of another version of the format, or one that was cut short, is as none.
TEST_F(CacheOfProfiles, WhatCanNotBeReadIsMeasuredAnew) {
  const fs::path folder = home_ / ".cache" / "torch-offload";
  machine_profile(kDevice);
  plant(folder);
  const fs::path file = fs::directory_iterator(folder)->path();
  const std::string planted = read(file);
  for (const std::string& text :
       {std::regex_replace(planted, std::regex("\"version\": 2"), "\"version\": 1"),
        std::regex_replace(planted, std::regex("\"version\": 2,"), ""), planted.substr(0, planted.size() / 2)}) {
    std::ofstream(file) << text;
    EXPECT_NE(machine_profile(kDevice).name, "planted") << text;
    EXPECT_NO_THROW(profile_from_json(read(file))) << "it is kept";
  }
}

/// Libraries decide how fast matrices are multiplied.
TEST_F(CacheOfProfiles, AreKeptByVersion) {
  machine_profile(kDevice);
  const std::string name = fs::directory_iterator(home_ / ".cache" / "torch-offload")->path().filename();
  EXPECT_NE(name.find("torch-2-"), std::string::npos) << name;
  EXPECT_NE(name.find("offload-" + std::regex_replace(std::string(version()), std::regex("\\."), "-")),
            std::string::npos)
      << name;
  EXPECT_EQ(name.find("driver") != std::string::npos, kDevice.is_cuda()) << name;
}

/// Another user could have put one there.
TEST_F(CacheOfProfiles, NoneIsTakenFromWhereOthersWrite) {
  const fs::path folder = home_ / ".cache" / "torch-offload";
  machine_profile(kDevice);
  plant(folder);
  const fs::path foreseeable = "/tmp/torch-offload";
  const bool was_there = fs::exists(foreseeable);
  fs::create_directories(foreseeable);
  const fs::path planted = foreseeable / fs::directory_iterator(folder)->path().filename();
  fs::copy_file(fs::directory_iterator(folder)->path(), planted, fs::copy_options::overwrite_existing);
  set("HOME", nullptr);
  EXPECT_NE(machine_profile(kDevice).name, "planted");
  fs::remove(planted);
  if (!was_there) {
    fs::remove(foreseeable);
  }
}

} // namespace
} // namespace offload::test
