#include <offload/error.h>

#include <offload/core/printable.h>

namespace offload {

Error::Error(const std::string& what) : std::runtime_error(printable(what, "\n\t")) {}

} // namespace offload
