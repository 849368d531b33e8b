#include "kvd-bench/charts.h"

#include <algorithm>
#include <cmath>

#include "base/units.h"
#include "common/html.h"
#include "kvd-bench/results.h"

namespace kvd::tools {
namespace {

constexpr double kWidth = 860, kTextWidth = 190, kPlot = kWidth - kTextWidth;
constexpr double kHeading = 30, kLabel = 17, kRow = 24, kBar = 14, kAxis = 26;
constexpr double kLargest = 1e30;  // of a value: keeps sums and scales finite
constexpr std::size_t kLabelCharacters = 88, kColours = 6;

double bounded(double value) { return std::isnan(value) ? 0 : std::clamp(value, 0.0, kLargest); }

std::string number(double value) { return coordinate(value); }

std::string text_at(double x, double y, const std::string& classes, const std::string& text) {
  const std::string brief = shortened(text, kLabelCharacters);
  const std::string title = brief == text ? "" : "<title>" + html_escape(text) + "</title>";
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" class=\"" + classes + "\">" +
         title + html_escape(brief) + "</text>\n";
}

std::string line_at(double x1, double y1, double x2, double y2, const std::string& classes) {
  return "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) +
         "\" y2=\"" + number(y2) + "\" class=\"" + classes + "\"/>\n";
}

std::string rect_at(double x, double y, double width, double height, const std::string& classes) {
  return "<rect x=\"" + number(x) + "\" y=\"" + number(y) + "\" width=\"" + number(width) +
         "\" height=\"" + number(height) + "\" class=\"" + classes + "\"/>\n";
}

std::string dot_at(double x, double y, double radius, const std::string& classes) {
  return "<circle cx=\"" + number(x) + "\" cy=\"" + number(y) + "\" r=\"" + number(radius) +
         "\" class=\"" + classes + "\"/>\n";
}

std::string colour(char kind, std::size_t index) {
  return std::string(1, kind) + std::to_string(index % kColours);
}

std::string figure(const std::string& caption, double height, const std::string& inside) {
  return "<figure><figcaption>" + html_escape(caption) +
         "</figcaption>\n<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"" +
         html_escape(caption) + "\" viewBox=\"0 0 " + number(kWidth) + " " + number(height) +
         "\">\n" + inside + "</svg></figure>\n";
}

// 1, 2 or 5 times a power of ten, so that about five of them fill the range.
double step_of(double range) {
  const double power = std::pow(10, std::floor(std::log10(range / 5)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= range / 5 * 0.999) return factor * power;
  }
  return 10 * power;
}

// Positions along one direction, and lines at round numbers.
class Axis {
 public:
  static Axis linear(double largest, double length) {
    Axis out;
    out.high_ = largest > 0 ? largest * 1.04 : 1;
    out.length_ = length;
    return out;
  }
  static Axis logarithmic(double smallest, double largest, double length) {
    Axis out;
    out.log_ = true;
    out.low_ = smallest * 0.9;
    out.high_ = std::max(largest, smallest * 1.5) * 1.1;
    out.length_ = length;
    return out;
  }
  double at(double value) const {
    const double part = log_ ? std::log(std::max(value, low_) / low_) / std::log(high_ / low_)
                             : (value - low_) / (high_ - low_);
    return std::clamp(part, 0.0, 1.0) * length_;
  }
  std::vector<double> ticks(double scale) const {
    std::vector<double> out;
    if (!log_) {
      const double step = step_of(high_ / scale) * scale;
      for (int i = 0; i <= 12 && i * step <= high_; ++i) out.push_back(i * step);
      return out;
    }
    const bool narrow = high_ / low_ < 300;
    for (double power = std::pow(10, std::floor(std::log10(low_))); power <= high_; power *= 10) {
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double tick = factor * power;
        if ((factor == 1 || narrow) && tick >= low_ && tick <= high_) out.push_back(tick);
      }
    }
    return out;
  }

