#include <offload/version.h>

#define OFFLOAD_STRING(x) #x
#define OFFLOAD_DOTTED(a, b, c) OFFLOAD_STRING(a) "." OFFLOAD_STRING(b) "." OFFLOAD_STRING(c)

namespace offload {

const char* version() { return OFFLOAD_DOTTED(OFFLOAD_VERSION_MAJOR, OFFLOAD_VERSION_MINOR, OFFLOAD_VERSION_PATCH); }

} // namespace offload
