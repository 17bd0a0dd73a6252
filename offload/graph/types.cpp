#include <offload/graph/types.h>

#include <algorithm>

namespace offload {

bool is_container(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  const auto kind = optional ? optional->getElementType()->kind() : type->kind();
  return kind != c10::TypeKind::TensorType;
}

bool can_lease(const c10::TypePtr& type) {
  const auto list = type->cast<c10::ListType>();
  return !is_container(list ? list->getElementType() : type);
}

bool holds_containers(const c10::TypePtr& type) {
  const auto contained = type->containedTypes();
  return std::any_of(contained.begin(), contained.end(), [](const c10::TypePtr& element) {
    return element->kind() != c10::TypeKind::TensorType && !element->containedTypes().empty();
  });
}

} // namespace offload
