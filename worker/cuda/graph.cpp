// CUDA graphs: operations are captured once, and then launched together.
//
// This is an interface to at::cuda::CUDAGraph, which also manages the memory of graphs with
// libtorch's allocator. The class belongs to libtorch's CUDA libraries, which are opened at run
// time, and its header needs CUDA's headers. So its member functions are looked up by their mangled
// names, which are the same in all builds of one PyTorch version. Streams are accessed through
// c10's interface for any kind of device.

#include <c10/core/Allocator.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "exceptions.h"

namespace {

// cudaStreamCaptureModeThreadLocal: other threads, for example NCCL's, may call CUDA during a
// capture.
constexpr int CAPTURE_MODE_THREAD_LOCAL = 1;
// An upper bound for the size of an at::cuda::CUDAGraph; it has 104 bytes in PyTorch 2.11.
constexpr size_t GRAPH_BYTES = 1024;

template <typename Function>
Function* find_symbol(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  if (found == nullptr) throw std::runtime_error(std::string("libtorch has no ") + name);
  return reinterpret_cast<Function*>(found);
}

// Member functions of at::cuda::CUDAGraph. The first argument is the object.
struct CudaGraphFunctions {
  void (*construct)(void*, bool keep_graph) = find_symbol<void(void*, bool)>("_ZN2at4cuda9CUDAGraphC1Eb");
  void (*destroy)(void*) = find_symbol<void(void*)>("_ZN2at4cuda9CUDAGraphD1Ev");
  void (*capture_begin)(void*, c10::MempoolId_t, int mode) =
      find_symbol<void(void*, c10::MempoolId_t, int)>(
          "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
  void (*capture_end)(void*) = find_symbol<void(void*)>("_ZN2at4cuda9CUDAGraph11capture_endEv");
  void (*replay)(void*) = find_symbol<void(void*)>("_ZN2at4cuda9CUDAGraph6replayEv");
  c10::MempoolId_t (*pool)(void*) = find_symbol<c10::MempoolId_t(void*)>("_ZN2at4cuda9CUDAGraph4poolEv");
};

const CudaGraphFunctions& functions() {
  static const CudaGraphFunctions functions;
  return functions;
}

// A CUDA graph, from the start of its capture on.
class CapturedGraph {
 public:
  // Starts to capture the operations that this thread launches on the device.
  CapturedGraph(c10::Device device, c10::MempoolId_t pool) {
    // The default stream cannot be captured. All captures of a thread use one other stream, because
    // cuBLAS keeps a workspace for each stream.
    thread_local std::optional<c10::Stream> stream;
    if (!stream || stream->device() != device) {
      stream = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
    }
    capture_.emplace(*stream);
    functions().construct(storage_, false);
    try {
      functions().capture_begin(storage_, pool, CAPTURE_MODE_THREAD_LOCAL);
    } catch (...) {
      functions().destroy(storage_);
      throw;
    }
  }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;
  ~CapturedGraph() { functions().destroy(storage_); }

  void end_capture() {
    try {
      functions().capture_end(storage_);
    } catch (...) {
      capture_.reset();
      throw;
    }
    capture_.reset();
  }
  void replay() { functions().replay(storage_); }
  c10::MempoolId_t pool() { return functions().pool(storage_); }

 private:
  alignas(std::max_align_t) std::byte storage_[GRAPH_BYTES];
  std::optional<c10::StreamGuard> capture_;
};

}  // namespace

extern "C" {

// Starts to capture the operations that this thread launches on GPU `device`, without executing
// them, until `dico_graph_end`. `pool` is the memory pool of an earlier graph, or zeros for a new
// pool. Graphs of one pool must not be replayed at the same time. Returns null if it fails.
void* dico_graph_begin(int64_t device, const uint64_t* pool, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    const auto index = static_cast<c10::DeviceIndex>(device);
    return new CapturedGraph(c10::Device(c10::DeviceType::CUDA, index), {pool[0], pool[1]});
  });
}

// Ends the capture and writes the graph's memory pool to `pool`. Returns the graph. If it fails,
// frees the graph and returns null.
void* dico_graph_end(void* graph, uint64_t* pool, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    std::unique_ptr<CapturedGraph> owned(static_cast<CapturedGraph*>(graph));
    owned->end_capture();
    const c10::MempoolId_t id = owned->pool();
    pool[0] = id.first;
    pool[1] = id.second;
    return owned.release();
  });
}

// Launches the graph on the current stream. Returns the graph, or null if it fails.
void* dico_graph_replay(void* graph, char* error) {
  return dico::catch_exceptions(error, [&]() -> void* {
    static_cast<CapturedGraph*>(graph)->replay();
    return graph;
  });
}

void dico_graph_free(void* graph) {
  delete static_cast<CapturedGraph*>(graph);
}

}  // extern "C"
