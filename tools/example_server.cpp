// A server that keeps models under one budget: what embedding the library takes. It is built against an installed one,
// as tests/installed/CMakeLists.txt does.
//
// usage: example_server PORT VRAM MODEL.pt...      prints "listening on PORT"; 0 takes any free one. VRAM as in 8GiB
//   POST /forward/NAME   {"shape": [2, 512], "values": [...]}, float32; the answer has the same form. NAME as in
//   NAME.pt GET /                the models, where their weights are, and what has been measured

#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <httplib.h>
#include <offload/module.h>
#include <offload/pool.h>
#include <offload/version.h>

#include <exception>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace {

at::Tensor tensor_of(const nlohmann::json& json) {
  const auto shape = json.at("shape").get<std::vector<std::int64_t>>();
  auto values = json.at("values").get<std::vector<float>>();
  const std::int64_t count = c10::multiply_integers(shape);
  if (count != static_cast<std::int64_t>(values.size())) {
    throw offload::InputError("values: " + std::to_string(values.size()) + " are given, the shape takes " +
                              std::to_string(count));
  }
  return at::from_blob(values.data(), shape).clone();
}

nlohmann::json json_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.cpu().to(at::kFloat).contiguous(); // waits for the device
  return {
      {"shape", tensor.sizes().vec()},
      {"values", std::vector<float>(values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel())}};
}

/// Calls on one stream come one after another; each thread of the server has its own.
std::optional<c10::Stream> own_stream(c10::Device device) {
  if (!device.is_cuda()) {
    return std::nullopt;
  }
  thread_local c10::Stream own = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index());
  return own;
}

void serve(const offload::Pool& pool, std::map<std::string, offload::Module> models, int port) {
  httplib::Server server;
  server.Post("/forward/(.*)", [&](const httplib::Request& request, httplib::Response& response) {
    const auto found = models.find(request.matches[1]);
    if (found == models.end()) {
      response.status = 404;
      response.set_content("there is no model '" + request.matches[1].str() + "'", "text/plain");
      return;
    }
    offload::Module& model = found->second;
    try {
      const at::Tensor input = tensor_of(nlohmann::json::parse(request.body));
      const c10::cuda::OptionalCUDAStreamGuard stream(own_stream(model.device()));
      const at::Tensor output = model.forward({input.to(model.device())}).toTensor();
      response.set_content(json_of(output).dump(), "application/json");
    } catch (const offload::BudgetError& error) { // this call does not fit, whatever gives way to it
      response.status = 503;
      response.set_content(error.what(), "text/plain");
    } catch (const std::exception& error) {
      response.status = 400;
      response.set_content(error.what(), "text/plain");
    }
  });
  server.Get("/", [&](const httplib::Request&, httplib::Response& response) {
    std::ostringstream text;
    text << "torch-offload " << offload::version() << ", " << pool.vram_budget() << " bytes of " << pool.device()
         << " for all models\n"
         << pool.stats();
    for (const auto& [name, model] : models) {
      text << "\n" << name << ": " << model.report() << model.placement();
    }
    response.set_content(text.str(), "text/plain");
  });
  const int bound = port == 0                                ? server.bind_to_any_port("127.0.0.1")
                    : server.bind_to_port("127.0.0.1", port) ? port
                                                             : -1;
  if (bound < 0) {
    throw offload::InputError("port " + std::to_string(port) + " can not be had: give another, or 0");
  }
  std::cout << "listening on " << bound << std::endl;
  server.listen_after_bind();
}

} // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: example_server PORT VRAM MODEL.pt...\n";
    return 2;
  }
  try {
    offload::PoolOptions budget;
    budget.vram_budget = offload::parse_bytes(argv[2]);
    offload::Options options;
    options.pool = std::make_shared<offload::Pool>(budget);
    std::map<std::string, offload::Module> models;
    for (int i = 3; i < argc; ++i) {
      models.emplace(std::filesystem::path(argv[i]).stem(), offload::load(argv[i], options));
    }
    serve(*options.pool, std::move(models), std::stoi(argv[1]));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
  return 0;
}
