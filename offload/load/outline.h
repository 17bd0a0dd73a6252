#pragma once

#include <caffe2/serialize/read_adapter_interface.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <offload/io/file.h>

namespace offload {

/// An archive for PyTorch's importer in which some records stand for others: it takes everything as it always does,
/// except that the bytes of tensors may be left out, and a mark says whose they would be.
class Outline final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit Outline(std::shared_ptr<const File> file);

  /// A record as it is: held here, or read from the file when somebody asks.
  void add(const std::string& name, std::string bytes, std::uint32_t crc);
  void add_from_file(const std::string& name, std::uint64_t offset, std::uint64_t bytes, std::uint32_t crc);

  /// A record of which only a mark is there. Memory of kMarkBytes is all that it gets, whatever the size of the tensor:
  /// for storages that the importer makes and does not read.
  void add_mark(const std::string& name, std::uint64_t number);

  /// Writes the directory. Nothing is added after it.
  void finish();

  static constexpr std::uint64_t kMarkBytes = 64;

  /// The number of the mark at `data`, which has at least kMarkBytes; none where there is no mark.
  std::optional<std::uint64_t> number_at(const void* data) const;

  std::size_t size() const override { return end_; }
  std::size_t read(std::uint64_t position, void* to, std::size_t bytes, const char* what) const override;

 private:
  struct Part {
    std::uint64_t begin;
    std::uint64_t bytes;
    std::string held;          // all of it, or nothing
    std::uint64_t file_offset; // of a part that is not held
  };

  std::string mark(std::uint64_t number) const;
  void append(std::string held);
  void begin_record(const std::string& name, std::uint64_t bytes, std::uint32_t crc);

  std::shared_ptr<const File> file_;
  std::array<std::uint64_t, 2> secret_; // no file can hold it by chance or on purpose
  std::vector<Part> parts_;
  std::string directory_;
  std::uint64_t records_ = 0;
  std::uint64_t end_ = 0;
};

} // namespace offload
