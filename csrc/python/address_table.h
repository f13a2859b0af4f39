// Nodes by the addresses of their objects: a hash table of numbers, without an allocation for each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trackckpt {

// Open addressing with linear probing; at most half of the places are taken.
class AddressTable {
 public:
  // -1 where the address was not added.
  int32_t Find(uint64_t address) const {
    if (places_.empty()) return -1;
    for (size_t i = Place(address);; i = (i + 1) & mask()) {
      if (places_[i].node < 0 || places_[i].address == address) return places_[i].node;
    }
  }

  // An address that is not there yet.
  void Add(uint64_t address, int32_t node) {
    if (2 * (size_ + 1) > places_.size()) Grow();
    size_t i = Place(address);
    while (places_[i].node >= 0) i = (i + 1) & mask();
    places_[i] = {address, node};
    ++size_;
  }

 private:
  struct Entry {
    uint64_t address = 0;
    int32_t node = -1;
  };

  size_t mask() const { return places_.size() - 1; }
  // Objects lie at multiples of 16; the upper half of the product depends on every bit.
  size_t Place(uint64_t address) const { return ((address * 0x9e3779b97f4a7c15u) >> 32) & mask(); }

  void Grow() {
    std::vector<Entry> before(std::max<size_t>(64, 4 * places_.size()));
    before.swap(places_);
    size_ = 0;
    for (const Entry& entry : before) {
      if (entry.node >= 0) Add(entry.address, entry.node);
    }
  }

  std::vector<Entry> places_;
  size_t size_ = 0;
};

}  // namespace trackckpt
