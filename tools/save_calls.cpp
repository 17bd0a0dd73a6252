#include <tools/save_calls.h>

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/pickler.h>

#include <fstream>
#include <utility>

#include <offload/error.h>

namespace offload::tools {

namespace {

/// What torch.load takes by default: containers of no declared type, and tuples and objects as the values in them.
c10::IValue plain(const c10::IValue& value) {
  if (value.isList()) {
    c10::impl::GenericList list(c10::AnyType::get());
    for (const c10::IValue& element : value.toListRef()) {
      list.push_back(plain(element));
    }
    return list;
  }
  if (value.isTuple()) {
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      elements.push_back(plain(element));
    }
    return c10::ivalue::Tuple::create(std::move(elements));
  }
  if (value.isGenericDict()) {
    c10::impl::GenericDict dict(c10::AnyType::get(), c10::AnyType::get());
    for (const auto& entry : value.toGenericDict()) {
      dict.insert(plain(entry.key()), plain(entry.value()));
    }
    return dict;
  }
  if (value.isTensor() && value.toTensor().defined() &&
      c10::isBarebonesUnsignedType(
          value.toTensor().scalar_type())) { // pickles name their storages, torch.load does not
    throw InputError(std::string("--save: a tensor is ") + c10::toString(value.toTensor().scalar_type()) +
                     ", which torch.load does not take");
  }
  if (value.isObject() || value.isFuture()) {
    throw InputError("--save: an output is a " + value.tagKind() + ", which torch.load does not take");
  }
  return value;
}

} // namespace

void save_calls(const std::string& path, const std::vector<Call>& calls, const std::vector<c10::IValue>& outputs) {
  if (!std::ofstream(path, std::ios::binary)) {
    throw InputError("--save " + path + ": can not be written");
  }
  c10::impl::GenericList inputs(c10::AnyType::get());
  c10::impl::GenericList results(c10::AnyType::get());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    c10::impl::GenericList values(c10::AnyType::get());
    for (const c10::IValue& input : calls[i % calls.size()]) {
      values.push_back(plain(input));
    }
    inputs.push_back(values);
    results.push_back(plain(outputs[i]));
  }
  c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
  dict.insert("inputs", inputs);
  dict.insert("outputs", results);
  // As torch.save lays it out. Without the type tags that pickle_save adds: torch.load refuses them by default.
  std::string pickled;
  torch::jit::Pickler pickler([&](const char* data, std::size_t size) { pickled.append(data, size); },
                              /*tensor_table=*/nullptr, /*type_renamer=*/nullptr, /*memoized_class_types=*/nullptr,
                              /*get_tensor_id=*/nullptr, /*tag_aggregates=*/false);
  pickler.protocol();
  pickler.pushIValue(dict);
  pickler.stop();
  std::ofstream file(path, std::ios::binary);
  {
    caffe2::serialize::PyTorchStreamWriter writer([&](const void* data, std::size_t size) {
      file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
      return size; // whether it was written is asked at the end: the writer throws where it must not
    });
    writer.writeRecord("data.pkl", pickled.data(), pickled.size());
    for (std::size_t i = 0; i < pickler.tensorData().size(); ++i) {
      const torch::jit::WriteableTensorData data = torch::jit::getWriteableTensorData(pickler.tensorData()[i]);
      writer.writeRecord("data/" + std::to_string(i), data.data(), data.sizeInBytes());
    }
    writer.writeEndOfFile();
  }
  if (!file.flush()) {
    throw Error(path + ": can not be written");
  }
}

} // namespace offload::tools
