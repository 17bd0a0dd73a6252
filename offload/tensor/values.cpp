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

class Visitor {
 public:
  std::function<void(const std::string&, const at::Tensor&)> tensor = [](const std::string&, const at::Tensor&) {};
  std::function<void(const c10::IValue&)> object = [](const c10::IValue&) {};
  std::function<void(const c10::IValue&)> container = [](const c10::IValue&) {};

  void look_at(const std::string& name, const c10::IValue& value) {
    const bool is_container = value.isObject() || value.isTuple() || value.isGenericDict() || value.isList();
    if (!is_container || !seen_.insert(value.internalToPointer()).second) {
      if (value.isTensor()) {
        tensor(name, value.toTensor());
      }
      return;
    }
    if (value.isList() || value.isGenericDict()) {
      container(value);
    }
    const auto below = [&](const std::string& part) { return name.empty() ? part : name + "." + part; };
    if (value.isObject()) {
      const auto& type = *value.toObjectRef().type();
      object(value);
      for (std::size_t slot = 0; slot < value.toObjectRef().slots().size(); ++slot) {
        look_at(below(type.getAttributeName(slot)), value.toObjectRef().getSlot(slot));
      }
    } else if (value.isList() && !holds_scalars(value)) {
      const auto list = value.toListRef();
      for (std::size_t i = 0; i < list.size(); ++i) {
        look_at(below(std::to_string(i)), list[i]);
      }
    } else if (value.isTuple()) {
      const auto& elements = value.toTupleRef().elements();
      for (std::size_t i = 0; i < elements.size(); ++i) {
        look_at(below(std::to_string(i)), elements[i]);
      }
    } else if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        look_at(below(entry.key().isString() ? entry.key().toStringRef() : "item"), entry.value());
      }
    }
  }

 private:
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
    const bool may_hold_tensors = value.isTuple() || value.isTensorList() ||
                                  (value.isList() && !holds_scalars(value)) || value.isGenericDict() ||
                                  value.isObject() || value.isFuture();
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
    if (value.isTensorList()) {
      auto list = in_place_(value) ? value.toTensorList() : value.toTensorList().copy();
      mapped_[identity] = list;
      for (std::size_t i = 0; i < list.size(); ++i) {
        list.set(i, map(list.get(i)).toTensor());
      }
      return list;
    }
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
  Visitor visitor;
  visitor.tensor = visit;
  visitor.look_at(name, value);
}

void visit_objects(const c10::IValue& value, const std::function<void(const c10::IValue& object)>& visit) {
  Visitor visitor;
  visitor.object = visit;
  visitor.look_at("", value);
}

void visit_containers(const c10::IValue& value, const std::function<void(const c10::IValue& container)>& visit) {
  Visitor visitor;
  visitor.container = visit;
  visitor.look_at("", value);
}

c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& replace,
                        const std::function<bool(const c10::IValue&)>& in_place) {
  return Mapper(replace, in_place).map(value);
}

} // namespace offload
