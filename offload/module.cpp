#include <offload/module.h>

#include <ostream>

#include <offload/load/archive.h>
#include <offload/module_impl.h>
#include <offload/preview.h>

namespace offload {

Module::Module(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

c10::IValue Module::forward(std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  return impl_->run_method("forward", std::move(inputs), kwargs);
}

c10::IValue Module::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  return impl_->run_method(name, std::move(inputs), kwargs);
}

c10::IValue Module::attr(const std::string& name) const { return impl_->attr(name); }
const c10::FunctionSchema& Module::schema(const std::string& method) const { return impl_->schema(method); }
c10::Device Module::device() const { return impl_->device(); }
Placement Module::placement() const { return impl_->placement(); }
Stats Module::stats() const { return impl_->stats(); }
void Module::set_vram_budget(std::uint64_t bytes) { impl_->set_vram_budget(bytes); }

std::ostream& operator<<(std::ostream& out, const Stats& stats) {
  return out << "calls " << stats.calls << ", repeated " << stats.calls_repeated << ", streamed "
             << format_bytes(stats.bytes_streamed) << " in " << stats.copies << " copies, read in place "
             << format_bytes(stats.bytes_in_place) << ", in the page cache " << format_bytes(stats.bytes_in_cache)
             << ", resident " << format_bytes(stats.bytes_resident) << ", misses " << stats.misses << ", stalled "
             << stats.stall_us / 1e3 << " ms, peak " << format_bytes(stats.peak_device_bytes) << " on the device\n";
}

Module wrap(torch::jit::Module module, const Options& options) {
  using Impl = Module::Impl;
  return Module(
      std::make_shared<Impl>(std::move(module), options, std::nullopt, Impl::Purpose::run, Impl::Owner::shared));
}

Module load(const std::string& path, const Options& options) {
  using Impl = Module::Impl;
  return Module(std::make_shared<Impl>(read_archive(path, Weights::on_file), options, std::nullopt, Impl::Purpose::run,
                                       Impl::Owner::sole));
}

Placement preview(torch::jit::Module module, const Options& options, const std::optional<MachineProfile>& machine) {
  using Impl = Module::Impl;
  const Impl impl(std::move(module), options, machine, Impl::Purpose::plan, Impl::Owner::shared);
  return impl.placement();
}

} // namespace offload
