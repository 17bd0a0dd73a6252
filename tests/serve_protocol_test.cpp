#include <tools/serve_protocol.h>

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

namespace offload::tools {
namespace {

/// What a request is refused with; empty when it is understood.
std::string refusal(const std::string& body, const std::optional<std::string>& json_bytes = std::nullopt) {
  try {
    parse_infer_request(body, json_bytes);
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status(), 400);
    return error.what();
  }
  return "";
}

/// Of a request with one input that has these members.
std::string refusal_of_input(const std::string& members) { return refusal(R"({"inputs":[{)" + members + "}]}"); }

template <typename Element>
std::vector<Element> elements_of(const WireTensor& tensor) {
  std::vector<Element> elements(tensor.bytes().size() / sizeof(Element));
  std::memcpy(elements.data(), tensor.bytes().data(), tensor.bytes().size());
  return elements;
}

template <typename Element>
std::vector<Element> read_json(const std::string& datatype, const std::string& data, std::size_t count) {
  const std::string body = R"({"inputs":[{"name":"x","datatype":")" + datatype + R"(","shape":[)" +
                           std::to_string(count) + R"(],"data":)" + data + "}]}";
  return elements_of<Element>(parse_infer_request(body, std::nullopt).inputs.at(0));
}

std::string bytes_of(const auto& elements) {
  return {reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(elements[0])};
}

testing::AssertionResult says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos ? testing::AssertionSuccess()
                                              : testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

TEST(ServeProtocol, ReadsNumbersOfJsonAsTheirDatatype) {
  EXPECT_EQ(read_json<float>("FP32", "[1, -2.5, 3e2]", 3), (std::vector<float>{1, -2.5, 300}));
  EXPECT_EQ(read_json<double>("FP64", "[[0.1], [18446744073709551615]]", 2), (std::vector<double>{0.1, 0x1p64}));
  EXPECT_EQ(
      read_json<std::int64_t>("INT64", "[-9223372036854775808, 9223372036854775807]", 2),
      (std::vector<std::int64_t>{std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}));
  EXPECT_EQ(read_json<std::uint64_t>("UINT64", "[18446744073709551615]", 1), (std::vector<std::uint64_t>{~0ULL}));
  EXPECT_EQ(read_json<std::int8_t>("INT8", "[-128, 127]", 2), (std::vector<std::int8_t>{-128, 127}));
  EXPECT_EQ(read_json<std::uint8_t>("BOOL", "[true, 0, 1, false]", 4), (std::vector<std::uint8_t>{1, 0, 1, 0}));
  EXPECT_EQ(read_json<std::uint16_t>("UINT16", "[[[1, 2], [3, 65535]]]", 4),
            (std::vector<std::uint16_t>{1, 2, 3, 65535}));
}

TEST(ServeProtocol, KeepsDataApartFromOtherMembersOfThatName) {
  const InferRequest request = parse_infer_request(
      R"({"id":"7","parameters":{"data":[1,{"data":2}]},"inputs":[
          {"data":[[1],[2]],"parameters":{"data":[5]},"name":"x","shape":[2,1],"datatype":"INT32"},
          {"name":"y","shape":[],"datatype":"INT32","data":[3]}],
          "outputs":[{"name":"z","parameters":{"binary_data":true}}]})",
      std::nullopt);
  EXPECT_EQ(request.id, "7");
  EXPECT_EQ(elements_of<std::int32_t>(request.inputs.at(0)), (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(elements_of<std::int32_t>(request.inputs.at(1)), (std::vector<std::int32_t>{3}));
  EXPECT_TRUE(request.inputs[1].shape.empty());
  EXPECT_EQ(request.outputs.at(0).name, "z");
  EXPECT_EQ(request.outputs.at(0).binary, true);
}

TEST(ServeProtocol, ReadsBytesAfterTheJsonInTheOrderOfInputs) {
  const std::string json = R"({"parameters":{"binary_data_output":true},"inputs":[
      {"name":"x","datatype":"FP16","shape":[2],"parameters":{"binary_data_size":4}},
      {"name":"n","datatype":"INT8","shape":[1],"data":[9]},
      {"name":"e","datatype":"FP32","shape":[0,3],"parameters":{"binary_data_size":0}},
      {"name":"s","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":11}}]})";
  const std::string body = json + "abcd" + std::string("\3\0\0\0one\0\0\0\0", 11);
  const InferRequest request = parse_infer_request(body, std::to_string(json.size()));
  EXPECT_TRUE(request.binary);
  EXPECT_EQ(request.inputs.at(0).bytes(), "abcd");
  EXPECT_EQ(request.inputs.at(1).bytes(), "\x09");
  EXPECT_EQ(request.inputs.at(2).bytes(), "");
  EXPECT_EQ(request.inputs.at(3).strings, (std::vector<std::string>{"one", ""}));
}

