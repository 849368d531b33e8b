#include "cli/completion.h"

#include <algorithm>

namespace kvd::cli {
namespace {

std::string function_name(const std::string& program) {
  std::string out = "_" + program;
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

// `text` in single quotes of a shell; `escape` before each of `special`.
std::string quoted(const std::string& text, const std::string& special = "") {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
      continue;
    }
    if (special.find(c) != std::string::npos) out += '\\';
    out += c;
  }
  return out + "'";
}

std::vector<const Option*> shown(const CompletedCommand& command) {
  std::vector<const Option*> out;
  for (const Option& option : command.options) {
    if (!option.hidden) out.push_back(&option);
  }
  return out;
}

bool has_verbs(const std::vector<CompletedCommand>& commands) {
  return commands.size() != 1 || !commands.front().name.empty();
}

// What completes the value of `option` in bash; empty: nothing does.
std::string bash_values(const Option& option) {
  if (!option.words.empty()) {
    return "COMPREPLY=($(compgen -W " + quoted(joined(option.words)) + " -- \"$cur\"))";
  }
  if (option.metavar == "FILE") return "COMPREPLY=($(compgen -f -- \"$cur\"))";
  if (option.metavar == "DIR") return "COMPREPLY=($(compgen -d -- \"$cur\"))";
  return "";
}

std::string bash_command(const CompletedCommand& command, const std::string& indent) {
  std::string out = indent + "case \"$prev\" in\n";
  std::vector<std::string> flags;
  for (const Option* option : shown(command)) {
    flags.push_back("--" + option->name);
    if (option->kind == Option::Kind::kFlag) continue;
    const std::string values = bash_values(*option);
    out += indent + "  --" + option->name + ") " + (values.empty() ? "" : values + "; ") +
           "return ;;\n";
  }
  return out + indent + "esac\n" + indent + "words=" + quoted(joined(flags)) + "\n";
}

std::string bash_script(const std::string& program, const std::vector<CompletedCommand>& commands) {
  const std::string name = function_name(program);
  std::string out = "# bash completion of " + program + ": source it, or put it into\n" +
                    "# ~/.local/share/bash-completion/completions/" + program + "\n" + name +
                    "() {\n  local cur=${COMP_WORDS[COMP_CWORD]} words=\n" +
                    "  local prev=${COMP_WORDS[COMP_CWORD-1]}\n" +
                    // bash makes words of their own of "=" in --name=value.
                    "  if [[ $cur == '=' ]]; then cur=\n" +
                    "  elif [[ $prev == '=' && $COMP_CWORD -gt 1 ]]; then "
                    "prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n" +
                    "  COMPREPLY=()\n";
  if (!has_verbs(commands)) {
    out += bash_command(commands.front(), "  ");
  } else {
    std::vector<std::string> verbs;
    out += "  case \"${COMP_WORDS[1]}\" in\n";
    for (const CompletedCommand& command : commands) {
      verbs.push_back(command.name);
      out += "    " + command.name + ")\n" + bash_command(command, "      ") + "      ;;\n";
    }
    out += "  esac\n  if [[ $COMP_CWORD -eq 1 ]]; then words=" +
           quoted(joined(verbs) + " --help --help-all --version") + "; fi\n";
  }
  return out + "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -F " + name + " " +
         program + "\n";
}

// One argument of zsh's _arguments: '*--name[help]:METAVAR:(values)'.
std::string zsh_argument(const Option& option) {
  constexpr const char* kSpecial = "[]:\\";
  std::string text = quoted("--" + option.name);
  text.pop_back();
  text += "[" + quoted(option.help, kSpecial).substr(1);
  text.pop_back();
  text += "]";
  if (option.kind == Option::Kind::kList) text = "'*" + text.substr(1);
  if (option.kind != Option::Kind::kFlag) {
    const std::string metavar = quoted(option.metavar, kSpecial);
    text += ":" + metavar.substr(1, metavar.size() - 2) + ":";
    if (!option.words.empty()) text += "(" + joined(option.words) + ")";
    if (option.metavar == "FILE") text += "_files";
    if (option.metavar == "DIR") text += "_files -/";
  }
  return text + "'";
}

std::string zsh_command(const CompletedCommand& command, const std::string& indent) {
  std::string out = indent + "_arguments";
  for (const Option* option : shown(command)) {
    out += " \\\n" + indent + "  " + zsh_argument(*option);
  }
  return out + "\n";
}

std::string zsh_script(const std::string& program, const std::vector<CompletedCommand>& commands) {
  const std::string name = function_name(program);
  std::string out = "#compdef " + program + "\n" + name + "() {\n";
  if (!has_verbs(commands)) {
    out += zsh_command(commands.front(), "  ");
  } else {
    out += "  local -a verbs=(";
    for (const CompletedCommand& command : commands) {
      out += "\n    " + quoted(command.name + ":" + command.summary, "\\");
    }
    out += ")\n  if (( CURRENT == 2 )); then\n    _describe command verbs\n" +
           std::string("    _arguments '--help' '--help-all' '--version'\n    return\n  fi\n") +
           "  local verb=$words[2]\n  shift words\n  (( CURRENT-- ))\n  case $verb in\n";
    for (const CompletedCommand& command : commands) {
      out += "    " + command.name + ")\n" + zsh_command(command, "      ") + "      ;;\n";
    }
    out += "  esac\n";
  }
  // Autoloaded it is called by the file's own end; sourced it only registers itself.
  return out + "}\nif [[ $funcstack[1] == " + name + " ]]; then " + name +
         " \"$@\"; else compdef " + name + " " + program + "; fi\n";
}

std::string fish_option(const std::string& head, const Option& option) {
  std::string out = head + " -l " + option.name;
  if (option.kind != Option::Kind::kFlag) {
    if (!option.words.empty()) {
      out += " -x -a " + quoted(joined(option.words), "\\");
    } else {
      out += option.metavar == "FILE" || option.metavar == "DIR" ? " -r -F" : " -x";
    }
  }
  return out + " -d " + quoted(option.help, "\\") + "\n";
}

std::string fish_script(const std::string& program, const std::vector<CompletedCommand>& commands) {
  const std::string head = "complete -c " + program;
  std::string out = "# fish completion of " + program + "\n" + head + " -f\n";
  for (const CompletedCommand& command : commands) {
    std::string place = head;
    if (has_verbs(commands)) {
      out += head + " -n __fish_use_subcommand -a " + command.name + " -d " +
             quoted(command.summary, "\\") + "\n";
      place += " -n '__fish_seen_subcommand_from " + command.name + "'";
    }
    for (const Option* option : shown(command)) out += fish_option(place, *option);
  }
  return out;
}

}  // namespace

std::string completion_script(Shell shell, const std::string& program,
                              const std::vector<CompletedCommand>& commands) {
  switch (shell) {
    case Shell::kBash:
      return bash_script(program, commands);
    case Shell::kZsh:
      return zsh_script(program, commands);
    case Shell::kFish:
      return fish_script(program, commands);
  }
  return "";
}

}  // namespace kvd::cli
