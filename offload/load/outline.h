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

// Note [An archive that imitates an archive]
//
// torch::jit::load() reads the bytes of every tensor, and can not be told to leave some out. So it is given an outline:
// a zip archive that is on no disk, with the names of the real one, in which
//
//   code, pickles, small tensors, constants   are as they are, from memory or from the real file
//   a large tensor                            is a mark of 64 bytes: a secret, and the number of its real record
//
// For a mark the importer makes a storage that says it has all the bytes of the tensor, and has those of the mark only.
// Afterwards make_marked_file_backed() (archive.cpp) finds the marks in the module, and takes the memory away: the
// storage then knows where in the file its bytes are, and reading it is an error.
//
// Until then nobody may read such a storage, as it would be read past its end. So a tensor is left out only where
//   - it is no constant: the importer compares those by their values;
//   - the pickles are understood to the end, and make plain tensors only (_rebuild_tensor_v2, of a type that is known);
//   - no code of the archive runs during the import: neither __setstate__ nor classes that are registered in C++;
//   - the pickles name its record once: each time they do makes another storage.
// An archive that has fewer bytes in a record than its tensor asks for is refused.
//
// Bytes of a tensor that was not left out can not pass for a mark: the secret is drawn at random for each outline.

/// What PyTorch's importer reads instead of a file: see Note [An archive that imitates an archive].
class Outline final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit Outline(std::shared_ptr<const File> file);

  /// A record as it is: held here, or read from the file when somebody asks.
  void add(const std::string& name, std::string bytes, std::uint32_t crc);
  void add_from_file(const std::string& name, std::uint64_t offset, std::uint64_t bytes, std::uint32_t crc);

  /// A record of which only a mark is there. Its storage gets kMarkBytes of memory, whatever the size of the tensor.
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

  void append(std::string held);
  void begin_record(const std::string& name, std::uint64_t bytes, std::uint32_t crc);

  std::shared_ptr<const File> file_;
  std::array<std::uint64_t, 2> secret_; // of marks
  std::vector<Part> parts_;
  std::string directory_;
  std::uint64_t records_ = 0;
  std::uint64_t end_ = 0;
};

} // namespace offload
