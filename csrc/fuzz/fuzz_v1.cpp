// A checkpoint of the older format in one or two files: everything in it is listed, checked and read.
//
//    input: which part of a tensor is read (1 byte) | two chunks, each a table (tables.h)

#include <string>
#include <vector>

#include "bundle/v1_reader.h"
#include "fuzz/everything.h"
#include "fuzz/tables.h"

using namespace trackckpt;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t seed = input.Byte();
  std::vector<std::string> paths;
  for (const char* name : {"0.ckpt", "1.ckpt"}) {
    const fuzz::Input table(input.Chunk());
    if (!table.empty()) paths.push_back(fuzz::WriteTable(name, table));
  }
  fuzz::Attempt([&] { fuzz::ReadEverything(V1Reader(paths), seed * 2654435761u); });
  return 0;
}
