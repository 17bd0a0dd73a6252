#include <offload/load/pickle.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include <offload/error.h>

namespace offload {

namespace {

constexpr int kMostDepth = 1000; // values are destroyed recursively
constexpr std::size_t kMostDimensions = 64;

/// As much of a value as is needed to follow tensors.
struct Value;
using ValuePtr = std::shared_ptr<Value>;
struct Value {
  enum class Kind { other, integer, text, tuple, list, global, storage } kind = Kind::other;
  std::int64_t integer = 0;
  std::string text;               // of a global: module, space, name
  std::vector<ValuePtr> elements; // of a tuple or a list
  PickledStorage storage;
  int depth = 1;
  bool contained = false; // in another value, which counts on its depth

  bool is_integer() const { return kind == Kind::integer; }
  bool has_at_least(std::size_t count) const { return kind == Kind::tuple && elements.size() >= count; }
};

ValuePtr make_value(Value::Kind kind = Value::Kind::other, std::int64_t integer = 0, std::string text = {}) {
  auto value = std::make_shared<Value>();
  value->kind = kind;
  value->integer = integer;
  value->text = std::move(text);
  return value;
}

/// Follows one pickle.
class Walk {
 public:
  Walk(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  std::optional<PickleSummary> run() {
    if (byte() != 0x80 || byte() != 2) {
      refuse("is no pickle of protocol 2");
    }
    while (true) {
      const unsigned char code = byte();
      if (code == '.') {
        if (stack_.size() != 1 || !marks_.empty()) {
          refuse("ends in the middle of a value");
        }
        return std::move(summary_);
      }
      if (!step(code)) {
        return std::nullopt;
      }
    }
  }

  /// Throws unless the value is a table of source ranges as source_range_serialization.cpp of PyTorch takes it. It
  /// reads them when there is an error to tell, where one more ends the process.
  void check_source_ranges() const {
    const Value& root = *stack_.front();
    const auto& parts = root.elements;
    const bool has_texts = parts.size() == 3 && parts[0]->text == "FORMAT_WITH_STRING_TABLE";
    const Value& ranges = has_texts ? *parts[2] : root;
    const Value* texts = has_texts ? parts[1].get() : nullptr;
    const auto is_text = [](const ValuePtr& value) { return value->kind == Value::Kind::text; };
    bool right = root.has_at_least(1) && ranges.kind == Value::Kind::tuple;
    right = right && (!texts ||
                      (texts->has_at_least(1) && std::all_of(texts->elements.begin(), texts->elements.end(), is_text)));
    std::map<const Value*, std::int64_t> bytes; // of sources, which many ranges share
    for (std::size_t i = 0; right && i < ranges.elements.size(); ++i) {
      const Value& line = *ranges.elements[i]; // (byte, (source, begin, end), tag)
      right = line.has_at_least(2) && line.elements[0]->is_integer() && line.elements[1]->has_at_least(3);
      if (right) {
        const auto& range = line.elements[1]->elements;
        const auto source = bytes.find(range[0].get());
        const std::int64_t length =
            source != bytes.end() ? source->second : bytes[range[0].get()] = source_bytes(*range[0], texts);
        right = range[1]->is_integer() && range[2]->is_integer() && range[1]->integer >= 0 &&
                range[1]->integer <= range[2]->integer && range[1]->integer <= length &&
                range[2]->integer <= length + 1; // what comes from nowhere is one byte of nothing
      }
    }
    if (!right) {
      refuse("is no table of source ranges");
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw ArchiveError("record " + name_ + " " + what + ", at byte " + std::to_string(at_));
  }

  std::string_view take(std::uint64_t count) {
    if (bytes_.size() - at_ < count) {
      refuse("is cut short");
    }
    const std::string_view taken = bytes_.substr(at_, count);
    at_ += count;
    return taken;
  }
  unsigned char byte() { return static_cast<unsigned char>(take(1)[0]); }
  template <typename Number>
  Number number() {
    Number number;
    std::memcpy(&number, take(sizeof number).data(), sizeof number);
    return number;
  }
  std::string line() {
    const std::size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) {
      refuse("is cut short");
    }
    const std::string text(take(end - at_));
    take(1);
    return text;
  }

  /// Values may be taken as far as the last mark.
  ValuePtr pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) {
      refuse("takes a value that is not there");
    }
    ValuePtr value = std::move(stack_.back());
    stack_.pop_back();
    return value;
  }
  const ValuePtr& top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) {
      refuse("takes a value that is not there");
    }
    return stack_.back();
  }
  std::vector<ValuePtr> pop_to_mark() {
    if (marks_.empty()) {
      refuse("ends a group that has not begun");
    }
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<ValuePtr> values(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return values;
  }
  /// The length of a source, (texts, file, line); -1 when it is none.
  static std::int64_t source_bytes(const Value& source, const Value* texts) {
    if (!source.has_at_least(3)) {
      return -1;
    }
    if (!texts) {
      return source.elements[0]->kind == Value::Kind::text ? static_cast<std::int64_t>(source.elements[0]->text.size())
                                                           : -1;
    }
    const auto is_number = [&](const ValuePtr& value) {
      return value->is_integer() && value->integer >= 0 &&
             static_cast<std::uint64_t>(value->integer) < texts->elements.size();
    };
    if (source.elements[0]->kind != Value::Kind::list || !is_number(source.elements[1])) {
      return -1;
    }
    std::int64_t bytes = 0;
    for (const ValuePtr& number : source.elements[0]->elements) {
      if (!is_number(number)) {
        return -1;
      }
      bytes += static_cast<std::int64_t>(texts->elements[number->integer]->text.size());
    }
    return bytes;
  }

  void push(ValuePtr value) { stack_.push_back(std::move(value)); }

  void put_into(Value& container, const std::vector<ValuePtr>& values) {
    if (container.contained && !values.empty()) {
      refuse("changes a value after it was put into another");
    }
    for (const ValuePtr& value : values) {
      value->contained = true;
      container.depth = std::max(container.depth, value->depth + 1);
    }
    if (container.depth > kMostDepth) {
      refuse("nests too deep");
    }
    if (container.kind == Value::Kind::list) {
      container.elements.insert(container.elements.end(), values.begin(), values.end());
    }
  }
  void push_container_of(const std::vector<ValuePtr>& values) {
    push(make_value());
    put_into(*stack_.back(), values);
  }
  void push_tuple(std::vector<ValuePtr> elements) {
    push(make_value(Value::Kind::tuple));
    put_into(*stack_.back(), elements);
    stack_.back()->elements = std::move(elements);
  }
  void push_tuple_of(int count) {
    std::vector<ValuePtr> elements(count);
    for (int i = count - 1; i >= 0; --i) {
      elements[i] = pop();
    }
    push_tuple(std::move(elements));
  }
  void put(std::uint64_t id) {
    if (id > memo_.size()) { // writers count up; a gap would be filled
      refuse("numbers a value " + std::to_string(id) + " where the next is " + std::to_string(memo_.size()));
    }
    if (id == memo_.size()) {
      memo_.emplace_back();
    }
    memo_[id] = top();
  }
  void get(std::uint64_t id) {
    if (id >= memo_.size()) {
      refuse("names value " + std::to_string(id) + " of " + std::to_string(memo_.size()));
    }
    push(memo_[id]);
  }

  /// False when the code is not known here.
  bool step(unsigned char code) {
    switch (code) {
      case ']':
        push(make_value(Value::Kind::list));
        return true;
      case '}':
      case 'N':
      case 0x88:
      case 0x89:
        push(make_value());
        return true;
      case ')':
        push_tuple({});
        return true;
      case 'q':
        put(number<std::uint8_t>());
        return true;
      case 'r':
        put(number<std::uint32_t>());
        return true;
      case 'h':
        get(number<std::uint8_t>());
        return true;
      case 'j':
        get(number<std::uint32_t>());
        return true;
      case '(':
        marks_.push_back(stack_.size());
        return true;
      case 'K':
        push(make_value(Value::Kind::integer, number<std::uint8_t>()));
        return true;
      case 'M':
        push(make_value(Value::Kind::integer, number<std::uint16_t>()));
        return true;
      case 'J':
        push(make_value(Value::Kind::integer, number<std::int32_t>()));
        return true;
      case 0x8a: {
        const int bytes = number<std::uint8_t>();
        if (bytes != 8) {
          refuse("holds an integer of " + std::to_string(bytes) + " bytes");
        }
        push(make_value(Value::Kind::integer, number<std::int64_t>()));
        return true;
      }
      case 'G':
        number<double>();
        push(make_value());
        return true;
      case 'X': {
        const auto bytes = number<std::uint32_t>();
        push(make_value(Value::Kind::text, 0, std::string(take(bytes))));
        return true;
      }
      case 't':
        push_tuple(pop_to_mark());
        return true;
      case 0x85:
      case 0x86:
      case 0x87:
        push_tuple_of(code - 0x84);
        return true;
      case 'e': {
        const auto values = pop_to_mark();
        put_into(*top(), values);
        return true;
      }
      case 'a': {
        const ValuePtr value = pop();
        put_into(*top(), {value});
        return true;
      }
      case 'l':
      case 'd': {
        const auto values = pop_to_mark();
        check_pairs(code == 'd', values);
        push_container_of(values);
        return true;
      }
      case 'u': {
        const auto values = pop_to_mark();
        check_pairs(true, values);
        put_into(*top(), values);
        return true;
      }
      case 's': {
        const ValuePtr value = pop();
        const ValuePtr key = pop();
        put_into(*top(), {key, value});
        return true;
      }
      case 'c': {
        const std::string module = line();
        const std::string global = module + " " + line();
        summary_.globals.insert(global);
        push(make_value(Value::Kind::global, 0, global));
        return true;
      }
      case 0x81: // makes an object of a class and an empty tuple
        pop();
        top();
        return true;
      case 'b':
      case 'R':
        apply();
        return true;
      case 'Q':
        push_storage(pop());
        return true;
      default:
        return false;
    }
  }

  void check_pairs(bool pairs, const std::vector<ValuePtr>& values) const {
    if (pairs && values.size() % 2 != 0) {
      refuse("holds a key without a value");
    }
  }

  /// What a reader calls a function of, or fills an object with.
  void apply() {
    const ValuePtr argument = pop();
    const ValuePtr function = pop();
    if (function->kind != Value::Kind::global) {
      refuse("calls what is no function");
    }
    if (function->text == "torch._utils _rebuild_tensor_v2") {
      check_tensor(*argument);
    }
    if (function->text.starts_with("torch.jit._pickle build_") && !argument->has_at_least(1)) {
      refuse("calls a function with nothing");
    }
    if (function->text == "torch.jit._pickle build_intlist") {
      push(argument->elements[0]);
    } else {
      push_container_of({argument});
    }
  }

  void push_storage(const ValuePtr& id) {
    const auto& parts = id->elements;
    if (id->kind != Value::Kind::tuple || parts.size() < 5 || parts[0]->text != "storage" ||
        parts[1]->kind != Value::Kind::global || parts[2]->kind != Value::Kind::text ||
        parts[3]->kind != Value::Kind::text || parts[4]->kind != Value::Kind::integer || parts[4]->integer < 0) {
      refuse("refers to a storage in a way that is not known");
    }
    const std::string& type = parts[1]->text;
    const ValuePtr value = make_value(Value::Kind::storage);
    value->storage = {parts[2]->text, type.substr(type.find(' ') + 1), static_cast<std::uint64_t>(parts[4]->integer)};
    summary_.storages.push_back(value->storage);
    push(value);
  }

  /// (storage, offset, sizes, strides, ...), in elements.
  void check_tensor(const Value& arguments) {
    const auto& parts = arguments.elements;
    if (arguments.kind != Value::Kind::tuple || parts.size() < 4 || parts[0]->kind != Value::Kind::storage ||
        parts[1]->kind != Value::Kind::integer || parts[2]->kind != Value::Kind::tuple ||
        parts[3]->kind != Value::Kind::tuple || parts[2]->elements.size() != parts[3]->elements.size()) {
      refuse("makes a tensor in a way that is not known");
    }
    const auto& sizes = parts[2]->elements;
    const auto& strides = parts[3]->elements;
    const auto is_count = [](const ValuePtr& v) { return v->kind == Value::Kind::integer && v->integer >= 0; };
    if (parts[1]->integer < 0 || sizes.size() > kMostDimensions || !std::all_of(sizes.begin(), sizes.end(), is_count) ||
        !std::all_of(strides.begin(), strides.end(), is_count)) {
      refuse("makes a tensor of sizes that are none");
    }
    const PickledStorage& storage = parts[0]->storage;
    if (std::any_of(sizes.begin(), sizes.end(), [](const ValuePtr& size) { return size->integer == 0; })) {
      return;
    }
    auto last = static_cast<unsigned __int128>(parts[1]->integer); // of 126 bits at most before it is refused
    for (std::size_t i = 0; i < sizes.size() && last < storage.numel; ++i) {
      last += static_cast<unsigned __int128>(sizes[i]->integer - 1) * static_cast<std::uint64_t>(strides[i]->integer);
    }
    if (last >= storage.numel) {
      refuse("makes a tensor that is larger than its storage " + storage.key);
    }
  }

  const std::string_view bytes_;
  const std::string& name_;
  std::uint64_t at_ = 0;
  std::vector<ValuePtr> stack_;
  std::vector<std::size_t> marks_;
  std::vector<ValuePtr> memo_;
  PickleSummary summary_;
};

} // namespace

