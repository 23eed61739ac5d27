// Shared by all C interfaces to libtorch: no C++ exception reaches Rust.

#pragma once

#include <cstddef>
#include <cstring>
#include <exception>

namespace dico {

// The size of an error buffer in bytes, as in `src/nn/operators.rs`.
constexpr size_t ERROR_LENGTH = 512;

// Writes the first line of a message to an error buffer.
inline void write_error(char* error, const char* text) {
  std::strncpy(error, text, ERROR_LENGTH - 1);
  error[ERROR_LENGTH - 1] = '\0';
  // c10 appends a stack trace on further lines.
  if (char* end = std::strchr(error, '\n')) *end = '\0';
}

// Returns what `body` returns. If it throws, writes the message to `error`, a buffer of
// ERROR_LENGTH bytes, and returns null.
template <typename F>
auto catch_exceptions(char* error, F&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& e) {
    write_error(error, e.what());
  } catch (...) {
    write_error(error, "unknown exception");
  }
  return nullptr;
}

}  // namespace dico
