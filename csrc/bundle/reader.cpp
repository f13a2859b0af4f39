#include "bundle/reader.h"

#include <utility>

#include "bundle/dtype.h"
#include "bundle/fixed_reader.h"
#include "bundle/parallel_reader.h"
#include "bundle/stored_value.h"
#include "bundle/string_tensor.h"
#include "bundle/variant_tensor.h"
#include "error.h"

namespace trackckpt {

namespace {

Error InvalidArgument(const std::string& message) { return Error(ErrorKind::kInvalidArgument, message); }

void CheckFixedSize(const BundleEntry& tensor) {
  if (tensor.dtype == kDtypeString) {
    throw InvalidArgument("Key " + DisplayKey(tensor.key) + " is a string tensor");
  }
  if (tensor.dtype == kDtypeVariant) {
    throw Error(
        ErrorKind::kUnsupportedFormat,
        "Key " + DisplayKey(tensor.key) + " is a variant tensor, which has no elements of a fixed size");
  }
}

void CheckMemory(const ReadRequest& request, uint64_t size) {
  if (request.size == size) return;
  throw InvalidArgument("Key " + DisplayKey(request.key) + " needs " + std::to_string(size) +
                        " bytes, but memory of " + std::to_string(request.size) + " bytes was given");
}

Box ResolveRequest(const BundleEntry& tensor, const TensorSlice& slice) {
  const std::optional<Box> box = Resolve(slice, tensor.shape);
  if (box) return *box;
  throw InvalidArgument("Key " + DisplayKey(tensor.key) + " has no part " + DisplaySlice(slice));
}

// Has `reader` read the value of a request, or only check it where there is no destination.
void Place(const BundleEntry& tensor, const TensorLocator& locator, std::string_view key, char* destination,
           size_t request, ParallelReader* reader) {
  if (tensor.slices.empty()) {
    reader->Add(PlacedValue(tensor, key, destination, request));
  } else {
    reader->AddParts(WholeBox(tensor.shape), locator.Parts(tensor), destination, request);
  }
}

// Strings and variants, from front to back. They are kept only if `strings` is not null.
void Decode(const BundleEntry& value, DataFiles* files, ByteOrder order, StringArray* strings) {
  std::string buffer;
  const auto file = files->Open(value.shard_id);
  ValueStream stream(value, *file, &buffer);
  if (value.dtype == kDtypeString) {
    DecodeStrings(&stream, order, strings);
  } else {
    DecodeVariants(&stream, strings);
  }
}

std::unique_ptr<StringParts> LoadParts(const TensorLocator& locator, const BundleEntry& tensor,
                                       const Box& request, DataFiles* files, ByteOrder order) {
  const auto load = [&](const BundleEntry& value) {
    StringArray strings;
    Decode(value, files, order, &strings);
    return strings;
  };
  return std::make_unique<StringParts>(locator.Parts(tensor, request), request, load);
}

}  // namespace

BundleReader::BundleReader(const std::string& index_path, std::string data_prefix,
                           std::vector<std::string> data_suffixes, std::shared_ptr<const FilePlace> place)
    : index_(*place->Open(index_path)) {
  data_names_.place = std::move(place);
  data_names_.prefix = std::move(data_prefix);
  data_names_.suffixes = std::move(data_suffixes);
  data_names_.num_shards = index_.num_shards();
  if (data_names_.suffixes.empty()) throw InvalidArgument("data_suffixes is empty");
}

std::string BundleReader::DataPath(int64_t shard_id) const {
  if (shard_id < 0 || shard_id >= num_shards()) {
    throw InvalidArgument("no such shard: " + std::to_string(shard_id) + " of " +
                          std::to_string(num_shards()));
  }
  return DataFiles(data_names_).Open(static_cast<int32_t>(shard_id))->path();
}

void BundleReader::Check(const std::vector<std::string>& keys) const {
  DataFiles files(data_names_);
  const TensorLocator locator(index_, &files);
  for (const std::string& key : keys) {
    const BundleEntry tensor = locator.Find(key);
    if (!tensor.slices.empty()) locator.Parts(tensor);
  }
}

void BundleReader::Verify(const std::vector<std::string>& keys, size_t num_threads) const {
  DataFiles files(data_names_);
  const TensorLocator locator(index_, &files);
  ParallelReader reader(&files, index_.byte_order());
  for (size_t i = 0; i < keys.size(); ++i) {
    const BundleEntry tensor = locator.Find(keys[i]);
    if (ItemSize(tensor.dtype) > 0) {
      Place(tensor, locator, keys[i], nullptr, i, &reader);
      continue;
    }
    for (StoredPart& part : locator.Parts(tensor)) {
      reader.AddCheck([this, &files, value = std::move(part.value)] {
        Decode(value, &files, index_.byte_order(), nullptr);
      });
    }
  }
  reader.Verify(num_threads);
}

void BundleReader::Read(const std::vector<ReadRequest>& requests, size_t num_threads,
                        std::vector<size_t>* touched) const {
  DataFiles files(data_names_);
  const TensorLocator locator(index_, &files);
  ParallelReader reader(&files, index_.byte_order());
  for (size_t i = 0; i < requests.size(); ++i) {
    const BundleEntry tensor = locator.Find(requests[i].key);
    CheckFixedSize(tensor);
    CheckMemory(requests[i], *ExpectedSize(tensor));
    Place(tensor, locator, requests[i].key, static_cast<char*>(requests[i].destination), i, &reader);
  }
  try {
    reader.Read(num_threads, UINT64_MAX);
  } catch (const Error&) {
    *touched = reader.Touched();
    throw;
  }
}

void BundleReader::ReadSlice(const ReadRequest& request, const TensorSlice& slice, bool verify) const {
  DataFiles files(data_names_);
  const TensorLocator locator(index_, &files);
  const BundleEntry tensor = locator.Find(request.key);
  CheckFixedSize(tensor);
  const Box box = ResolveRequest(tensor, slice);
  CheckMemory(request, box.NumElements() * ItemSize(tensor.dtype));
  const std::vector<StoredPart> parts = locator.Parts(tensor, box);
  FixedReader reader(&files, index_.byte_order());
  if (verify) {
    for (const StoredPart& part : parts) reader.Verify(part.value);
  }
  char* destination = static_cast<char*>(request.destination);
  for (const StoredPart& part : parts) {
    if (part.IsWhole() && !verify) {
      reader.ReadWhole(part, box, destination);
    } else {
      reader.ReadPart(part, box, destination);
    }
  }
}

std::unique_ptr<StringParts> BundleReader::ReadStrings(std::string_view key,
                                                       const std::optional<TensorSlice>& slice) const {
  DataFiles files(data_names_);
  const TensorLocator locator(index_, &files);
  const BundleEntry tensor = locator.Find(key);
  if (tensor.dtype != kDtypeString) {
    throw InvalidArgument("Key " + DisplayKey(key) + " is no string tensor");
  }
  const Box request = slice ? ResolveRequest(tensor, *slice) : WholeBox(tensor.shape);
  return LoadParts(locator, tensor, request, &files, index_.byte_order());
}

std::unique_ptr<StringParts> BundleReader::ReadVariants(std::string_view key) const {
  DataFiles files(data_names_);
  const TensorLocator locator(index_, &files);
  const BundleEntry tensor = locator.Find(key);
  if (tensor.dtype != kDtypeVariant) {
    throw InvalidArgument("Key " + DisplayKey(key) + " is no variant tensor");
  }
  return LoadParts(locator, tensor, WholeBox(tensor.shape), &files, index_.byte_order());
}

}  // namespace trackckpt
