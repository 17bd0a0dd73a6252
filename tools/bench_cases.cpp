#include <tools/bench_cases.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload::tools {

namespace {

constexpr int kTables = 5;
constexpr std::int64_t kMostRows = 1 << 16;
constexpr std::int64_t kMostCallers = 64;

std::vector<std::int64_t> parse_numbers(const std::string& option, const std::string& text, std::int64_t most) {
  std::vector<std::int64_t> numbers;
  std::istringstream list(text);
  for (std::string token; std::getline(list, token, ',');) {
    std::int64_t number = 0;
    const char* end = token.data() + token.size();
    const auto [rest, error] = std::from_chars(token.data(), end, number);
    if (error != std::errc() || rest != end || number < 1 || number > most) {
      std::string what = option;
      what.append(" '").append(token).append("': give numbers from 1 to ").append(std::to_string(most));
      throw InputError(what.append(", as in 1,2"));
    }
    if (std::find(numbers.begin(), numbers.end(), number) == numbers.end()) {
      numbers.push_back(number);
    }
  }
  return numbers;
}

std::vector<double> parse_loads(const std::string& text) {
  std::vector<double> loads;
  std::istringstream list(text);
  for (std::string token; std::getline(list, token, ',');) {
    double load = 0;
    const char* end = token.data() + token.size();
    const auto [rest, error] = std::from_chars(token.data(), end, load);
    if (error != std::errc() || rest != end || !(load > 0) || load > 1) {
      throw InputError("--load '" + token + "': give parts of what callers reach, as in 0.5,0.8");
    }
    loads.push_back(load);
  }
  return loads;
}

Case small_rows_case(std::int64_t input_rows, const std::string& dtype) {
  Case few{"", 64, 4096, input_rows, dtype, {0, 32, 64}, {}};
  few.title = std::to_string(input_rows) + (input_rows == 1 ? " row, " : " rows, ") + dtype + ": " +
              std::to_string(few.layers) + " layers of " + format_bytes(few.layer_bytes());
  return few;
}

} // namespace

std::uint64_t Case::layer_bytes() const {
  return static_cast<std::uint64_t>(features) * static_cast<std::uint64_t>(features) * (dtype == "bfloat16" ? 2 : 4);
}

bool Case::same_work(const Case& other) const {
  return layers == other.layers && features == other.features && input_rows == other.input_rows &&
         dtype == other.dtype && layers_on_gpu == other.layers_on_gpu;
}

const RecordRow* Case::find_record(Residence residence, std::int64_t on_gpu) const {
  for (const RecordRow& row : record) {
    if (row.residence == residence && (residence != Residence::partly || row.layers_on_gpu == on_gpu)) {
      return &row;
    }
  }
  return nullptr;
}

Selection parse_selection(const std::string& tables, const std::string& rows, bool staged, const std::string& callers,
                          const std::string& loads) {
  Selection selection;
  if (callers.empty() && !loads.empty()) {
    throw InputError("--load is of what --callers reach: give --callers, too");
  }
  if (!callers.empty()) {
    if (!tables.empty() || staged) {
      throw InputError("--callers is for the stacks with few rows: leave --table and --staged out");
    }
    const auto counts = parse_numbers("--callers", callers, kMostCallers);
    selection.callers.assign(counts.begin(), counts.end());
    selection.rows = parse_numbers("--rows", rows.empty() ? "1,16,64" : rows, kMostRows);
    selection.loads = parse_loads(loads);
    return selection;
  }
  const bool everything = tables.empty() && rows.empty() && !staged;
  selection.staged = staged || everything;
  const auto numbers = parse_numbers("--table", everything || tables == "all" ? "1,2,3,4,5" : tables, kTables);
  selection.tables.assign(numbers.begin(), numbers.end());
  selection.rows = parse_numbers("--rows", everything ? "1,16,64" : rows, kMostRows);
  return selection;
}

Case record_case(int number) {
  Case table;
  for (const RecordRow& row : kRecord) {
    if (row.table != number) {
      continue;
    }
    table.layers = row.layers;
    table.features = std::llround(std::sqrt(row.layer_mib * double{1_MiB} / 4));
    table.record.push_back(row);
    if (row.residence == Residence::partly) {
      table.layers_on_gpu.push_back(row.layers_on_gpu);
    }
  }
  if (table.record.empty()) {
    throw InputError("--table '" + std::to_string(number) + "': the record has tables 1 to " + std::to_string(kTables));
  }
  table.input_rows = table.features;
  table.dtype = "float32";
  std::sort(table.layers_on_gpu.begin(), table.layers_on_gpu.end());
  table.title = "Table " + std::to_string(number) + ": " + std::to_string(table.layers) + " layers of " +
                format_bytes(table.layer_bytes()) + ", float32, " + std::to_string(table.input_rows) + " rows";
  return table;
}

std::vector<Case> make_cases(const Selection& selection) {
  std::vector<Case> cases;
  cases.reserve(selection.tables.size() + 2 * selection.rows.size());
  for (const int number : selection.tables) {
    cases.push_back(record_case(number));
  }
  for (const char* dtype : {"bfloat16", "float32"}) {
    for (const std::int64_t input_rows : selection.rows) {
      cases.push_back(small_rows_case(input_rows, dtype));
    }
  }
  return cases;
}

Case reduce(const Case& original, std::uint64_t available_bytes) {
  Case small = original;
  small.reduced = true;
  small.record.clear(); // its times are those of other sizes
  small.features = original.features / 4;
  small.input_rows = original.input_rows == original.features ? small.features : original.input_rows;
  small.layers = std::max<std::int64_t>(4, original.layers / 8);
  while (small.layers > 4 && small.weight_bytes() > available_bytes / 4) {
    small.layers /= 2;
  }
  while (small.features > 64 && small.weight_bytes() > available_bytes / 4) {
    small.features /= 2;
  }
  small.layers_on_gpu.clear();
  for (const std::int64_t on_gpu : original.layers_on_gpu) {
    const std::int64_t scaled = on_gpu * small.layers / original.layers;
    if (small.layers_on_gpu.empty() || small.layers_on_gpu.back() != scaled) {
      small.layers_on_gpu.push_back(scaled);
    }
  }
  const std::string rows = std::to_string(small.input_rows) + (small.input_rows == 1 ? " row" : " rows");
  small.title = original.title.substr(0, original.title.find(':')) + ": reduced to " + std::to_string(small.layers) +
                " layers of " + format_bytes(small.layer_bytes()) + ", " + rows;
  return small;
}

std::uint64_t default_ring_bytes(const Case& stack) {
  return std::max(stack.reduced ? 0 : 96_MiB, 3 * stack.layer_bytes());
}

} // namespace offload::tools
