#include <offload/load/file_bytes.h>

namespace offload {

namespace {

void delete_file_bytes(void* context) { delete static_cast<FileBytes*>(context); }

} // namespace

void make_file_backed(const c10::Storage& storage, FileBytes bytes, const std::string& name) {
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  auto context = std::make_unique<FileBytes>(std::move(bytes));
  impl->set_data_ptr_noswap(at::DataPtr(nullptr, context.release(), &delete_file_bytes, c10::Device(c10::kCPU)));
  impl->release_data_and_set_meta_custom_data_ptr_error_msg_(name + " lies on the file and was not read");
}

const FileBytes* file_bytes(const c10::Storage& storage) {
  return storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().cast_context<FileBytes>(&delete_file_bytes);
}

} // namespace offload
