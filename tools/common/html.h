// Text for the pages of `kvd-bench report` and `kvd-probe mesh`: escaping, numbers, and what the page begins and ends
// with. The page is HTML that is well-formed XML too, needs no network and no script, and forbids
// both by its own policy.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvd::tools {

// For text and for attributes in quotes. Bytes that are no UTF-8 and characters that XML has not
// become U+FFFD.
std::string html_escape(std::string_view text);

// At most `most` characters, the last of them an ellipsis where more were there. Not escaped.
std::string shortened(const std::string& text, std::size_t most);

// A coordinate: one decimal.
std::string coordinate(double value);

// Cells are HTML; the first column of a row is its name.
std::string html_table(const std::vector<std::string>& header,
                       const std::vector<std::vector<std::string>>& rows);

std::string page_begin(const std::string& title);
std::string page_end();

}  // namespace kvd::tools
