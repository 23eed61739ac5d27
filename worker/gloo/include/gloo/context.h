// Replaces Gloo's header, which the PyTorch wheel does not contain. c10d's headers use this method,
// but the code that is compiled here does not call it.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
