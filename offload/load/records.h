#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <offload/load/zip.h>

namespace offload {

/// Code, pickles, and the like: what is looked at before the importer sees it.
bool is_text(const ZipRecord& record);

/// The records of a TorchScript archive, by their names below its folder, in capitals or not. All its text together has
/// no more than 256 MiB.
class Records {
 public:
  /// Throws ArchiveError that says what the file is when it is no such archive, and how to make one of it.
  explicit Records(const std::string& path);

  const std::vector<ZipRecord>& all() const { return records_; }
  const std::shared_ptr<const File>& file() const { return file_; }
  const std::string& path() const { return file_->path(); }

  /// Its number in all().
  std::optional<std::size_t> find(const std::string& name) const;
  bool has(const std::string& name) const { return find(name).has_value(); }

  /// The bytes of a record that is not large; empty when there is none.
  std::string read(const std::string& name) const;

 private:
  void look_at_kind() const;

  std::shared_ptr<const File> file_;
  std::vector<ZipRecord> records_;
  std::unordered_map<std::string, std::size_t> numbers_;
};

} // namespace offload
