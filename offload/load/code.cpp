#include <offload/load/code.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

#include <offload/error.h>

namespace offload {

namespace {

/// A fourth of what ends a stack of 8 MiB where it is worst: brackets and prefix operators, a row of infix operators,
/// blocks.
constexpr std::size_t kMostNesting = 1000;

/// What is written as a word, and is no value.
constexpr std::array<std::string_view, 8> kOperators = {"if", "else", "and", "or", "not", "in", "is", "return"};

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

/// Goes through the text as far as brackets, operators and strings are concerned.
class Nesting {
 public:
  Nesting(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  void check() {
    begin_line();
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"' || c == '\'') {
        skip_string(c);
        last_ = Last::value;
      } else if (c == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (is_word(c)) {
        const std::size_t begin = at_;
        last_ = Last::value;
        at_ = static_cast<std::size_t>(
            std::find_if_not(text_.begin() + static_cast<std::ptrdiff_t>(at_), text_.end(), is_word) - text_.begin());
        const std::string_view word = text_.substr(begin, at_ - begin);
        if (std::find(kOperators.begin(), kOperators.end(), word) != kOperators.end()) {
          last_ = Last::other;
          add();
        }
      } else {
        ++at_;
        look_at(c);
        if (c != ' ' && c != '\n') {
          last_ = c == ')' || c == ']' ? Last::value : c == '[' && last_ == Last::value ? Last::subscript : Last::other;
        }
      }
    }
  }

 private:
  enum class Last { other, value, subscript };

  void look_at(char c) {
    switch (c) {
      case '(':
      case '[':
      case '{':
        operators_.push_back(0);
        add();
        break;
      case ')':
      case ']':
      case '}':
        if (last_ == Last::subscript) { // the compiler takes the first index that is not there
          throw ArchiveError("record " + name_ + " has a subscript without an index, at byte " + std::to_string(at_));
        }
        sum_ -= operators_.back();
        operators_.back() = 0;
        if (operators_.size() > 1) {
          operators_.pop_back();
        }
        add(); // what follows may be one more call or index of the same value
        break;
      case ',':
        restart();
        break;
      case '\n':
        if (operators_.size() == 1) {
          restart();
          begin_line();
        }
        break;
      case ' ':
      case ':':
      case ';':
        break;
      default:
        add();
    }
  }

  /// Counts what nests within the innermost bracket.
  void add() {
    ++operators_.back();
    if (++sum_ > kMostNesting) {
      refuse();
    }
  }
  void restart() {
    const std::size_t kept = std::min<std::size_t>(operators_.back(), operators_.size() > 1 ? 1 : 0); // the bracket
    sum_ -= operators_.back() - kept;
    operators_.back() = kept;
  }

  /// Blocks are recognised by their indentation.
  void begin_line() {
    const std::size_t end = std::min(text_.find_first_not_of(' ', at_), text_.size());
    if (end - at_ > kMostNesting) {
      refuse();
    }
    at_ = end;
  }

  void skip_string(char quote) {
    const std::string three(3, quote);
    const bool is_long = text_.substr(at_, 3) == three;
    const std::size_t quotes = is_long ? 3 : 1;
    at_ += quotes;
    while (at_ < text_.size() &&
           (is_long ? text_.substr(at_, 3) != three : text_[at_] != quote && text_[at_] != '\n')) {
      at_ += text_[at_] == '\\' ? 2 : 1;
    }
    at_ = std::min(at_ + quotes, text_.size());
  }

  [[noreturn]] void refuse() const {
    throw ArchiveError("record " + name_ + " nests too deep, at byte " + std::to_string(at_));
  }

  const std::string_view text_;
  const std::string& name_;
  std::size_t at_ = 0;
  Last last_ = Last::other;                  // what stands before
  std::vector<std::size_t> operators_ = {0}; // by bracket that is open, of the element at hand
  std::size_t sum_ = 0;
};

} // namespace

void check_code(std::string_view text, const std::string& name) { Nesting(text, name).check(); }

} // namespace offload
