#include <offload/profile.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include <offload/error.h>

namespace offload {

namespace {

constexpr int kVersion = 2; // of the format; 1 had no number, and no memory of the device

struct Key {
  const char* name;
  double MachineProfile::* value;
};

constexpr std::array<Key, 9> kKeys = {{
    {"link_bytes_per_us", &MachineProfile::link_bytes_per_us},
    {"copy_overhead_us", &MachineProfile::copy_overhead_us},
    {"host_copy_bytes_per_us", &MachineProfile::host_copy_bytes_per_us},
    {"file_bytes_per_us", &MachineProfile::file_bytes_per_us},
    {"memory_bytes_per_us", &MachineProfile::memory_bytes_per_us},
    {"fp64_flops_per_us", &MachineProfile::fp64_flops_per_us},
    {"fp32_flops_per_us", &MachineProfile::fp32_flops_per_us},
    {"half_flops_per_us", &MachineProfile::half_flops_per_us},
    {"node_overhead_us", &MachineProfile::node_overhead_us},
}};

constexpr const char* kMemory = "device_memory_bytes";

void require_version(const nlohmann::json& json) {
  const auto version = json.find("version");
  if (version == json.end() || *version != kVersion) {
    const std::string found = version == json.end() ? "it has no 'version'" : "'version' is " + version->dump();
    throw InputError("machine profile: " + found + ", and this library reads " + std::to_string(kVersion) +
                     ": measure it again with `bench --profile`");
  }
}

} // namespace

std::string to_json(const MachineProfile& profile) {
  nlohmann::ordered_json json;
  json["version"] = kVersion;
  json["name"] = profile.name;
  for (const Key& key : kKeys) {
    json[key.name] = profile.*key.value;
  }
  json[kMemory] = profile.device_memory_bytes;
  return json.dump(2);
}

MachineProfile profile_from_json(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    throw InputError("a machine profile is a JSON object with the keys that `bench --profile` writes");
  }
  require_version(json);
  MachineProfile profile;
  for (const auto& [name, value] : json.items()) {
    if (name == "version") {
      continue;
    }
    if (name == "name") {
      if (!value.is_string()) {
        throw InputError("machine profile: 'name' must be text");
      }
      profile.name = value.get<std::string>();
      continue;
    }
    if (name == kMemory) {
      if (!value.is_number_unsigned()) {
        throw InputError(std::string("machine profile: '") + kMemory + "' must be a number of bytes, or 0 for no GPU");
      }
      profile.device_memory_bytes = value.get<std::uint64_t>();
      continue;
    }
    const auto key = std::find_if(kKeys.begin(), kKeys.end(), [&name = name](const Key& k) { return name == k.name; });
    if (key == kKeys.end()) {
      throw InputError("machine profile: unknown key '" + name + "'");
    }
    if (!value.is_number() || !(value.get<double>() > 0) || value.get<double>() > 1e18) {
      throw InputError("machine profile: '" + name + "' must be a positive number");
    }
    profile.*key->value = value.get<double>();
  }
  for (const Key& key : kKeys) {
    if (!(profile.*key.value > 0)) {
      throw InputError(std::string("machine profile: '") + key.name + "' is missing");
    }
  }
  if (!json.contains(kMemory)) {
    throw InputError(std::string("machine profile: '") + kMemory + "' is missing");
  }
  return profile;
}

} // namespace offload
