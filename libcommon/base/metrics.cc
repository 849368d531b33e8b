#include "base/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>

namespace kvd {

struct Metrics::Impl {
  std::mutex mutex;
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Merge};
};

void Counter::add(double value) const {
  if (impl_ != nullptr) impl_->Increment(value);
}
double Counter::value() const { return impl_ == nullptr ? 0 : impl_->Value(); }
void Gauge::set(double value) const {
  if (impl_ != nullptr) impl_->Set(value);
}
void Gauge::add(double value) const {
  if (impl_ != nullptr) impl_->Increment(value);
}
double Gauge::value() const { return impl_ == nullptr ? 0 : impl_->Value(); }
void Histogram::observe(double value) const {
  if (impl_ != nullptr) impl_->Observe(value);
}

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

Counter Metrics::counter(const std::string& name, const std::string& help, const Labels& labels) {
  std::lock_guard lock(impl_->mutex);
  Counter out;
  out.impl_ =
      &prometheus::BuildCounter().Name(name).Help(help).Register(impl_->registry).Add(labels);
  return out;
}

Gauge Metrics::gauge(const std::string& name, const std::string& help, const Labels& labels) {
  std::lock_guard lock(impl_->mutex);
  Gauge out;
  out.impl_ = &prometheus::BuildGauge().Name(name).Help(help).Register(impl_->registry).Add(labels);
  return out;
}

Histogram Metrics::histogram(const std::string& name, const std::string& help, const Labels& labels,
                             const std::vector<double>& buckets) {
  static const std::vector<double> kSeconds = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                                               0.025,  0.05,    0.1,    0.25,  0.5,    1,     2.5,
                                               5,      10,      25,     50,    100};
  std::lock_guard lock(impl_->mutex);
  Histogram out;
  out.impl_ = &prometheus::BuildHistogram()
                   .Name(name)
                   .Help(help)
                   .Register(impl_->registry)
                   .Add(labels, buckets.empty() ? kSeconds : buckets);
  return out;
}

std::string Metrics::render() const {
  std::lock_guard lock(impl_->mutex);
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace kvd
