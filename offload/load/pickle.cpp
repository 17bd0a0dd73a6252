#include <offload/load/pickle.h>

#include <cstring>
#include <utility>

#include <offload/error.h>
#include <offload/load/code.h>
#include <offload/load/storage_types.h>

namespace offload {

namespace {

constexpr int kMostDepth = 1000; // values are destroyed recursively
constexpr std::size_t kMostDimensions = 64;

using Value = PickledValue;
using Kind = Value::Kind;
using ValuePtr = std::shared_ptr<Value>;

ValuePtr make_value(Kind kind = Kind::other, std::int64_t integer = 0, std::string text = {}) {
  auto value = std::make_shared<Value>();
  value->kind = kind;
  value->integer = integer;
  value->text = std::move(text);
  return value;
}

/// Follows one pickle.
class Walk {
 public:
  Walk(std::string_view bytes, const std::string& name, std::uint64_t& steps)
      : bytes_(bytes), name_(name), steps_(steps) {}

  std::optional<PickleSummary> run() {
    if (byte() != 0x80 || byte() != 2) {
      refuse("is no pickle of protocol 2");
    }
    for (;; --steps_) {
      if (steps_ == 0) {
        refuse("takes more steps than the " + std::to_string(kMostPickleSteps) + " that an archive may take");
      }
      const unsigned char code = byte();
      if (code == '.') {
        if (stack_.size() != 1 || !marks_.empty()) {
          refuse("ends in the middle of a value");
        }
        summary_.root = stack_.front();
        return std::move(summary_);
      }
      if (ValuePtr made = make(code)) {
        stack_.push_back(std::move(made));
      } else if (!follow(code)) {
        return std::nullopt;
      }
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
  const ValuePtr& top() const {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) {
      refuse("takes a value that is not there");
    }
    return stack_.back();
  }
  ValuePtr pop() {
    ValuePtr value = top();
    stack_.pop_back();
    return value;
  }
  std::vector<ValuePtr> pop(int count) {
    std::vector<ValuePtr> values(count);
    std::generate(values.rbegin(), values.rend(), [&] { return pop(); });
    return values;
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
  std::vector<ValuePtr> pop_pairs_to_mark() {
    auto values = pop_to_mark();
    if (values.size() % 2 != 0) {
      refuse("holds a key without a value");
    }
    return values;
  }

  void put_into(Value& container, const std::vector<ValuePtr>& values) {
    if (container.kind == Kind::constant) {
      refuse("puts values into what can hold none");
    }
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
    if (container.kind == Kind::list) {
      container.elements.insert(container.elements.end(), values.begin(), values.end());
    }
  }
  void put_into_top(const std::vector<ValuePtr>& values) { put_into(*top(), values); }
  ValuePtr make_container(const std::vector<ValuePtr>& values) {
    ValuePtr container = make_value();
    put_into(*container, values);
    return container;
  }
  ValuePtr make_tuple(std::vector<ValuePtr> elements) {
    ValuePtr tuple = make_value(Kind::tuple);
    put_into(*tuple, elements);
    tuple->elements = std::move(elements);
    return tuple;
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
  const ValuePtr& get(std::uint64_t id) const {
    if (id >= memo_.size()) {
      refuse("names value " + std::to_string(id) + " of " + std::to_string(memo_.size()));
    }
    return memo_[id];
  }

  /// The value that a code makes; null when it makes none.
  ValuePtr make(unsigned char code) {
    switch (code) {
      case ']':
        return make_value(Kind::list);
      case '}':
        return make_value();
      case 'N':
      case 0x88:
      case 0x89:
        return constant_;
      case 'K':
        return make_value(Kind::integer, number<std::uint8_t>());
      case 'M':
        return make_value(Kind::integer, number<std::uint16_t>());
      case 'J':
        return make_value(Kind::integer, number<std::int32_t>());
      case 0x8a:
        if (const int bytes = byte(); bytes != 8) {
          refuse("holds an integer of " + std::to_string(bytes) + " bytes");
        }
        return make_value(Kind::integer, number<std::int64_t>());
      case 'G':
        number<double>();
        return make_value();
      case 'X':
        return make_value(Kind::text, 0, std::string(take(number<std::uint32_t>())));
      case 'c':
        return make_global();
      case ')':
        return make_tuple({});
      case 't':
        return make_tuple(pop_to_mark());
      case 0x85:
      case 0x86:
      case 0x87:
        return make_tuple(pop(code - 0x84));
      case 'l':
        return make_container(pop_to_mark());
      case 'd':
        return make_container(pop_pairs_to_mark());
      case 'h':
        return get(number<std::uint8_t>());
      case 'j':
        return get(number<std::uint32_t>());
      case 'b':
      case 'R':
        return apply();
      case 'Q':
        return make_storage(*pop());
      default:
        return nullptr;
    }
  }

  /// Does what another code says. False when that is not known here.
  bool follow(unsigned char code) {
    switch (code) {
      case 'q':
        put(number<std::uint8_t>());
        return true;
      case 'r':
        put(number<std::uint32_t>());
        return true;
      case '(':
        marks_.push_back(stack_.size());
        return true;
      case 'e':
        put_into_top(pop_to_mark());
        return true;
      case 'a':
        put_into_top(pop(1));
        return true;
      case 'u':
        put_into_top(pop_pairs_to_mark());
        return true;
      case 's': // a key and a value
        put_into_top(pop(2));
        return true;
      case 0x81: // makes an object of a class and an empty tuple
        pop();
        top();
        return true;
      default:
        return false;
    }
  }

  ValuePtr make_global() {
    const std::string module = line();
    const std::string global = module + " " + line();
    if (global == "torch._tensor _rebuild_from_type_v2") { // the reader would take it for the global after it
      refuse("holds a tensor of a Python class, which TorchScript does not write");
    }
    summary_.globals.insert(global);
    return make_value(Kind::global, 0, global);
  }

  /// What a reader calls a function of, or fills an object with.
  ValuePtr apply() {
    const ValuePtr argument = pop();
    const ValuePtr function = pop();
    if (function->kind != Kind::global) {
      refuse("calls what is no function");
    }
    if (function->text == "torch._utils _rebuild_tensor_v2" || function->text == "torch._utils _rebuild_qtensor") {
      check_tensor(*argument);
    }
    if (function->text == "torch.jit._pickle restore_type_tag" && argument->is_tuple_of(2)) {
      check_code(argument->elements[1]->text, name_); // by the same parser
    }
    if (function->text.starts_with("torch.jit._pickle build_") && !argument->is_tuple_of(1)) {
      refuse("calls a function with nothing");
    }
    return function->text == "torch.jit._pickle build_intlist" ? argument->elements[0] : make_container({argument});
  }

  ValuePtr make_storage(const Value& id) {
    const auto& parts = id.elements;
    if (!id.is_tuple_of({Kind::text, Kind::global, Kind::text, Kind::text, Kind::integer}) ||
        parts[0]->text != "storage" || parts[4]->integer < 0) {
      refuse("refers to a storage in a way that is not known");
    }
    const std::string& type = parts[1]->text;
    ValuePtr value = make_value(Kind::storage);
    value->storage = std::make_shared<const PickledStorage>(
        PickledStorage{parts[2]->text, type.substr(type.find(' ') + 1), static_cast<std::uint64_t>(parts[4]->integer)});
    summary_.storages.push_back(*value->storage);
    return value;
  }

  /// (storage, offset, sizes, strides, ...), in elements.
  void check_tensor(const Value& arguments) {
    const auto& parts = arguments.elements;
    if (!arguments.is_tuple_of({Kind::storage, Kind::integer, Kind::tuple, Kind::tuple}) ||
        parts[2]->elements.size() != parts[3]->elements.size()) {
      refuse("makes a tensor in a way that is not known");
    }
    const auto& sizes = parts[2]->elements;
    const auto& strides = parts[3]->elements;
    const auto is_count = [](const ValuePtr& v) { return v->kind == Kind::integer && v->integer >= 0; };
    if (parts[1]->integer < 0 || sizes.size() > kMostDimensions || !std::all_of(sizes.begin(), sizes.end(), is_count) ||
        !std::all_of(strides.begin(), strides.end(), is_count)) {
      refuse("makes a tensor of sizes that are none");
    }
    const PickledStorage& storage = *parts[0]->storage;
    const auto held = static_cast<unsigned __int128>(storage.numel) * packed_elements(storage.type);
    if (std::any_of(sizes.begin(), sizes.end(), [](const ValuePtr& size) { return size->integer == 0; })) {
      return;
    }
    auto last = static_cast<unsigned __int128>(parts[1]->integer); // of 126 bits at most before it is refused
    for (std::size_t i = 0; i < sizes.size() && last < held; ++i) {
      last += static_cast<unsigned __int128>(sizes[i]->integer - 1) * static_cast<std::uint64_t>(strides[i]->integer);
    }
    if (last >= held) {
      refuse("makes a tensor that is larger than its storage " + storage.key +
             ", or another tensor of that storage has elements of another size, which TorchScript can not load");
    }
  }

  const std::string_view bytes_;
  const std::string& name_;
  std::uint64_t& steps_; // left
  std::uint64_t at_ = 0;
  std::vector<ValuePtr> stack_;
  std::vector<std::size_t> marks_;
  std::vector<ValuePtr> memo_;
  const ValuePtr constant_ = make_value(Kind::constant); // None, True and False
  PickleSummary summary_;
};

} // namespace

std::optional<PickleSummary> read_pickle(std::string_view bytes, const std::string& name, std::uint64_t& steps) {
  return Walk(bytes, name, steps).run();
}

} // namespace offload
