"""safetensors, and fastsafetensors as another reader of its files. Neither checks what it reads."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contenders.base import Contender, copy_into


class Safetensors(Contender):
    """A flat dict in one file, read through a memory map."""

    install = "safetensors"

    def prepare(self) -> None:
        self._library = self.library("safetensors.torch")
        self._open = self.library("safetensors").safe_open

    def save(self, path: Path) -> None:
        self._library.save_file(self.workload.tensors(), path / "state.safetensors")

    def load(self, path: Path) -> None:
        stored = self._library.load_file(path / "state.safetensors")
        copy_into(self.workload.tensors(), stored.__getitem__)

    def read_one(self, path: Path, name: str) -> float:
        with self._open(path / "state.safetensors", framework="pt") as file:
            return float(file.get_tensor(name).sum())


class FastSafetensors(Safetensors):
    """The same files, read by threads into a buffer of their size."""

    install = "fastsafetensors"

    def prepare(self) -> None:
        super().prepare()
        self._loader = self.library("fastsafetensors").SafeTensorsFileLoader

    def load(self, path: Path) -> None:
        loader = self._loader(None, "cpu", nogds=True)
        loader.add_filenames({0: [str(path / "state.safetensors")]})
        buffer = loader.copy_files_to_device()
        copy_into(self.workload.tensors(), buffer.get_tensor)
        buffer.close()
        loader.close()

    def read_one(self, path: Path, name: str) -> float:
        loader = self._loader(None, "cpu", nogds=True)
        loader.set_tensor_filter(lambda stored: stored == name)
        loader.add_filenames({0: [str(path / "state.safetensors")]})
        buffer = loader.copy_files_to_device()
        value = float(buffer.get_tensor(name).sum())
        buffer.close()
        loader.close()
        return value
