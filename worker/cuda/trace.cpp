// Traces of libtorch's operations on CPU and GPU, by libtorch's profiler (Kineto).

#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

#include "exceptions.h"

using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

namespace {

// The functions `dico_trace_*` return its address on success.
char success_marker;

}  // namespace

extern "C" {

// Starts to trace the operations that this thread launches. Returns null if it fails.
void* dico_trace_begin(bool on_gpu, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    std::set<ActivityType> activities{ActivityType::CPU};
    if (on_gpu) activities.insert(ActivityType::CUDA);
    const ProfilerConfig config(ProfilerState::KINETO);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
    return &success_marker;
  });
}

// Ends the trace, and writes it to a file in Chrome's trace format. Returns null if it fails.
void* dico_trace_end(const char* path, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    torch::autograd::profiler::disableProfiler()->save(path);
    return &success_marker;
  });
}

}  // extern "C"