std::optional<PickleSummary> read_pickle(std::string_view bytes, const std::string& name) {
  return Walk(bytes, name).run();
}

void check_source_ranges(std::string_view bytes, const std::string& name) {
  Walk walk(bytes, name);
  const auto summary = walk.run();
  const std::set<std::string> known = {"torch.jit._pickle build_intlist"};
  if (!summary || !std::includes(known.begin(), known.end(), summary->globals.begin(), summary->globals.end())) {
    throw ArchiveError("record " + name + " holds what a table of source ranges never does");
  }
  walk.check_source_ranges();
}

std::uint64_t element_bytes(std::string_view type) {
  static const std::map<std::string_view, std::uint64_t> kBytes = {
      {"BoolStorage", 1},
      {"ByteStorage", 1},
      {"CharStorage", 1},
      {"ShortStorage", 2},
      {"IntStorage", 4},
      {"LongStorage", 8},
      {"UInt16Storage", 2},
      {"UInt32Storage", 4},
      {"UInt64Storage", 8},
      {"HalfStorage", 2},
      {"BFloat16Storage", 2},
      {"FloatStorage", 4},
      {"DoubleStorage", 8},
      {"ComplexHalfStorage", 4},
      {"ComplexFloatStorage", 8},
      {"ComplexDoubleStorage", 16},
      {"Float8_e5m2Storage", 1},
      {"Float8_e4m3fnStorage", 1},
      {"Float8_e5m2fnuzStorage", 1},
      {"Float8_e4m3fnuzStorage", 1},
      {"Float8_e8m0fnuStorage", 1},
  };
  const auto known = kBytes.find(type);
  return known == kBytes.end() ? 0 : known->second;
}

} // namespace offload
