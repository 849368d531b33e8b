#include "common/html.h"

#include <array>
#include <cstdio>

#include "base/units.h"

namespace kvd::tools {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

// Colours of runs and stages differ in lightness too, for those who do not see hues and for print.
constexpr const char* kStyle = R"css(
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1a1d21; --soft: #5c6570; --line: #d9dee4; --band: #f4f6f8;
  --good: #1b6e3c; --bad: #b3261e;
  --r0: #2f6fb3; --r1: #d9822b; --r2: #2a9d7a; --r3: #a64d9c; --r4: #7a6a00; --r5: #7d8590;
  --s0: #7d8590; --s1: #e3b341; --s2: #2f6fb3; --s3: #2a9d7a; --s4: #d9622b; --s5: #a64d9c; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --ink: #e6e9ec; --soft: #9aa4ae; --line: #363d45; --band: #1d2125;
  --good: #6bcf8e; --bad: #ff8a80;
  --r0: #6ea8e0; --r1: #f0a45a; --r2: #58c9a4; --r3: #d08bc8; --r4: #c9b84a; --r5: #9aa4ae;
  --s0: #8b949e; --s1: #e3b341; --s2: #6ea8e0; --s3: #58c9a4; --s4: #f0855a; --s5: #d08bc8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
p { margin: .25rem 0 .75rem; color: var(--soft); max-width: 46rem; }
figure { margin: 1rem 0 1.5rem; overflow-x: auto; }
figcaption { font-weight: 600; margin-bottom: .25rem; }
svg { display: block; width: 100%; min-width: 40rem; height: auto; }
svg text { font-size: 12px; fill: var(--ink); unicode-bidi: isolate; }
svg .soft { fill: var(--soft); }
svg .head { font-weight: 600; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; }
svg .ceiling { stroke: var(--ink); stroke-width: 2.5; }
svg .dashed { stroke-dasharray: 5 4; }
svg .curve { fill: none; stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .25rem 0; padding: 0;
  list-style: none; font-size: .85rem; color: var(--soft); }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em;
  border-radius: 2px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line); unicode-bidi: isolate; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; }
.change { margin-left: .4em; }
.heat { display: block; padding: .25rem .5rem; border-radius: 3px; color: #14171a; }
.mark { outline: 2px solid var(--bad); outline-offset: -2px; font-weight: 600; }
.worse { color: var(--bad); font-weight: 600; }
.better { color: var(--good); font-weight: 600; }
.differs { font-weight: 600; background: var(--band); }
.soft { color: var(--soft); }
footer { margin-top: 3rem; font-size: .8rem; color: var(--soft); }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  figure, tr { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; }
  .wide, figure { overflow: visible; }
  svg { min-width: 0; }
}
)css";

std::string colour_classes() {
  std::string out;
  for (const char kind : {'r', 's'}) {
    for (char i = '0'; i < '6'; ++i) {
      const std::string name = {kind, i};
      out += "." + name + " { fill: var(--" + name + "); stroke: var(--" + name +
             "); background: var(--" + name + "); }\n";
    }
  }
  return out;
}

}  // namespace

std::string html_escape(std::string_view text) {
  const bool utf8 = is_valid_utf8(text);
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const auto byte = static_cast<unsigned char>(c);
    const std::string_view three = text.substr(i, 3);
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else if ((byte < 0x20 && c != '\t' && c != '\n') || (byte >= 0x80 && !utf8)) {
      out += kReplacement;
    } else if (three == "\xEF\xBF\xBE" || three == "\xEF\xBF\xBF") {
      out += kReplacement;
      i += 2;
    } else {
      out += c;
    }
  }
  return out;
}

std::string shortened(const std::string& text, std::size_t most) {
  std::size_t characters = 0, keep = text.size();
  for (std::size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    ++characters;
    if (characters == most) keep = i;
  }
  return characters <= most ? text : text.substr(0, keep) + "\xE2\x80\xA6";
}

std::string coordinate(double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.1f", value);
  return text.data();
}

std::string html_table(const std::vector<std::string>& header,
                       const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<div class=\"wide\"><table>\n<thead><tr>";
  for (const std::string& cell : header) out += "<th scope=\"col\">" + cell + "</th>";
  out += "</tr></thead>\n<tbody>\n";
  for (const auto& row : rows) {
    out += "<tr>";
    for (std::size_t i = 0; i < row.size(); ++i) {
      out += i == 0 ? "<th scope=\"row\">" + row[i] + "</th>" : "<td>" + row[i] + "</td>";
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string page_begin(const std::string& title) {
  return "<!DOCTYPE html>\n"
         "<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n"
         "<meta charset=\"utf-8\"/>\n"
         "<meta http-equiv=\"Content-Security-Policy\" "
         "content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
         "<title>" +
         html_escape(title) + "</title>\n<style>" + kStyle + colour_classes() +
         "</style>\n</head>\n<body>\n";
}

std::string page_end() { return "</body>\n</html>\n"; }

}  // namespace kvd::tools
