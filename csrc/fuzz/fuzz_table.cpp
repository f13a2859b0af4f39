// A table file: all entries, and each of them by its key.
//
//    input: table (tables.h)

#include "fuzz/check.h"
#include "fuzz/tables.h"
#include "table/table_reader.h"

using namespace trackckpt;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const fuzz::Input input(data, size);
  const std::string path = fuzz::WriteTable("table", input);
  fuzz::Entries found;
  const bool is_sound = fuzz::Attempt([&] {
    const TableReader table(path);
    std::string last;
    table.ForEach([&](const std::string& key, std::string_view value) {
      FUZZ_CHECK(found.empty() || last < key);
      found[key] = value;
      last = key;
    });
  });
  fuzz::Attempt([&] {
    const TableReader table(path);
    for (const auto& [key, value] : found) {
      // A table that is not sound may lead to other blocks from its restart points.
      const auto got = table.Get(key);
      table.Get(key + '\0');
      FUZZ_CHECK(!got || value.size() <= size);
    }
  });
  fuzz::Input rest = input;
  if (fuzz::ReadTableKind(&rest) == fuzz::TableKind::kEntries) {
    FUZZ_CHECK(is_sound && found == fuzz::ReadEntries(rest));
  }
  return 0;
}
