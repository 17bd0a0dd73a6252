#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <offload/error.h>
#include <offload/profile.h>

namespace offload {
namespace {

MachineProfile profile() { return {"a machine", 24000, 10, 12000, 2000, 1e6, 1e6, 3e7, 1e8, 4.5, 24ULL << 30}; }

nlohmann::json json() { return nlohmann::json::parse(to_json(profile())); }

std::string refusal_of_profile(const std::string& text) {
  try {
    profile_from_json(text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

void expect_refused(const nlohmann::json& json, const std::string& key) {
  const std::string why = refusal_of_profile(json.dump());
  EXPECT_NE(why.find("'" + key + "'"), std::string::npos) << json.dump() << ": " << why;
}

TEST(Profile, ComesBackFromJsonAsItWas) {
  EXPECT_EQ(to_json(profile_from_json(to_json(profile()))), to_json(profile()));
}

TEST(Profile, NeedsNoName) {
  auto changed = json();
  changed.erase("name");
  EXPECT_EQ(profile_from_json(changed.dump()).name, "");
}

TEST(Profile, NamesAKeyThatIsMissing) {
  const auto whole = json();
  for (const auto& [key, value] : whole.items()) {
    if (key != "name") {
      auto changed = json();
      changed.erase(key);
      expect_refused(changed, key);
    }
  }
}

TEST(Profile, NamesAKeyThatIsNotKnown) {
  auto changed = json();
  changed["link_bytes_per_second"] = 1;
  expect_refused(changed, "link_bytes_per_second");
}

TEST(Profile, NamesAValueThatIsNotAPositiveNumber) {
  for (const auto& value : {nlohmann::json(0), nlohmann::json(-1), nlohmann::json("fast"), nlohmann::json(nullptr),
                            nlohmann::json(true), nlohmann::json(1e300), nlohmann::json::array({1})}) {
    auto changed = json();
    changed["fp32_flops_per_us"] = value;
    expect_refused(changed, "fp32_flops_per_us");
  }
}

TEST(Profile, OfAHostHasNoDeviceMemory) {
  MachineProfile host = profile();
  host.device_memory_bytes = 0;
  EXPECT_EQ(profile_from_json(to_json(host)).device_memory_bytes, 0U);
}

TEST(Profile, RefusesDeviceMemoryThatIsNoNumberOfBytes) {
  for (const auto& value : {nlohmann::json(-1), nlohmann::json(0.5), nlohmann::json("24GiB"), nlohmann::json(nullptr),
                            nlohmann::json(true)}) {
    auto changed = json();
    changed["device_memory_bytes"] = value;
    expect_refused(changed, "device_memory_bytes");
  }
}

TEST(Profile, OfAnotherVersionIsToBeMeasuredAgain) {
  auto changed = json();
  changed.erase("version");
  const std::string without = refusal_of_profile(changed.dump());
  EXPECT_NE(without.find("it has no 'version', and this library reads 2: measure it again with `bench --profile`"),
            std::string::npos)
      << without;
  for (const auto& version : {nlohmann::json(1), nlohmann::json(3), nlohmann::json("2"), nlohmann::json(nullptr)}) {
    changed["version"] = version;
    changed["whatever_comes"] = 1; // its keys may be others
    const std::string why = refusal_of_profile(changed.dump());
    EXPECT_NE(why.find("'version' is " + version.dump()), std::string::npos) << why;
    EXPECT_NE(why.find("bench --profile"), std::string::npos) << why;
  }
}

TEST(Profile, RefusesANameThatIsNotText) {
  auto changed = json();
  changed["name"] = 3;
  EXPECT_EQ(refusal_of_profile(changed.dump()), "machine profile: 'name' must be text");
}

TEST(Profile, RefusesWhatIsNotAnObject) {
  for (const std::string text : {"", "[]", "3", "{", "{\"name\": ", "null", "{} {}", "\xff\xfe"}) {
    EXPECT_NE(refusal_of_profile(text).find("a machine profile is a JSON object"), std::string::npos) << text;
  }
  EXPECT_NE(refusal_of_profile(std::string(100000, '[')), "");
}

} // namespace
} // namespace offload
