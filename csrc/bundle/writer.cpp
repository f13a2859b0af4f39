#include "bundle/writer.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "error.h"
#include "table/table_builder.h"

namespace trackckpt {

namespace {

constexpr int32_t kProducerVersion = 1;

Error InvalidArgument(const std::string& message) { return Error(ErrorKind::kInvalidArgument, message); }

void CheckArguments(size_t num_shards, int64_t alignment) {
  if (alignment < 1) throw InvalidArgument("Alignment must be at least 1, not " + std::to_string(alignment));
  if (num_shards == 0) throw InvalidArgument("A bundle has at least one data file");
}

// A line of the index.
struct Line {
  std::string_view key;
  std::string_view record;
};

bool operator<(const Line& a, const Line& b) { return a.key < b.key; }

void CheckKeysDiffer(const std::vector<Line>& sorted) {
  const auto same = [](const Line& a, const Line& b) { return a.key == b.key; };
  const auto found = std::adjacent_find(sorted.begin(), sorted.end(), same);
  if (found == sorted.end()) return;
  throw Error(ErrorKind::kDuplicateKey, "Adding duplicate key: " + DisplayKey(found->key));
}

// Adds the slices that a later shard holds of some tensors.
void AddSlices(const ShardWriter::SlicedTensors& later, ShardWriter::SlicedTensors* all) {
  for (const auto& [key, entry] : later) {
    const auto [found, is_first] = all->emplace(key, entry);
    if (is_first) continue;
    CheckOneTensor(found->second, entry.dtype, entry.shape);
    std::vector<TensorSlice>& slices = found->second.slices;
    slices.insert(slices.end(), entry.slices.begin(), entry.slices.end());
  }
}

}  // namespace

BundleWriter::BundleWriter(const std::vector<std::string>& data_paths, const std::string& index_path,
                           bool durable, size_t block_size, int64_t alignment)
    : block_size_(block_size), alignment_(alignment), owner_(getpid()), state_(index_path) {
  CheckArguments(data_paths.size(), alignment);
  try {
    for (const std::string& path : data_paths) AddShard(std::make_unique<FileOutput>(path, durable));
    index_ = std::make_unique<FileOutput>(index_path, durable);
  } catch (...) {
    for (const auto& shard : shards_) shard->writer.Discard();
    throw;
  }
}

BundleWriter::BundleWriter(std::vector<std::unique_ptr<Output>> data, std::unique_ptr<Output> index,
                           size_t block_size, int64_t alignment)
    : block_size_(block_size),
      alignment_(alignment),
      index_(std::move(index)),
      owner_(getpid()),
      state_(index_->path()) {
  CheckArguments(data.size(), alignment);
  for (std::unique_ptr<Output>& output : data) AddShard(std::move(output));
}

void BundleWriter::AddShard(std::unique_ptr<Output> output) {
  const auto shard_id = static_cast<int32_t>(shards_.size());
  shards_.push_back(std::make_unique<Shard>(std::move(output), shard_id, alignment_, state_));
}

BundleWriter::~BundleWriter() { Abandon(); }

void BundleWriter::Expect(size_t shard, uint64_t size) {
  Run(shard, [&](ShardWriter* writer) { writer->Expect(size); });
}

void BundleWriter::Add(size_t shard, const std::vector<TensorBytes>& tensors) {
  Run(shard, [&](ShardWriter* writer) {
    for (const TensorBytes& tensor : tensors) writer->Add(tensor);
  });
}

void BundleWriter::AddRows(size_t shard, const std::vector<std::string_view>& keys,
                           const TensorMemoryTable& table, const std::vector<size_t>& rows) {
  Run(shard, [&](ShardWriter* writer) {
    for (size_t i = 0; i < rows.size(); ++i) writer->AddRow(keys[i], table, table.rows[rows[i]]);
  });
}

void BundleWriter::AddRowPieces(size_t shard, const std::vector<std::string_view>& keys,
                                const TensorMemoryTable& table, const std::vector<RowPiece>& pieces) {
  Run(shard, [&](ShardWriter* writer) {
    for (size_t i = 0; i < pieces.size(); ++i) writer->AddRowPiece(keys[i], table, pieces[i]);
  });
}

void BundleWriter::AddStrings(size_t shard, std::string_view key, std::vector<int64_t> shape,
                              const std::vector<std::string_view>& values) {
  Run(shard, [&](ShardWriter* writer) { writer->AddStrings(key, std::move(shape), values); });
}

void BundleWriter::AddSlice(size_t shard, TensorBytes tensor, const TensorSlice& slice) {
  Run(shard, [&](ShardWriter* writer) { writer->AddSlice(std::move(tensor), slice); });
}

void BundleWriter::AddStringsSlice(size_t shard, std::string key, std::vector<int64_t> shape,
                                   const TensorSlice& slice, const std::vector<std::string_view>& values) {
  Run(shard,
      [&](ShardWriter* writer) { writer->AddStringsSlice(std::move(key), std::move(shape), slice, values); });
}

void BundleWriter::FinishShard(size_t shard) {
  Run(shard, [](ShardWriter* writer) { writer->Complete(); });
}

void BundleWriter::Finish() {
  const auto locks = LockAll();
  state_.CheckOpen();
  try {
    for (const auto& shard : shards_) shard->writer.Complete();
    WriteIndex();
  } catch (const std::exception& error) {
    Fail(error.what());
    throw;
  }
  owns_files_ = false;
  state_.Close("it has finished");
}

void BundleWriter::Fail(const std::string& reason) { state_.Close("it failed: " + reason); }

void BundleWriter::Abandon() {
  // A forked child has a copy of this object, but the files are its parent's, and so are the threads that hold
  // its locks.
  if (owner_ != getpid()) return;
  state_.Close("it was abandoned");
  const auto locks = LockAll();
  if (!owns_files_) return;
  owns_files_ = false;
  for (const auto& shard : shards_) shard->writer.Discard();
  index_->Discard();
}

std::vector<std::unique_lock<std::mutex>> BundleWriter::LockAll() {
  std::vector<std::unique_lock<std::mutex>> locks;
  locks.reserve(shards_.size());
  for (const auto& shard : shards_) locks.emplace_back(shard->mutex);
  return locks;
}

// Runs a call unless the writer is closed, and closes it if the call fails.
void BundleWriter::Run(size_t shard, const std::function<void(ShardWriter*)>& action) {
  if (shard >= shards_.size()) throw InvalidArgument("There is no shard " + std::to_string(shard));
  const std::lock_guard<std::mutex> lock(shards_[shard]->mutex);
  state_.CheckOpen();
  try {
    action(&shards_[shard]->writer);
  } catch (const std::exception& error) {
    Fail(error.what());
    throw;
  }
}

void BundleWriter::WriteIndex() {
  ShardWriter::SlicedTensors sliced;
  StringArray sliced_records;
  std::vector<Line> lines;
  for (const auto& shard : shards_) {
    AddSlices(shard->writer.sliced(), &sliced);
    for (size_t i = 0; i < shard->writer.keys().size(); ++i) {
      lines.push_back({shard->writer.keys()[i], shard->writer.records()[i]});
    }
  }
  std::string record;
  for (const auto& [key, entry] : sliced) {
    record.clear();
    entry.EncodeTo(&record);
    sliced_records.Append(record);
  }
  size_t next = 0;
  for (const auto& [key, entry] : sliced) lines.push_back({key, sliced_records[next++]});
  if (!std::is_sorted(lines.begin(), lines.end())) std::sort(lines.begin(), lines.end());
  CheckKeysDiffer(lines);

  BundleHeader header;
  header.num_shards = static_cast<int32_t>(shards_.size());
  header.producer = kProducerVersion;
  record.clear();
  header.EncodeTo(&record);
  TableBuilder table(index_.get(), block_size_);
  table.Add("", record);
  for (const Line& line : lines) table.Add(line.key, line.record);
  table.Finish();
  index_->Complete();
}

}  // namespace trackckpt
