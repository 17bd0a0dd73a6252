#include <tools/serve_model.h>

#include <c10/util/Exception.h>

#include <algorithm>
#include <new>
#include <nlohmann/json.hpp>
#include <utility>

#include <tools/cli.h>
#include <tools/serve_tensors.h>

namespace offload::tools {

namespace {

using nlohmann::json;

/// What the metadata says of an argument of which no call has shown more.
std::pair<const char*, std::vector<std::int64_t>> declared(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::IntType:
      return {"INT64", {1}};
    case c10::TypeKind::FloatType:
      return {"FP64", {1}};
    case c10::TypeKind::BoolType:
      return {"BOOL", {1}};
    case c10::TypeKind::StringType:
      return {"BYTES", {1}};
    default:
      return {"ANY", {-1}};
  }
}

json tally_json(const Tally& tally) { return {{"count", tally.count}, {"ns", tally.time.count()}}; }

[[noreturn]] void refuse_raised(const std::string& what) {
  throw RequestError(500, "the model raised an error: " + last_line(what));
}

} // namespace

ServedModel::ServedModel(std::string name, const std::string& path, const Options& options)
    : name_(std::move(name)), module_(load(path, options)) {
  require_servable(module_.schema("forward"));
  show_examples(options);
}

void ServedModel::show_examples(const Options& options) {
  for (const ExampleCall& example : options.example_calls) {
    const std::vector<WireTensor> outputs = outputs_of(module_.forward(example.inputs));
    const auto& arguments = module_.schema("forward").arguments();
    for (std::size_t i = 0; i < example.inputs.size(); ++i) {
      WireTensor input = outputs_of(example.inputs[i]).at(0);
      input.name = arguments.at(i + 1).name();
      show(inputs_, input);
    }
    output_names_.clear();
    for (const WireTensor& output : outputs) {
      show(outputs_, output);
      output_names_.push_back(output.name);
    }
  }
}

void ServedModel::show(std::map<std::string, Described>& known, const WireTensor& tensor) {
  const auto [entry, is_new] = known.try_emplace(tensor.name, Described{to_string(tensor.datatype), tensor.shape});
  Described& described = entry->second;
  if (is_new) {
    return;
  }
  if (described.datatype != to_string(tensor.datatype)) {
    described.datatype = "ANY";
  }
  if (described.shape.size() != tensor.shape.size()) {
    described.shape = {-1};
    return;
  }
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (described.shape[i] != tensor.shape[i]) {
      described.shape[i] = -1;
    }
  }
}

InferAnswer ServedModel::call(const InferRequest& request) {
  try {
    std::vector<c10::IValue> arguments = arguments_of(module_.schema("forward"), request.inputs, module_.device());
    return {name_, request.id, outputs_of(module_.forward(std::move(arguments)))};
  } catch (const RequestError&) {
    throw;
  } catch (const InputError& error) {
    throw RequestError(400, error.what());
  } catch (const BudgetError& error) {
    throw RequestError(503, error.what());
  } catch (const Error& error) {
    throw RequestError(500, error.what());
  } catch (const std::bad_alloc&) {
    throw RequestError(503, "there is no memory for the call");
  } catch (const c10::OutOfMemoryError& error) {
    throw RequestError(503, last_line(error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    refuse_raised(error.what_without_backtrace());
  } catch (const std::exception& error) {
    refuse_raised(error.what());
  }
}

InferAnswer ServedModel::infer(const InferRequest& request, std::chrono::nanoseconds waited) {
  const auto begin = std::chrono::steady_clock::now();
  const auto add = [](Tally& tally, std::chrono::nanoseconds time) {
    ++tally.count;
    tally.time += time;
  };
  try {
    InferAnswer answer = call(request);
    const auto took = std::chrono::steady_clock::now() - begin;
    const std::scoped_lock lock(mutex_);
    add(times_.succeeded, waited + took);
    add(times_.waited, waited);
    add(times_.computed, took);
    last_call_ms_ =
        std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
            .count();
    if (output_names_.empty()) { // the first call of a model without examples
      for (const WireTensor& output : answer.outputs) {
        outputs_[output.name] = {to_string(output.datatype), std::vector<std::int64_t>(output.shape.size(), -1)};
        output_names_.push_back(output.name);
      }
    }
    return answer;
  } catch (const RequestError&) {
    const std::scoped_lock lock(mutex_);
    add(times_.failed, waited + (std::chrono::steady_clock::now() - begin));
    throw;
  }
}

CallTimes ServedModel::times() const {
  const std::scoped_lock lock(mutex_);
  return times_;
}

json ServedModel::metadata() const {
  json inputs = json::array();
  json outputs = json::array();
  const auto& arguments = module_.schema("forward").arguments();
  const std::scoped_lock lock(mutex_);
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const auto [datatype, shape] = declared(arguments[i].type());
    const auto shown = inputs_.find(arguments[i].name());
    inputs.push_back({{"name", arguments[i].name()},
                      {"datatype", shown != inputs_.end() ? shown->second.datatype : datatype},
                      {"shape", shown != inputs_.end() ? shown->second.shape : shape}});
  }
  for (const std::string& output : output_names_) {
    const Described& described = outputs_.at(output);
    outputs.push_back({{"name", output}, {"datatype", described.datatype}, {"shape", described.shape}});
  }
  return {{"name", name_},
          {"versions", {"1"}},
          {"platform", "pytorch_torchscript"},
          {"inputs", std::move(inputs)},
          {"outputs", std::move(outputs)}};
}

json ServedModel::config() const {
  const json known = metadata();
  const auto described = [](const json& tensors) {
    json list = json::array();
    for (const json& tensor : tensors) {
      const auto& datatype = tensor.at("datatype").get_ref<const std::string&>();
      list.push_back({{"name", tensor.at("name")},
                      {"data_type", "TYPE_" + (datatype == "BYTES" ? "STRING"
                                               : datatype == "ANY" ? "INVALID"
                                                                   : datatype)},
                      {"dims", tensor.at("shape")}});
    }
    return list;
  };
  return {{"name", name_},       {"platform", known.at("platform")},       {"backend", "torch_offload"},
          {"max_batch_size", 0}, {"input", described(known.at("inputs"))}, {"output", described(known.at("outputs"))}};
}

json ServedModel::statistics() const {
  const std::scoped_lock lock(mutex_);
  return {{"name", name_},
          {"version", "1"},
          {"last_inference", last_call_ms_},
          {"inference_count", times_.succeeded.count},
          {"execution_count", times_.succeeded.count},
          {"inference_stats",
           {{"success", tally_json(times_.succeeded)},
            {"fail", tally_json(times_.failed)},
            {"queue", tally_json(times_.waited)},
            {"compute_infer", tally_json(times_.computed)}}},
          {"batch_stats", json::array()}};
}

} // namespace offload::tools
