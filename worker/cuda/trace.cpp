// Traces of what libtorch does, on the processor and on a GPU, by the profiler that libtorch comes with.

#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

#include "guarded.h"

using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

namespace {

// What `dico_trace_*` return in place of null.
char done;

}  // namespace

extern "C" {

// Begins to trace what this thread starts. Returns null if it fails.
void* dico_trace_begin(bool on_gpu, char* error) {
  return dico::guarded(error, [&]() -> void* {
    std::set<ActivityType> activities{ActivityType::CPU};
    if (on_gpu) activities.insert(ActivityType::CUDA);
    const ProfilerConfig config(ProfilerState::KINETO);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
    return &done;
  });
}

// Ends the trace, and writes it to a file in Chrome's format. Returns null if it fails.
void* dico_trace_end(const char* path, char* error) {
  return dico::guarded(error, [&]() -> void* {
    torch::autograd::profiler::disableProfiler()->save(path);
    return &done;
  });
}

}  // extern "C"
