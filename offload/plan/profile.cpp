#include <offload/profile.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include <offload/error.h>

namespace offload {

namespace {

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

} // namespace

std::string to_json(const MachineProfile& profile) {
  nlohmann::ordered_json json;
  json["name"] = profile.name;
  for (const Key& key : kKeys) {
    json[key.name] = profile.*key.value;
  }
  return json.dump(2);
}

MachineProfile profile_from_json(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    throw InputError("a machine profile is a JSON object with the keys that `bench --profile` writes");
  }
  MachineProfile profile;
  for (const auto& [name, value] : json.items()) {
    if (name == "name") {
      if (!value.is_string()) {
        throw InputError("machine profile: 'name' must be text");
      }
      profile.name = value.get<std::string>();
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
  return profile;
}

} // namespace offload