TEST(ServeProtocol, RefusesBytesThatDoNotFitTheirShape) {
  const auto with = [](const std::string& input, const std::string& tail) {
    const std::string json = R"({"inputs":[{"name":"x",)" + input + "}]}";
    return refusal(json + tail, std::to_string(json.size()));
  };
  EXPECT_TRUE(says(with(R"("datatype":"FP32","shape":[2],"parameters":{"binary_data_size":7})", "1234567"), "takes 8"));
  EXPECT_TRUE(
      says(with(R"("datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8})", "1234567"), "7 are left"));
  EXPECT_TRUE(
      says(with(R"("datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4})", "1234567"), "3 bytes more"));
  EXPECT_TRUE(says(with(R"("datatype":"FP32","shape":[1],"parameters":{"binary_data_size":-4})", "1234"), "-4"));
  EXPECT_TRUE(says(with(R"("datatype":"BOOL","shape":[1],"parameters":{"binary_data_size":1})", "\2"), "0 or 1"));
  EXPECT_TRUE(says(with(R"("datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":3})", "abc"), "length"));
  EXPECT_TRUE(says(with(R"("datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5})", "\xFF\xFF\xFF\xFF!"),
                   "4294967295"));
  EXPECT_TRUE(says(with(R"("datatype":"BYTES","shape":[9],"parameters":{"binary_data_size":4})", std::string(4, '\0')),
                   "1 strings"));
}

TEST(ServeProtocol, RefusesLengthsOfTheJsonThatLie) {
  EXPECT_TRUE(says(refusal("{}", "3"), "body has 2 bytes"));
  for (const char* text : {"", "-1", "2 ", "0x2", "two", "18446744073709551616"}) {
    EXPECT_TRUE(says(refusal("{}", text), "no number of bytes"));
  }
  EXPECT_TRUE(says(refusal("{}abc", "2"), "3 bytes more"));
  EXPECT_TRUE(says(refusal("{}", "1"), "no JSON"));
}

TEST(ServeProtocol, NamesTheElementThatItsDatatypeCanNotHold) {
  const auto one = [](const std::string& datatype, const std::string& element) {
    return refusal_of_input(R"("name":"x","datatype":")" + datatype + R"(","shape":[2],"data":[1,)" + element + "]");
  };
  EXPECT_TRUE(says(one("INT8", "128"), "'x': element 1 is 128; INT8 holds whole numbers from -128 to 127"));
  EXPECT_TRUE(says(one("UINT32", "-1"), "from 0 to 4294967295"));
  EXPECT_TRUE(says(one("INT64", "9223372036854775808"), "element 1"));
  EXPECT_TRUE(says(one("INT64", "1.5"), "1.5"));
  EXPECT_TRUE(says(one("INT64", "true"), "true"));
  EXPECT_TRUE(says(one("FP32", "1e39"), "too large"));
  EXPECT_TRUE(says(one("FP64", "1e309"), "no JSON"));
  EXPECT_TRUE(says(one("FP64", "\"1\""), "no number"));
  EXPECT_TRUE(says(one("FP64", "null"), "null"));
  EXPECT_TRUE(says(one("FP64", "NaN"), "no JSON"));
  EXPECT_TRUE(says(one("BOOL", "2"), "true, false, 0 and 1"));
  EXPECT_TRUE(says(one("FP16", "1"), "binary_data_size"));
  EXPECT_TRUE(says(one("BYTES", "\"a\""), "BYTES holds strings"));
  EXPECT_TRUE(says(one("FP32", "2, 3"), "3 elements are in data, and its shape takes 2"));
}

TEST(ServeProtocol, RefusesWhatIsNoRequest) {
  EXPECT_TRUE(says(refusal(""), "no JSON"));
  EXPECT_TRUE(says(refusal("[]"), "no JSON object"));
  EXPECT_TRUE(says(refusal("{} {}"), "no JSON"));
  EXPECT_TRUE(says(refusal("{\"id\":\"\xFF\"}"), "no JSON"));
  EXPECT_TRUE(says(refusal(R"({"id":7})"), "id is no string"));
  EXPECT_TRUE(says(refusal(R"({"inputs":{}})"), "inputs: a list"));
  EXPECT_TRUE(says(refusal(R"({"inputs":[1]})"), "inputs: a list"));
  EXPECT_TRUE(says(refusal(R"({"inputs":[],"inputs":[]})"), "two lists"));
  EXPECT_TRUE(says(refusal(R"({"outputs":[{}]})"), "outputs[0].name is missing"));
  EXPECT_TRUE(says(refusal(R"({"outputs":[{"name":"x","parameters":{"binary_data":1}}]})"), "true or false"));
  EXPECT_TRUE(says(refusal(R"({"outputs":[{"name":"x","parameters":{"classification":3}}]})"), "classification"));
  EXPECT_TRUE(says(refusal(R"({"parameters":{"sequence_id":3}})"), "sequence_id"));
  EXPECT_TRUE(says(refusal(R"({"outputs":[{"name":"x"},{"name":"x"}]})"), "asked for twice"));
  EXPECT_TRUE(says(refusal_of_input(R"("datatype":"FP32","shape":[1],"data":[1])"), "inputs[0].name is missing"));
  EXPECT_TRUE(says(refusal_of_input(R"("name":"x","datatype":"FP31","shape":[1],"data":[1])"), "FP31"));
  EXPECT_TRUE(says(refusal_of_input(R"("name":"x","datatype":"FP32","data":[1])"), "shape"));
  EXPECT_TRUE(says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[-1],"data":[1])"), "-1 is no size"));
  EXPECT_TRUE(says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[1.0],"data":[1])"), "1.0 is no size"));
  EXPECT_TRUE(
      says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[4294967296,4294967296],"data":[1])"), "memory"));
  EXPECT_TRUE(
      says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[0,9223372036854775807,4],"data":[])"), "memory"));
  EXPECT_TRUE(says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[1])"), "neither"));
  EXPECT_TRUE(says(
      refusal_of_input(R"("name":"x","datatype":"FP32","shape":[1],"data":[1],"parameters":{"binary_data_size":4})"),
      "both"));
  EXPECT_TRUE(says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[1],"data":1)"), "a list of elements"));
  EXPECT_TRUE(
      says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[1],"data":[{"a":1}])"), "a list of elements"));
  EXPECT_TRUE(says(refusal_of_input(R"("name":"x","datatype":"FP32","shape":[2],"data":[1],"data":[1])"), "two lists"));
  EXPECT_TRUE(says(refusal(R"({"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]},
                                    {"name":"x","datatype":"FP32","shape":[1],"data":[1]}]})"),
                   "given twice"));
}