 private:
  bool log_ = false;
  double low_ = 0, high_ = 1, length_ = 1;
};

std::string horizontal_grid(const Axis& axis, const std::string& unit, double scale,
                            double bottom) {
  std::string out;
  double free_from = -1e9;
  for (const double tick : axis.ticks(scale)) {
    const double x = axis.at(tick);
    out += line_at(x, 4, x, bottom, "grid");
    if (x < free_from) continue;
    out += text_at(x, bottom + 16, x < 8 ? "soft" : "soft middle", number_text(tick / scale));
    free_from = x + 34;
  }
  return out + text_at(kPlot + 12, bottom + 16, "soft", unit);
}

// Heading, label and text of a row; moves `y` to the top of its bar.
template <typename Row>
std::string row_texts(const Row& row, double* y) {
  std::string out;
  if (!row.heading.empty()) {
    out += text_at(0, *y + 20, "head", row.heading);
    *y += kHeading;
  }
  // A row without a name of its own stands right under its heading.
  if (!row.label.empty()) {
    out += text_at(0, *y + 9, "soft", row.label);
    *y += kLabel;
  }
  return out + text_at(kPlot + 12, *y + 11, "", row.text);
}

template <typename Row>
double height_of(const std::vector<Row>& rows) {
  double out = 4;
  for (const Row& row : rows) {
    out += (row.heading.empty() ? 0 : kHeading) + (row.label.empty() ? 0 : kLabel) + kRow;
  }
  return out;
}

std::string whiskers(const Axis& axis, double low, double high, double middle) {
  if (!(high > low)) return {};
  const double a = axis.at(low), b = axis.at(high);
  return line_at(a, middle, b, middle, "whisker") +
         line_at(a, middle - 3.5, a, middle + 3.5, "whisker") +
         line_at(b, middle - 3.5, b, middle + 3.5, "whisker");
}

}  // namespace

std::string bar_chart(const std::string& caption, const std::string& unit, double scale,
                      const std::vector<Bar>& bars) {
  double largest = 0;
  for (const Bar& bar : bars) {
    for (const double v : {bar.value, bar.high, bar.mark, bar.second_mark}) {
      largest = std::max(largest, bounded(v));
    }
  }
  const Axis axis = Axis::linear(largest, kPlot);
  const double bottom = height_of(bars);
  std::string out = horizontal_grid(axis, unit, scale, bottom);
  double y = 4;
  for (const Bar& bar : bars) {
    out += row_texts(bar, &y);
    const double middle = y + kBar / 2;
    out += rect_at(0, y, axis.at(bounded(bar.value)), kBar, colour('r', bar.run));
    out += whiskers(axis, bounded(bar.low), bounded(bar.high), middle);
    if (bar.mark >= 0) {
      const double x = axis.at(bounded(bar.mark));
      out += line_at(x, y - 3, x, y + kBar + 3, "ceiling");
    }
    if (bar.second_mark >= 0) {
      const double x = axis.at(bounded(bar.second_mark));
      out += line_at(x, y - 3, x, y + kBar + 3, "whisker dashed");
    }
    y += kRow;
  }
  return figure(caption, bottom + kAxis, out);
}

std::string range_chart(const std::string& caption, const std::string& unit, double scale,
                        const std::vector<Range>& ranges) {
  double smallest = kLargest, largest = 0;
  for (const Range& range : ranges) {
    for (const double point : range.points) {
      smallest = std::min(smallest, std::max(bounded(point), 1e-9));
      largest = std::max(largest, bounded(point));
    }
  }
  if (!(largest > 0)) return {};
  const Axis axis = Axis::logarithmic(smallest, largest, kPlot);
  const double bottom = height_of(ranges);
  std::string out = horizontal_grid(axis, unit, scale, bottom);
  double y = 4;
  for (const Range& range : ranges) {
    out += row_texts(range, &y);
    const double middle = y + kBar / 2;
    const std::string classes = colour('r', range.run);
    if (range.points.size() > 1) {
      const double x = axis.at(bounded(range.points.front()));
      out += rect_at(x, middle - 1.5, axis.at(bounded(range.points.back())) - x, 3, classes);
    }
    for (std::size_t i = 0; i < range.points.size(); ++i) {
      const double x = axis.at(bounded(range.points[i]));
      out += i == 0 ? dot_at(x, middle, 6, classes)
                    : line_at(x, middle - 6, x, middle + 6, "curve " + classes);
    }
    y += kRow;
  }
  return figure(caption, bottom + kAxis, out);
}

