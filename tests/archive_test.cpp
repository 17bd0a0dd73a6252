// What is in an archive that is imported with its weights still on the file.

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sparse_coo_tensor.h>
#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/load/archive.h>
#include <offload/load/file_bytes.h>
#include <offload/load/zip.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <functional>

#include <tests/temporary_file.h>
#include <tests/zip_maker.h>

namespace offload {
namespace {

using test::make_zip;
using test::TemporaryFile;
using test::ZipEntry;

torch::jit::Module three_weights() {
  torch::jit::Module module("model");
  for (const char* name : {"a", "b", "c"}) {
    module.register_parameter(name, at::randn({128, 128}), false);
  }
  module.define("def forward(self, x):\n  return x @ self.a @ self.b @ self.c\n");
  return module;
}

/// The archive of `module` after `change` of each record.
std::string archive_of(const torch::jit::Module& module, const std::function<void(ZipEntry&)>& change) {
  const TemporaryFile saved;
  module.save(saved.path());
  const File file(saved.path());
  std::vector<ZipEntry> entries;
  for (const ZipRecord& record : read_zip_directory(file)) {
    entries.push_back({record.name, read_zip_record(file, record)});
    change(entries.back());
  }
  return make_zip(entries);
}

at::Tensor weight(const torch::jit::Module& module, const char* name) { return module.attr(name).toTensor(); }

/// It would be one place in the file for both.
TEST(Archive, ARecordThatTwoStoragesNameIsReadForEach) {
  const TemporaryFile file(archive_of(three_weights(), [](ZipEntry& entry) {
    if (entry.name.ends_with("/data.pkl")) {
      const std::string second("X\1\0\0\0001", 6); // the key of b
      const std::size_t at = entry.bytes.find(second);
      ASSERT_NE(at, std::string::npos);
      entry.bytes[at + 5] = '0';
    }
  }));
  const torch::jit::Module ours = read_archive(file.path(), Weights::on_file);
  const torch::jit::Module plain = torch::jit::load(file.path());
  for (const char* name : {"a", "b"}) {
    EXPECT_EQ(file_bytes(weight(ours, name).storage()), nullptr) << name;
    EXPECT_TRUE(weight(ours, name).equal(weight(plain, name))) << name;
  }
  EXPECT_TRUE(weight(ours, "a").equal(weight(ours, "b")));
  EXPECT_FALSE(weight(ours, "a").storage().is_alias_of(weight(ours, "b").storage()));
  EXPECT_NE(file_bytes(weight(ours, "c").storage()), nullptr);
}

TEST(Archive, RefusesSparseTensorsThatPointOutsideThemselves) {
  torch::jit::Module module = three_weights();
  module.register_buffer("sparse", at::sparse_coo_tensor(at::full({2, 1}, 5, at::kLong), at::ones({1}), {6, 6}));
  for (const char row : {5, 6}) {
    const TemporaryFile file(archive_of(module, [&](ZipEntry& entry) {
      if (entry.bytes.size() == 2 * sizeof(std::int64_t) && entry.name.find("/data/") != std::string::npos) {
        entry.bytes[0] = row;
      }
    }));
    try {
      read_archive(file.path());
      EXPECT_EQ(row, 5);
    } catch (const ArchiveError& error) {
      EXPECT_EQ(row, 6);
      EXPECT_NE(std::string(error.what()).find("the sparse tensor sparse"), std::string::npos) << error.what();
    }
  }
}

} // namespace
} // namespace offload