TEST(ServeProtocol, RefusesWhatIsNestedWithoutEnd) {
  EXPECT_TRUE(says(refusal(std::string(1000000, '[')), "deep"));
  EXPECT_TRUE(says(refusal(R"({"inputs":[{"data":)" + std::string(1000000, '[')), "deep"));
  std::string objects;
  for (int i = 0; i < 100000; ++i) {
    objects += R"({"a":)";
  }
  EXPECT_TRUE(says(refusal(objects), "deep"));
}

WireTensor output(const std::string& name, Datatype datatype, std::vector<std::int64_t> shape, std::string bytes) {
  WireTensor tensor;
  tensor.name = name;
  tensor.datatype = datatype;
  tensor.shape = std::move(shape);
  tensor.owned = std::move(bytes);
  return tensor;
}

TEST(ServeProtocol, WritesOutputsAsTheyWereAskedFor) {
  InferAnswer answer{"m", "7", {}};
  answer.outputs.push_back(output("a", Datatype::fp32, {2}, bytes_of(std::vector<float>{0.1F, -3})));
  answer.outputs.push_back(output("b", Datatype::int16, {1, 2}, bytes_of(std::vector<std::int16_t>{-1, 7})));
  answer.outputs.push_back(output("c", Datatype::boolean, {2}, std::string("\1\0", 2)));
  InferRequest request;
  request.outputs = {{"b", true}, {"c", false}, {"a", std::nullopt}};
  const WireAnswer mixed = write_infer_answer(answer, request);
  ASSERT_TRUE(mixed.json_bytes.has_value());
  EXPECT_EQ(mixed.body.substr(*mixed.json_bytes), bytes_of(std::vector<std::int16_t>{-1, 7}));
  const auto json = nlohmann::json::parse(mixed.body.substr(0, *mixed.json_bytes));
  EXPECT_EQ(json.at("id"), "7");
  EXPECT_EQ(json.at("outputs").at(0).at("parameters").at("binary_data_size"), 4);
  EXPECT_EQ(json.at("outputs").at(1).at("data"), (nlohmann::json{true, false}));
  EXPECT_EQ(json.at("outputs").at(2).at("data").at(0).get<float>(), 0.1F);
  EXPECT_EQ(json.at("outputs").at(2).at("shape"), nlohmann::json{2});
  const WireAnswer plain = write_infer_answer(answer, {});
  EXPECT_FALSE(plain.json_bytes.has_value());
  EXPECT_EQ(nlohmann::json::parse(plain.body).at("outputs").size(), 3);
  InferRequest binary;
  binary.binary = true;
  WireTensor strings = output("s", Datatype::bytes, {2}, "");
  strings.strings = {"one", ""};
  answer.outputs.push_back(strings);
  const WireAnswer all = write_infer_answer(answer, binary);
  EXPECT_EQ(all.body.size() - *all.json_bytes, 8 + 4 + 2 + 11);
  EXPECT_EQ(all.body.substr(all.body.size() - 11), std::string("\3\0\0\0one\0\0\0\0", 11));
  EXPECT_TRUE(says(all.body, R"({"binary_data_size":11})"));
}

TEST(ServeProtocol, RefusesOutputsThatJsonCanNotCarryOrThatThereAreNot) {
  const auto refused = [](const WireTensor& tensor, const InferRequest& request) {
    try {
      write_infer_answer({"m", "", {tensor}}, request);
    } catch (const RequestError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto nan =
      output("a", Datatype::fp32, {1}, bytes_of(std::vector<float>{std::numeric_limits<float>::quiet_NaN()}));
  EXPECT_TRUE(says(refused(nan, {}), "binary_data true"));
  EXPECT_TRUE(says(refused(output("a", Datatype::fp16, {1}, "ab"), {}), "FP16 has no form in JSON"));
  InferRequest other;
  other.outputs = {{"z", std::nullopt}};
  EXPECT_TRUE(says(refused(nan, other), "there is no 'z'; there are a"));
  InferRequest binary;
  binary.binary = true;
  EXPECT_EQ(refused(nan, binary), "");
}

TEST(ServeProtocol, SaysWhatIsWrongInBytesThatAreNoText) {
  const auto body = nlohmann::json::parse(error_body("no \xFF\n\"text\""));
  EXPECT_EQ(body.at("error"), "no \xEF\xBF\xBD\n\"text\"");
}

} // namespace
} // namespace offload::tools
