// A C interface to what the worker needs of libtorch's c10d: a rendezvous store, a process group of Gloo's, three collectives.
//
// Every function that can fail returns null (or -1) and leaves the reason in a buffer of ERROR_LENGTH bytes; no exception
// crosses into Rust. Tensors are `at::Tensor*`, as in tch.

#define USE_C10D_GLOO

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "guarded.h"

namespace {

using dico::guarded;
using dico::report;

// A rank may compute for as long as it takes while the others wait for it: who waits too long is the coordinator's to say.
constexpr std::chrono::milliseconds FOREVER = std::chrono::hours(24 * 7);

using StorePtr = c10::intrusive_ptr<c10d::Store>;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroupGloo>;

// A collective in flight, with the tensors that it reads and writes kept alive.
struct Work {
  c10::intrusive_ptr<c10d::Work> work;
  std::vector<at::Tensor> input;
  std::vector<std::vector<at::Tensor>> output;
};

}  // namespace

extern "C" {

// Serves a store on the listening socket `fd`, which it takes over.
void* dico_store_serve(int fd, const char* host, uint16_t port, char* error) {
  return guarded(error, [&]() -> void* {
    c10d::TCPStoreOptions options;
    options.isServer = true;
    options.waitWorkers = false;
    options.port = port;
    options.masterListenFd = fd;
    return new StorePtr(c10::make_intrusive<c10d::TCPStore>(std::string(host), options));
  });
}

void dico_store_free(void* store) {
  delete static_cast<StorePtr*>(store);
}

// Connects to the store at `host:port`; all keys are `prefix`'s own.
void* dico_store_connect(const char* host, uint16_t port, const char* prefix, int64_t timeout_ms, char* error) {
  return guarded(error, [&]() -> void* {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    return new StorePtr(c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), tcp));
  });
}

void* dico_store_set(void* store, const char* key, const uint8_t* value, size_t length, char* error) {
  return guarded(error, [&]() -> void* {
    (*static_cast<StorePtr*>(store))->set(key, std::vector<uint8_t>(value, value + length));
    return store;
  });
}

// Waits for a value of exactly this length.
void* dico_store_get(void* store, const char* key, uint8_t* value, size_t length, char* error) {
  return guarded(error, [&]() -> void* {
    const std::vector<uint8_t> found = (*static_cast<StorePtr*>(store))->get(key);
    if (found.size() != length) {
      throw std::runtime_error(std::string(key) + " has " + std::to_string(found.size()) + " bytes, not " +
                               std::to_string(length));
    }
    std::copy(found.begin(), found.end(), value);
    return store;
  });
}

// Meets the other `size - 1` ranks through the store. Blocks until all are connected or the time is over.
void* dico_gloo_new(void* store, const char* own_host, int rank, int size, int64_t timeout_ms, char* error) {
  return guarded(error, [&]() -> void* {
    auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(std::string(own_host)));
    return new GroupPtr(c10::make_intrusive<c10d::ProcessGroupGloo>(*static_cast<StorePtr*>(store), rank, size, options));
  });
}

void dico_gloo_free(void* group) {
  delete static_cast<GroupPtr*>(group);
}

// Sums the tensor over all ranks, in place.
void* dico_gloo_all_reduce(void* group, void* tensor, char* error) {
  return guarded(error, [&]() -> void* {
    auto* work = new Work{{}, {*static_cast<at::Tensor*>(tensor)}, {}};
    c10d::AllreduceOptions options;
    options.timeout = FOREVER;
    work->work = (*static_cast<GroupPtr*>(group))->allreduce(work->input, options);
    return work;
  });
}

void* dico_gloo_broadcast(void* group, void* tensor, int root, char* error) {
  return guarded(error, [&]() -> void* {
    auto* work = new Work{{}, {*static_cast<at::Tensor*>(tensor)}, {}};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = FOREVER;
    work->work = (*static_cast<GroupPtr*>(group))->broadcast(work->input, options);
    return work;
  });
}

// Gathers every rank's tensor (all of one shape) into `outputs`, in order of rank.
void* dico_gloo_all_gather(void* group, void* tensor, void** outputs, int count, char* error) {
  return guarded(error, [&]() -> void* {
    auto* work = new Work{{}, {*static_cast<at::Tensor*>(tensor)}, {{}}};
    for (int i = 0; i < count; ++i) work->output[0].push_back(*static_cast<at::Tensor*>(outputs[i]));
    c10d::AllgatherOptions options;
    options.timeout = FOREVER;
    work->work = (*static_cast<GroupPtr*>(group))->allgather(work->output, work->input, options);
    return work;
  });
}

// Waits at most `timeout_ms`: 1 when the work is complete, 0 when it is still under way, -1 when it failed.
int dico_work_wait(void* handle, int64_t timeout_ms, char* error) {
  auto& work = static_cast<Work*>(handle)->work;
  if (!work->isCompleted()) {
    try {
      work->wait(std::chrono::milliseconds(timeout_ms));
    } catch (...) {
      // Out of time, or failed: told apart below.
    }
    if (!work->isCompleted()) return 0;
  }
  try {
    if (work->isSuccess()) return 1;
    std::rethrow_exception(work->exception());
  } catch (const std::exception& e) {
    report(error, e.what());
  } catch (...) {
    report(error, "unknown exception");
  }
  return -1;
}

void dico_work_free(void* work) {
  delete static_cast<Work*>(work);
}

}  // extern "C"
