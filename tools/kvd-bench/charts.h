// Plots as SVG inside HTML. Each is a <figure> with a caption; every row says its value in text
// too. Classes r0 to r5 colour runs, s0 to s5 stages.
//
// Texts are escaped here. Values that are not finite are left out.
#pragma once

#include <string>
#include <vector>

namespace kvd::tools {

// A bar from 0, with whiskers from low to high, and up to two marks to hold it against.
struct Bar {
  std::string heading;  // above the label; empty: the row belongs to the group above
  std::string label;
  std::size_t run = 0;
  double value = 0, low = 0, high = 0;
  double mark = -1, second_mark = -1;  // below 0: none
  std::string text;                    // at the right end
};
// `unit` is of the axis; values are divided by `scale` for it.
std::string bar_chart(const std::string& caption, const std::string& unit, double scale,
                      const std::vector<Bar>& bars);

// Percentiles on a logarithmic axis.
struct Range {
  std::string heading, label;
  std::size_t run = 0;
  std::vector<double> points;  // rising, above 0: p50, p90, p99, p99.9
  std::string text;
};
std::string range_chart(const std::string& caption, const std::string& unit, double scale,
                        const std::vector<Range>& ranges);

struct Stack {
  std::string heading, label;
  std::vector<double> parts;
  std::string text;
};
std::string stack_chart(const std::string& caption, const std::string& unit, double scale,
                        const std::vector<std::string>& part_names,
                        const std::vector<Stack>& stacks);

struct CurvePoint {
  double x = 0;  // bytes
  double y = 0, low = 0, high = 0, ceiling = -1;
};
struct Curve {
  std::string label;
  std::size_t run = 0;
  std::vector<CurvePoint> points;  // x rising
};
// x is in bytes, logarithmic; ceilings are dashed.
std::string curve_chart(const std::string& caption, const std::string& unit, double scale,
                        const std::vector<Curve>& curves);

struct LegendEntry {
  std::string colour;  // a class; empty: text only
  std::string text;
};
std::string legend(const std::vector<LegendEntry>& entries);

}  // namespace kvd::tools
