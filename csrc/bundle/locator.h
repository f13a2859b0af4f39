// Finds where a tensor lies, and checks it before a byte of it is read.
#pragma once

#include <string_view>
#include <vector>

#include "bundle/data_files.h"
#include "bundle/index.h"
#include "bundle/slice.h"

namespace trackckpt {

// A stored value, which is a slice of a tensor or all of it, and what is wanted of it.
struct StoredPart {
  BundleEntry value;  // its key is for messages
  Box stored;
  Box part;

  bool IsWhole() const { return part == stored; }
};

class TensorLocator {
 public:
  // Both stay with the caller and outlive this.
  TensorLocator(const BundleIndex& index, DataFiles* files) : index_(index), files_(*files) {}

  // The entry of a tensor of a type that is read. If it lies in one piece, its place has been checked.
  BundleEntry Find(std::string_view key) const;

  // The stored values that hold `request` of such a tensor. All exist, have the right type, shape and size, and
  // lie inside of their files; together they are no larger than those.
  std::vector<StoredPart> Parts(const BundleEntry& tensor, const Box& request) const;
  std::vector<StoredPart> Parts(const BundleEntry& tensor) const {
    return Parts(tensor, WholeBox(tensor.shape));
  }

 private:
  void CheckType(const BundleEntry& entry) const;
  void CheckSliceKeys(const BundleEntry& tensor) const;
  BundleEntry FindSlice(const BundleEntry& tensor, const Piece& piece) const;
  void CheckTotalSize(const BundleEntry& tensor, const std::vector<StoredPart>& parts) const;

  const BundleIndex& index_;
  DataFiles& files_;
};

}  // namespace trackckpt