std::string stack_chart(const std::string& caption, const std::string& unit, double scale,
                        const std::vector<std::string>& part_names,
                        const std::vector<Stack>& stacks) {
  double largest = 0;
  for (const Stack& stack : stacks) {
    double sum = 0;
    for (const double part : stack.parts) sum += bounded(part);
    largest = std::max(largest, sum);
  }
  const Axis axis = Axis::linear(largest, kPlot);
  const double bottom = height_of(stacks);
  std::string out = horizontal_grid(axis, unit, scale, bottom);
  double y = 4;
  for (const Stack& stack : stacks) {
    out += row_texts(stack, &y);
    double before = 0;
    for (std::size_t i = 0; i < stack.parts.size(); ++i) {
      const double after = before + bounded(stack.parts[i]);
      out += rect_at(axis.at(before), y, axis.at(after) - axis.at(before), kBar, colour('s', i));
      before = after;
    }
    y += kRow;
  }
  std::vector<LegendEntry> entries;
  for (std::size_t i = 0; i < part_names.size(); ++i) {
    entries.push_back({colour('s', i), part_names[i]});
  }
  return figure(caption, bottom + kAxis, out) + legend(entries);
}

namespace {

std::string curve_svg(const Curve& curve, const Axis& across, const Axis& up, double height) {
  const std::string classes = colour('r', curve.run);
  const double left = 44;
  std::string line, ceiling, marks;
  for (const CurvePoint& point : curve.points) {
    const double x = left + across.at(point.x), y = height - up.at(bounded(point.y));
    line += (line.empty() ? "M" : "L") + number(x) + " " + number(y) + " ";
    if (point.ceiling >= 0) {
      const double top = height - up.at(bounded(point.ceiling));
      ceiling += (ceiling.empty() ? "M" : "L") + number(x) + " " + number(top) + " ";
    }
    if (point.high > point.low) {
      marks += line_at(x, height - up.at(bounded(point.low)), x,
                       height - up.at(bounded(point.high)), "whisker");
    }
    marks += dot_at(x, y, 4, classes);
  }
  const auto path = [&](const std::string& d, const std::string& more) {
    return d.empty() ? ""
                     : "<path d=\"" + d + "\" class=\"curve " + more + classes +
                           "\" style=\"fill:none\"/>\n";
  };
  return path(ceiling, "dashed ") + path(line, "") + marks;
}

}  // namespace

std::string curve_chart(const std::string& caption, const std::string& unit, double scale,
                        const std::vector<Curve>& curves) {
  constexpr double kHeight = 300, kLeft = 44;
  double smallest = kLargest, widest = 1, largest = 0;
  std::vector<double> sizes;
  for (const Curve& curve : curves) {
    for (const CurvePoint& point : curve.points) {
      smallest = std::min(smallest, point.x);
      widest = std::max(widest, point.x);
      largest = std::max({largest, bounded(point.high), bounded(point.y), bounded(point.ceiling)});
      sizes.push_back(point.x);
    }
  }
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  const Axis across = Axis::logarithmic(smallest, widest, kWidth - kLeft - 16);
  const Axis up = Axis::linear(largest, kHeight - 24);
  std::string out = text_at(0, 12, "soft", unit);
  for (const double tick : up.ticks(scale)) {
    const double y = kHeight - up.at(tick);
    out += line_at(kLeft, y, kWidth, y, "grid");
    out += text_at(kLeft - 8, y + 4, "soft end", number_text(tick / scale));
  }
  double free_from = -1e9;
  for (const double size : sizes) {
    const double x = kLeft + across.at(size);
    out += line_at(x, kHeight, x, kHeight + 4, "grid");
    if (x < free_from) continue;
    out += text_at(x, kHeight + 18, "soft middle", format_bytes(static_cast<std::uint64_t>(size)));
    free_from = x + 62;
  }
  std::vector<LegendEntry> entries;
  for (const Curve& curve : curves) {
    out += curve_svg(curve, across, up, kHeight);
    entries.push_back({colour('r', curve.run), curve.label});
  }
  return figure(caption, kHeight + kAxis, out) + legend(entries);
}

std::string legend(const std::vector<LegendEntry>& entries) {
  std::string out = "<ul class=\"legend\">";
  for (const LegendEntry& entry : entries) {
    out += "<li>";
    if (!entry.colour.empty()) out += "<span class=\"swatch " + entry.colour + "\"></span>";
    out += html_escape(entry.text) + "</li>";
  }
  return out + "</ul>\n";
}

}  // namespace kvd::tools
