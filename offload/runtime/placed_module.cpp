#include <offload/runtime/placed_module.h>

#include <ATen/core/class_type.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include <offload/error.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>

namespace offload {

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
  const c10::ArrayRef<c10::IValue> elements = value.isTuple()  ? value.toTupleRef().elements().asArrayRef()
                                              : value.isList() ? value.toListRef()
                                                               : c10::ArrayRef<c10::IValue>();
  return index < elements.size() ? std::optional(elements[index]) : std::nullopt;
}

/// An attribute of a module by its qualified name.
c10::IValue find_attribute(const c10::IValue& module, const std::string& name) {
  c10::IValue value = module;
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

c10::IValue copy_with(const c10::IValue& value, const Replace& replace) {
  return map_tensors(value, replace, [](const c10::IValue&) { return false; });
}

} // namespace

/// Of what is resident; other tensors are their own. The caller holds the mutex of the objects.
at::Tensor PlacedModule::placeholder_of(const at::Tensor& tensor) const {
  const auto resident = resident_.find(tensor.unsafeGetTensorImpl());
  return resident == resident_.end() ? tensor : resident->second.second;
}

/// Nothing refers to what is placed any more.
void PlacedModule::restore_placeholders() {
  const std::lock_guard lock(objects_mutex_);
  model_.program.unbind([this](const at::Tensor& tensor) { return placeholder_of(tensor); });
  resident_.clear();
}

void PlacedModule::install(const Residency& residency, Leased leased) {
  alter([&](Engine& engine, const Placeholders& known) { engine.place(residency, known); }, leased);
}

void PlacedModule::alter(const std::function<void(Engine& engine, const Placeholders& known)>& change, Leased leased) {
  const PlainModes plain;
  restore_placeholders();
  {
    const std::unique_lock exchange(placing_mutex_);
    change(engine_, placeholders_);
  }
  bind(leased);
}

/// What is resident stands in the module as it is, and methods lease the rest.
void PlacedModule::bind(Leased leased) {
  std::vector<bool> as_it_is(model_.count());
  for (WeightId weight = 0; weight < model_.count(); ++weight) {
    as_it_is[weight] = leased == Leased::streamed && engine_.stays(weight);
  }
  leases_all_ = std::find(as_it_is.begin(), as_it_is.end(), true) == as_it_is.end();
  const std::lock_guard lock(objects_mutex_);
  model_.program.rebind(as_it_is, [&](const at::Tensor& tensor) {
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

c10::IValue PlacedModule::attr(const std::string& name) const {
  const PlainModes plain;
  const c10::IValue value = [&] {
    const std::lock_guard lock(objects_mutex_);
    return copy_with(find_attribute(model_.program.holders.front(), name),
                     [this](const at::Tensor& tensor) { return placeholder_of(tensor); });
  }();
  return copy_with(value, [this](const at::Tensor& tensor) {
    return placeholder_record(tensor) ? host_copy(tensor)
                                      : tensor.detach().to(c10::kCPU, tensor.scalar_type(), false, true);
  });
}

at::Tensor PlacedModule::host_copy(const at::Tensor& placeholder) const {
  const WeightId weight = placeholder_record(placeholder)->weight;
  const at::Tensor bytes = at::empty({static_cast<std::int64_t>(model_.weight(weight).bytes)}, at::kByte);
  auto* to = static_cast<std::byte*>(bytes.mutable_data_ptr());
  const std::shared_lock stays(placing_mutex_, std::try_to_lock); // what is being exchanged is not waited for
  if (!stays || !engine_.copy_resident(weight, to)) {
    engine_.copy_to_host(weight, to);
  }
  return tensor_on(bytes.storage(), placeholder).detach().clone();
}

} // namespace offload
