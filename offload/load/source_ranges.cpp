#include <offload/load/source_ranges.h>

#include <algorithm>
#include <map>

#include <offload/error.h>
#include <offload/load/pickle.h>

namespace offload {

namespace {

using Value = PickledValue;

/// The length of a source, (texts, file, line); -1 when it is none. Without a table it has its text itself.
std::int64_t source_bytes(const Value& source, const Value* texts) {
  if (!source.is_tuple_of(3)) {
    return -1;
  }
  const Value& content = *source.elements[0];
  if (!texts) {
    return content.is_text() ? static_cast<std::int64_t>(content.text.size()) : -1;
  }
  const auto names_a_text = [&](const auto& value) {
    return value->is_integer() && value->integer >= 0 &&
           static_cast<std::uint64_t>(value->integer) < texts->elements.size();
  };
  if (content.kind != Value::Kind::list || !names_a_text(source.elements[1])) {
    return -1;
  }
  std::int64_t bytes = 0;
  for (const auto& number : content.elements) {
    if (!names_a_text(number)) {
      return -1;
    }
    bytes += static_cast<std::int64_t>(texts->elements[number->integer]->text.size());
  }
  return bytes;
}

/// (source, begin, end)
bool is_range(const Value& range, std::int64_t length) {
  const auto& begin = *range.elements[1];
  const auto& end = *range.elements[2];
  return begin.is_integer() && end.is_integer() && begin.integer >= 0 && begin.integer <= end.integer &&
         begin.integer <= length && end.integer <= length + 1; // what comes from nowhere is one byte of nothing
}

/// ("FORMAT_WITH_STRING_TABLE", texts, ranges), or, of old, the ranges alone; each is (byte, range, tag).
bool is_table(const Value& root) {
  const bool has_texts = root.is_tuple_of(3) && root.elements[0]->text == "FORMAT_WITH_STRING_TABLE";
  const Value& ranges = has_texts ? *root.elements[2] : root;
  const Value* texts = has_texts ? root.elements[1].get() : nullptr;
  const auto is_text = [](const auto& value) { return value->is_text(); };
  if (!root.is_tuple_of(1) || !ranges.is_tuple_of(0) ||
      (texts && !(texts->is_tuple_of(1) && std::all_of(texts->elements.begin(), texts->elements.end(), is_text)))) {
    return false;
  }
  std::map<const Value*, std::int64_t> lengths; // of sources, which many ranges share
  return std::all_of(ranges.elements.begin(), ranges.elements.end(), [&](const auto& line) {
    if (!line->is_tuple_of(2) || !line->elements[0]->is_integer() || !line->elements[1]->is_tuple_of(3)) {
      return false;
    }
    const Value& range = *line->elements[1];
    const auto [known, is_new] = lengths.emplace(range.elements[0].get(), 0);
    if (is_new) {
      known->second = source_bytes(*range.elements[0], texts);
    }
    return is_range(range, known->second);
  });
}

} // namespace

void check_source_ranges(std::string_view bytes, const std::string& name, std::uint64_t& steps) {
  const auto summary = read_pickle(bytes, name, steps);
  if (!summary || summary->globals.size() > summary->globals.count("torch.jit._pickle build_intlist") ||
      !is_table(*summary->root)) {
    throw ArchiveError("record " + name + " is no table of source ranges");
  }
}

} // namespace offload
