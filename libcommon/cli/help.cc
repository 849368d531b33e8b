#include <algorithm>

#include "cli/program.h"

namespace kvd::cli {
namespace {

constexpr std::size_t kHelpColumn = 30;
constexpr std::size_t kWidth = 96;

// `text` in lines of at most kWidth, each behind `indent` blanks but the first.
std::string wrapped(const std::string& text, std::size_t indent) {
  std::string out;
  std::size_t column = indent;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const std::size_t length = end - begin;
    if (column > indent && column + 1 + length > kWidth) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += text.substr(begin, length);
    column += length;
    begin = end + 1;
  }
  return out;
}

std::string entry(const std::string& left, const std::string& right) {
  std::string line = "  " + left;
  if (line.size() + 2 > kHelpColumn) {
    line += "\n" + std::string(kHelpColumn, ' ');
  } else {
    line.resize(kHelpColumn, ' ');
  }
  return line + wrapped(right, kHelpColumn) + "\n";
}

std::string option_entry(const Option& option, bool all) {
  std::string left = "--" + option.name;
  if (!option.metavar.empty()) left += " " + option.metavar;
  std::string right = option.help;
  std::string note;
  if (!option.default_text.empty()) note = "default " + option.default_text;
  if (all && !option.argv_only) note += (note.empty() ? "" : "; ") + option.env_name();
  if (!note.empty()) right += " [" + note + "]";
  return entry(left, right);
}

std::string options_text(const std::vector<Option>& options, bool all) {
  std::vector<std::string> categories;
  for (const auto& option : options) {
    if (std::find(categories.begin(), categories.end(), option.category) == categories.end()) {
      categories.push_back(option.category);
    }
  }
  std::string out;
  for (const auto& category : categories) {
    std::string block;
    for (const auto& option : options) {
      if (option.category == category && !option.hidden && (all || !option.advanced)) {
        block += option_entry(option, all);
      }
    }
    if (!block.empty()) out += "\n" + category + "\n" + block;
  }
  return out;
}

std::string indented(const std::string& text) {
  std::string out;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    out += "  " + text.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  return out;
}

}  // namespace

std::string help_text(const Program& program, const Command* command,
                      const std::vector<Option>& options, bool all) {
  if (command == nullptr) {
    std::string out = program.name + ": " + program.summary + "\n\nusage: " + program.name +
                      " COMMAND [options]\n\nCommands\n";
    for (const auto& c : program.commands) out += entry(c.name, c.summary);
    out += options_text(options, all);
    return out + "\n" + program.name + " COMMAND --help describes one; " + program.name +
           "(1) explains them all.\n";
  }
  const std::string full = program.name + (command->name.empty() ? "" : " " + command->name);
  std::string out = full + ": " + (command->name.empty() ? program.summary : command->summary);
  out += "\n\nusage: " + full;
  for (const auto& positional : command->positionals) {
    out += positional.optional ? " [" + positional.metavar + "]" : " " + positional.metavar;
  }
  out += " [options]\n";
  if (!command->positionals.empty()) {
    out += "\nArguments\n";
    for (const auto& positional : command->positionals) {
      out += entry(positional.metavar, positional.help);
    }
  }
  out += options_text(options, all);
  if (!command->examples.empty()) out += "\nExamples\n" + indented(command->examples);
  if (all) return out + "\n" + program.name + "(1) explains all of it.\n";
  return out + "\n--help-all lists every option; " + program.name + "(1) explains them.\n";
}

std::string help_pointer(const Program& program, const Command* command) {
  std::string out = "see " + program.name;
  if (command != nullptr && !command->name.empty()) out += " " + command->name;
  return out + " --help";
}

}  // namespace kvd::cli
