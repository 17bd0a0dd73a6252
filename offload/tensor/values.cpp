#include <offload/tensor/values.h>

#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <ATen/core/class_type.h>
#include <ATen/core/jit_type.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace offload {

bool is_weight_like(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_quantized() &&
         !tensor.is_meta();
}

namespace {

bool holds_scalars(const c10::IValue& list) { return list.isIntList() || list.isDoubleList() || list.isBoolList(); }

/// Asking a tuple for its type looks at its tensors, and does not bear undefined ones.
bool holds_undefined(const c10::IValue& value) {
  if (value.isTuple()) {
    const auto& elements = value.toTupleRef().elements();
    return std::any_of(elements.begin(), elements.end(), holds_undefined);
  }
  return value.isTensor() && !value.toTensor().defined();
}

/// Calls `visit` for all values below one, before those below them; for what can hold values once.
class Visitor {
 public:
  using Visit = std::function<void(const std::string& name, const c10::IValue& value)>;

  explicit Visitor(Visit visit) : visit_(std::move(visit)) {}

  void look_at(const std::string& name, const c10::IValue& value) {
    const bool is_holder = value.isObject() || value.isTuple() || value.isGenericDict() || value.isList();
    if (is_holder && !seen_.insert(value.internalToPointer()).second) {
      return;
    }
    visit_(name, value);
    const auto below = [&](const std::string& part) { return name.empty() ? part : name + "." + part; };
    const auto look_at_all = [&](const auto& elements) {
      for (std::size_t i = 0; i < elements.size(); ++i) {
        look_at(below(std::to_string(i)), elements[i]);
      }
    };
    if (value.isObject()) {
      const auto& type = *value.toObjectRef().type();
      for (std::size_t slot = 0; slot < value.toObjectRef().slots().size(); ++slot) {
        look_at(below(type.getAttributeName(slot)), value.toObjectRef().getSlot(slot));
      }
    } else if (value.isList() && !holds_scalars(value)) {
      look_at_all(value.toListRef());
    } else if (value.isTuple()) {
      look_at_all(value.toTupleRef().elements());
    } else if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        look_at(below(entry.key().isString() ? entry.key().toStringRef() : "item"), entry.value());
      }
    }
  }

 private:
  const Visit visit_;
  std::unordered_set<const void*> seen_;
};

class Mapper {
 public:
  Mapper(const std::function<at::Tensor(const at::Tensor&)>& replace,
         const std::function<bool(const c10::IValue&)>& in_place)
      : replace_(replace), in_place_(in_place) {}

  c10::IValue map(const c10::IValue& value) {
    if (value.isTensor()) {
      return value.toTensor().defined() ? c10::IValue(replace_(value.toTensor())) : value;
    }
    const bool may_hold_tensors = value.isTuple() || (value.isList() && !holds_scalars(value)) ||
                                  value.isGenericDict() || value.isObject() || value.isFuture();
    if (!may_hold_tensors) {
      return value;
    }
    const void* identity = value.internalToPointer();
    if (const auto known = mapped_.find(identity); known != mapped_.end()) {
      return known->second;
    }
    return value.isTuple()         ? map_tuple(value, identity)
           : value.isObject()      ? map_object(value, identity)
           : value.isGenericDict() ? map_dict(value, identity)
           : value.isFuture()      ? map_future(value)
                                   : map_list(value, identity);
  }

 private:
  c10::IValue map_tuple(const c10::IValue& value, const void* identity) {
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      elements.push_back(map(element));
    }
    const auto type = holds_undefined(value) ? nullptr : value.toTupleRef().type<c10::TupleType>();
    const c10::IValue tuple = type && type->schema() ? c10::ivalue::Tuple::createNamed(std::move(elements), type)
                                                     : c10::ivalue::Tuple::create(std::move(elements));
    mapped_[identity] = tuple;
    return tuple;
  }

  c10::IValue map_list(const c10::IValue& value, const void* identity) {
    auto list = in_place_(value) ? value.toList() : value.toList().copy();
    mapped_[identity] = list;
    for (std::size_t i = 0; i < list.size(); ++i) {
      list.set(i, map(list.get(i)));
    }
    return list;
  }

  c10::IValue map_dict(const c10::IValue& value, const void* identity) {
    auto dict = in_place_(value) ? value.toGenericDict() : value.toGenericDict().copy();
    mapped_[identity] = dict;
    std::vector<std::pair<c10::IValue, c10::IValue>> entries;
    for (const auto& entry : dict) {
      entries.emplace_back(entry.key(), entry.value());
    }
    for (const auto& [key, entry] : entries) {
      dict.insert_or_assign(key, map(entry));
    }
    return dict;
  }

  c10::IValue map_object(const c10::IValue& value, const void* identity) {
    const auto object = value.toObject();
    const bool opaque = value.isCustomClass();
    const auto result = in_place_(value) || opaque ? object : object->copy();
    mapped_[identity] = result;
    for (std::size_t slot = 0; slot < object->slots().size() && !opaque; ++slot) {
      result->setSlot(slot, map(object->getSlot(slot)));
    }
    return result;
  }

  c10::IValue map_future(const c10::IValue& value) {
    const auto future = value.toFuture();
    if (!future->completed() || future->hasError()) {
      return value;
    }
    auto result = c10::make_intrusive<c10::ivalue::Future>(future->elementType());
    result->markCompleted(map(future->value()));
    return result;
  }

  const std::function<at::Tensor(const at::Tensor&)>& replace_;
  const std::function<bool(const c10::IValue&)>& in_place_;
  std::unordered_map<const void*, c10::IValue> mapped_;
};

} // namespace

void visit_tensors(const std::string& name, const c10::IValue& value,
                   const std::function<void(const std::string&, const at::Tensor&)>& visit) {
  Visitor([&](const std::string& of_tensor, const c10::IValue& below) {
    if (below.isTensor()) {
      visit(of_tensor, below.toTensor());
    }
  }).look_at(name, value);
}

void visit_objects(const c10::IValue& value, const std::function<void(const c10::IValue& object)>& visit) {
  Visitor([&](const std::string&, const c10::IValue& below) {
    if (below.isObject()) {
      visit(below);
    }
  }).look_at("", value);
}

void visit_containers(const c10::IValue& value, const std::function<void(const c10::IValue& container)>& visit) {
  Visitor([&](const std::string&, const c10::IValue& below) {
    if (below.isList() || below.isGenericDict()) {
      visit(below);
    }
  }).look_at("", value);
}

c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& replace,
                        const std::function<bool(const c10::IValue&)>& in_place) {
  return Mapper(replace, in_place).map(value);
}

} // namespace offload
