#include "fuzz/tables.h"

#include <string_view>

#include "encoding/coding.h"
#include "encoding/crc32c.h"
#include "fuzz/scratch.h"
#include "io/file.h"
#include "table/block_builder.h"
#include "table/format.h"
#include "table/table_builder.h"

namespace trackckpt::fuzz {

namespace {

constexpr size_t kBlockSize = 256;  // so that small tables have several blocks

// A block with its trailer.
BlockHandle AppendBlock(std::string_view contents, char type, std::string* file) {
  const BlockHandle handle{file->size(), contents.size()};
  file->append(contents);
  file->push_back(type);
  const size_t sealed = contents.size() + 1;
  PutFixed32(file, MaskCrc(Crc32cExtend(0, file->data() + handle.offset, sealed)));
  return handle;
}

// The first key of a block, which is stored in full, as a key of the index block.
std::string FirstKey(std::string_view contents) {
  uint32_t shared, non_shared, value_length;
  if (!GetVarint32(&contents, &shared) || !GetVarint32(&contents, &non_shared) ||
      !GetVarint32(&contents, &value_length)) {
    return "";
  }
  return std::string(contents.substr(0, non_shared));
}

}  // namespace

TableKind ReadTableKind(Input* input) { return static_cast<TableKind>(input->Byte() % 3); }

std::string BlocksTable(Input input) {
  std::string file;
  BlockBuilder index(kIndexRestartInterval);
  std::string key;
  while (!input.empty()) {
    Input block(input.Chunk());
    const char type = static_cast<char>(block.Byte() % 4);
    // The separators increase, as they have to, and are not below the first keys of their blocks.
    key = std::max(key, FirstKey(block.Rest())) + "\xff";
    std::string handle;
    AppendBlock(block.Rest(), type, &file).EncodeTo(&handle);
    index.Add(key, handle);
  }
  Footer footer;
  footer.metaindex_handle = AppendBlock(BlockBuilder(kBlockRestartInterval).Finish(), 0, &file);
  footer.index_handle = AppendBlock(index.Finish(), 0, &file);
  footer.EncodeTo(&file);
  return file;
}

Entries ReadEntries(Input input) {
  Entries entries;
  while (!input.empty()) {
    std::string key(input.Chunk());
    entries[std::move(key)] = input.Chunk();
  }
  return entries;
}

std::string WriteEntries(const std::string& name, const Entries& entries) {
  std::string path = FreshPath(name);
  WritableFile file(path);
  TableBuilder table(&file, kBlockSize);
  for (const auto& [key, value] : entries) table.Add(key, value);
  table.Finish();
  file.Close();
  return path;
}

std::string WriteTable(const std::string& name, Input input) {
  switch (ReadTableKind(&input)) {
    case TableKind::kFile:
      return WriteScratch(name, input.Rest());
    case TableKind::kBlocks:
      return WriteScratch(name, BlocksTable(input));
    case TableKind::kEntries:
      break;
  }
  return WriteEntries(name, ReadEntries(input));
}

}  // namespace trackckpt::fuzz
