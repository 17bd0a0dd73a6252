#include <offload/load/archive.h>

#include <ATen/SparseCsrTensorUtils.h>
#include <ATen/ops/_validate_sparse_compressed_tensor_args.h>
#include <ATen/ops/_validate_sparse_coo_tensor_args.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <new>
#include <string_view>
#include <unordered_map>

#include <offload/core/words.h>
#include <offload/error.h>
#include <offload/load/code.h>
#include <offload/load/file_bytes.h>
#include <offload/load/outline.h>
#include <offload/load/pickle.h>
#include <offload/load/records.h>
#include <offload/load/source_ranges.h>
#include <offload/load/storage_types.h>
#include <offload/tensor/values.h>

namespace offload {

namespace {

/// What torch says of an archive, without where in its sources that was, and with what to do where that is known.
std::string explain(std::string message) {
  constexpr std::string_view kUnknown = "Unknown builtin op: ";
  if (const std::size_t at = message.find(kUnknown); at != std::string::npos) {
    const std::size_t begin = at + kUnknown.size();
    const std::string name = message.substr(begin, message.find_first_of(".\n ", begin) - begin);
    return "it needs the operator " + name +
           ", which is not registered: load the library that defines it first (--library of the tools)";
  }
  if (const std::size_t assertion = message.find(" INTERNAL ASSERT FAILED at "); assertion != std::string::npos) {
    return "it is damaged, or newer than this PyTorch: what it takes for granted does not hold, " +
           message.substr(0, assertion);
  }
  if (const std::size_t plea = message.find(" (Could this error message be improved?"); plea != std::string::npos) {
    message.resize(plea);
  }
  if (const std::size_t end = message.find("] . ");
      message.starts_with("[enforce fail at ") && end != std::string::npos) {
    message.erase(0, end + 4);
  }
  constexpr std::size_t kMostBytes = 1000; // it may repeat what is in the archive
  if (message.size() > kMostBytes) {
    message.replace(kMostBytes, std::string::npos, "...");
  }
  return message;
}

/// What is wrong with a record, and of which archive it is.
template <class Look>
void check(const Records& records, Look look) {
  try {
    look();
  } catch (const ArchiveError& error) {
    throw ArchiveError(records.path() + ": is damaged: " + error.what());
  }
}

/// Records that hold tensors, by their numbers, and which of them may be deferred.
using TensorRecords = std::unordered_map<std::size_t, bool>;

/// What `pickle` says of the tensors in `folder`. Throws ArchiveError where a record has less than they need. False
/// when it holds what may read them during the import.
bool add_tensors(const Records& records, const std::string& pickle, const std::string& folder, TensorRecords& tensors,
                 std::uint64_t& steps) {
  const auto summary = read_pickle(records.read(pickle), pickle, steps);
  if (!summary) {
    return false;
  }
  bool plain = std::all_of(summary->globals.begin(), summary->globals.end(), [](const std::string& global) {
    return (!global.starts_with("torch._utils ") || global == "torch._utils _rebuild_tensor_v2") &&
           global.find("torch.classes") == std::string::npos;
  });
  for (const PickledStorage& storage : summary->storages) {
    const std::uint64_t element = element_bytes(storage.type);
    plain = plain && element > 0;
    if (storage.numel == 0) {
      continue;
    }
    const std::string name = folder + storage.key;
    const auto number = records.find(name);
    if (!number) {
      throw ArchiveError("the tensor " + name + " is not there");
    }
    const std::uint64_t held = records.all()[*number].bytes;
    if (storage.numel > held / std::max<std::uint64_t>(element, 1)) {
      throw ArchiveError("record " + name + " has " + std::to_string(held) + " bytes for " +
                         std::to_string(storage.numel) + " elements of " + storage.type);
    }
    const bool may_be_deferred = folder == "data/" && storage.numel * element >= kSmallBytes;
    const auto [record, is_new] = tensors.emplace(*number, may_be_deferred);
    record->second &= is_new;
  }
  return plain;
}

/// What somebody put beside the model; the importer reads it only for those who ask.
bool is_extra(const ZipRecord& record) {
  return lower_case(record.name.substr(record.name.find('/') + 1)).starts_with("extra/");
}

/// The archive for the importer: see Note [An archive that imitates an archive].
std::shared_ptr<Outline> make_outline(const Records& records, Weights weights) {
  TensorRecords tensors;
  std::uint64_t steps = kMostPickleSteps;
  bool may_defer = weights == Weights::on_file;
  check(records, [&] {
    may_defer &= add_tensors(records, "constants.pkl", "constants/", tensors, steps);
    may_defer &= add_tensors(records, "data.pkl", "data/", tensors, steps);
  });
  std::unordered_map<std::size_t, std::string> held; // what is packed, and what is no tensor
  for (std::size_t i = 0; i < records.all().size(); ++i) {
    const ZipRecord& record = records.all()[i];
    if (is_extra(record) || (record.is_stored() && !is_text(record))) {
      continue;
    }
    const std::string& bytes = held[i] = read_zip_record(*records.file(), record);
    const std::string name = lower_case(record.name);
    if (name.ends_with(".debug_pkl")) {
      check(records, [&] { check_source_ranges(bytes, record.name, steps); });
    } else if (name.ends_with(".py")) {
      check(records, [&] { check_code(bytes, record.name); });
      may_defer &= bytes.find("__setstate__") == std::string::npos; // it runs during the import
    }
  }
  auto outline = std::make_shared<Outline>(records.file());
  for (std::size_t i = 0; i < records.all().size(); ++i) {
    const ZipRecord& record = records.all()[i];
    const auto tensor = tensors.find(i);
    if (is_extra(record)) {
      continue;
    }
    if (const auto bytes = held.find(i); bytes != held.end()) {
      outline->add(record.name, std::move(bytes->second), record.crc);
    } else if (may_defer && tensor != tensors.end() && tensor->second) {
      outline->add_mark(record.name, i);
    } else {
      outline->add_from_file(record.name, record.offset, record.bytes, record.crc);
    }
  }
  outline->finish();
  return outline;
}

/// Storages that begin with a mark get the place of their bytes instead.
void make_marked_file_backed(const torch::jit::Module& module, const Records& records, const Outline& outline) {
  visit_tensors("", module._ivalue(), [&](const std::string& name, const at::Tensor& tensor) {
    if (!is_weight_like(tensor) || tensor.storage().nbytes() < kSmallBytes || file_bytes(tensor.storage())) {
      return;
    }
    if (const auto number = outline.number_at(tensor.storage().data())) {
      make_file_backed(tensor.storage(), {records.file(), records.all()[*number].offset, tensor.storage().nbytes()},
                       name);
    }
  });
}

/// The importer takes indices and sizes of sparse tensors as they are, and operators rely on them.
void check_sparse(const torch::jit::Module& module, const Records& records) {
  visit_tensors("", module._ivalue(), [&](const std::string& name, const at::Tensor& tensor) {
    try {
      if (tensor.layout() == at::kSparse) {
        at::_validate_sparse_coo_tensor_args(tensor._indices(), tensor._values(), tensor.sizes());
      } else if (at::sparse_csr::is_sparse_compressed(tensor)) {
        const auto [outer, inner] = at::sparse_csr::getCompressedPlainIndices(tensor);
        at::_validate_sparse_compressed_tensor_args(outer, inner, tensor.values(), tensor.sizes(), tensor.layout());
      }
    } catch (const c10::Error& error) {
      throw ArchiveError(records.path() + ": is damaged: the sparse tensor " + name + ": " +
                         error.what_without_backtrace());
    }
  });
}

} // namespace

torch::jit::Module read_archive(const std::string& path, Weights weights) {
  try {
    const Records records(path);
    const std::shared_ptr<Outline> outline = make_outline(records, weights);
    torch::jit::Module module = torch::jit::load(outline, c10::Device(c10::kCPU));
    make_marked_file_backed(module, records, *outline);
    check_sparse(module, records);
    records.file()->check_unchanged();
    return module;
  } catch (const ArchiveError&) {
    throw;
  } catch (const std::bad_alloc&) { // nothing is wrong with the file
    throw Error(path + ": host memory ran out while it was read: free some, and load it again");
  } catch (const c10::Error& error) {
    throw ArchiveError(path + ": can not be loaded as TorchScript: " + explain(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    throw ArchiveError(path + ": can not be loaded as TorchScript: " + explain(error.what()));
  }
}

} // namespace offload
