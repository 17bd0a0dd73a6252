#include <offload/runtime/placed_module.h>

#include <ATen/ops/empty.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include <offload/error.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>

namespace offload {

PlacedModule::PlacedModule(Program& program, Engine& engine, WeightTablePtr weights,
                           std::vector<std::vector<at::Tensor>> placeholders)
    : program_(program), engine_(engine), weights_(std::move(weights)), placeholders_(std::move(placeholders)) {}

/// Nothing refers to what is placed any more.
void PlacedModule::restore_placeholders() {
  const std::lock_guard lock(objects_mutex_);
  program_.unbind([&](const at::Tensor& tensor) {
    const auto resident = resident_.find(tensor.unsafeGetTensorImpl());
    return resident == resident_.end() ? tensor : resident->second.second;
  });
  resident_.clear();
}

/// Places weights, and makes the program fit: those that are leased stand in the module as placeholders, the
/// others as they are. The caller holds all lanes, and has looked whether the file has changed: what is placed goes.
void PlacedModule::install(const Residency& residency, Leased leased) {
  const PlainModes plain;
  restore_placeholders();
  {
    const std::unique_lock exchange(placing_mutex_);
    engine_.place(residency, placeholders_);
  }
  std::vector<bool> as_it_is(residency.bytes.size());
  if (leased == Leased::streamed) {
    std::transform(residency.bytes.begin(), residency.bytes.end(), as_it_is.begin(),
                   [](std::uint64_t bytes) { return bytes > 0; });
  }
  const std::lock_guard lock(objects_mutex_);
  program_.rebind(as_it_is, [&](const at::Tensor& tensor) {
    const PlaceholderRecord* record = placeholder_record(tensor);
    if (!record || !as_it_is[record->weight]) {
      return tensor;
    }
    const at::Tensor resident = engine_.lender().resident_tensor(record->weight, tensor);
    resident_[resident.unsafeGetTensorImpl()] = {resident, tensor};
    return resident;
  });
}

void PlacedModule::clear() {
  restore_placeholders();
  const std::unique_lock exchange(placing_mutex_);
  engine_.clear();
}

namespace {

/// One step of a qualified name: an attribute of an object, an element of a container. None when there is no such.
std::optional<c10::IValue> member(const c10::IValue& value, const std::string& name) {
  if (value.isObject() && value.toObjectRef().type()->hasAttribute(name)) {
    return value.toObjectRef().getAttr(name);
  }
  if (value.isGenericDict()) {
    const auto dict = value.toGenericDict();
    const auto entry = dict.keyType()->kind() == c10::TypeKind::StringType ? dict.find(name) : dict.end();
    return entry == dict.end() ? std::nullopt : std::optional(entry->value());
  }
  std::size_t index = 0;
  const auto [rest, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (error != std::errc() || rest != name.data() + name.size()) {
    return std::nullopt;
  }
  if (value.isTuple()) {
    const auto& elements = value.toTupleRef().elements();
    return index < elements.size() ? std::optional(elements[index]) : std::nullopt;
  }
  if (value.isList()) {
    const auto list = value.toListRef();
    return index < list.size() ? std::optional(list[index]) : std::nullopt;
  }
  return std::nullopt;
}

} // namespace

c10::IValue PlacedModule::attr(const std::string& name) const {
  const PlainModes plain;
  const auto keeps_nothing = [](const c10::IValue&) { return false; };
  const c10::IValue value = [&] {
    const std::lock_guard lock(objects_mutex_);
    return map_tensors(
        find(name),
        [&](const at::Tensor& tensor) {
          const auto resident = resident_.find(tensor.unsafeGetTensorImpl());
          return resident == resident_.end() ? tensor : resident->second.second;
        },
        keeps_nothing);
  }();
  return map_tensors(
      value,
      [&](const at::Tensor& tensor) {
        return placeholder_record(tensor) ? host_copy(tensor)
                                          : tensor.detach().to(c10::kCPU, tensor.scalar_type(), false, true);
      },
      keeps_nothing);
}

c10::IValue PlacedModule::find(const std::string& name) const {
  c10::IValue value = program_.holders.front();
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const auto next = member(value, name.substr(begin, end - begin));
    if (!next) {
      throw InputError("the module has no attribute '" + name + "'");
    }
    value = *next;
    begin = end + 1;
  }
  if (value.isModule()) {
    throw InputError("'" + name + "' is a module: name one of its attributes");
  }
  return value;
}

/// The values of a placeholder, in memory of their own.
at::Tensor PlacedModule::host_copy(const at::Tensor& placeholder) const {
  const WeightId weight = placeholder_record(placeholder)->weight;
  const at::Tensor bytes = at::empty({static_cast<std::int64_t>((*weights_)[weight].bytes)}, at::kByte);
  auto* to = static_cast<std::byte*>(bytes.mutable_data_ptr());
  const std::shared_lock stays(placing_mutex_, std::try_to_lock); // what is being exchanged is not waited for
  if (!stays || !engine_.copy_resident(weight, to)) {
    engine_.copy_to_host(weight, to);
  }
  return tensor_on(bytes.storage(), placeholder).detach().clone();
}

} // namespace offload
