"""Basic Pitch, Spotify's network that hears which notes are played, in PyTorch.

    python examples/ported/basic_pitch.py [tests/corpus/sm2-basic-pitch]

The SavedModel comes with the package basic-pitch 0.4.0 (Apache-2.0, Copyright 2022 Spotify AB,
https://github.com/spotify/basic-pitch). The module takes what its signature takes: audio. A constant-Q transform makes
a spectrogram of it, with three bins for a semitone; the harmonics of a tone are laid over each other; convolutions find
contours, notes and their beginnings.

The filters of the constant-Q transform are no variables, but constants within the SavedModel's graph. They follow from
the sampling rate and the lowest tone, and are computed here as in nnAudio's CQT2010v2, which is where Basic Pitch has
them from.
"""

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_trackckpt.interop import load_keras

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"

SAMPLE_RATE = 22050
NUM_SAMPLES = 43844
LOWEST_TONE = 27.5
BINS_PER_SEMITONE = 3
BINS_PER_OCTAVE = 12 * BINS_PER_SEMITONE
NUM_CQT_BINS = 309
NUM_CONTOUR_BINS = 88 * BINS_PER_SEMITONE
HOP = 256
HARMONICS = (0.5, 1, 2, 3, 4, 5, 6, 7)
KEYS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


class ConstantQTransform(nn.Module):
    """Magnitudes of shape [batch, frames, bins] of audio of shape [batch, samples].

    The filters of the highest octave serve for all: for each lower one the audio goes through a low-pass filter and
    loses every second sample.
    """

    real: Tensor
    imaginary: Tensor
    low_pass: Tensor
    scales: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.num_octaves = math.ceil(NUM_CQT_BINS / BINS_PER_OCTAVE)
        cycles = 1 / (2 ** (1 / BINS_PER_OCTAVE) - 1)
        tones = LOWEST_TONE * 2 ** (np.arange(NUM_CQT_BINS) / BINS_PER_OCTAVE)
        lengths = np.ceil(cycles * SAMPLE_RATE / tones)
        filters = tone_filters(tones[-BINS_PER_OCTAVE:], lengths[-BINS_PER_OCTAVE:].astype(int))
        self.half_width = filters.shape[1] // 2
        for name, values in {
            "real": filters.real[:, None],
            "imaginary": -filters.imag[:, None],
            "low_pass": half_band_filter(256)[None, None],
            "scales": np.sqrt(lengths)[:, None],
        }.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        audio = audio[:, None]
        octaves = []
        for octave in range(self.num_octaves):
            if octave > 0:
                audio = functional.conv1d(functional.pad(audio, (127, 127)), self.low_pass, stride=2)
            padded = functional.pad(audio, (self.half_width, self.half_width), mode="reflect")
            parts = [functional.conv1d(padded, part, stride=HOP >> octave) for part in (self.real, self.imaginary)]
            octaves.append(torch.stack(parts, -1))
        # The lowest octave comes last, and has more bins than are wanted.
        spectrum = torch.cat(octaves[::-1], 1)[:, -NUM_CQT_BINS:] * self.scales[:, :, None]
        return spectrum.square().sum(-1).sqrt().transpose(1, 2)


def tone_filters(tones: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.complex128]:
    """A complex filter for each tone: a wave under a Hann window, in the middle of zeros."""
    width = 2 ** math.ceil(math.log2(lengths.max()))
    filters = np.zeros((len(tones), width), np.complex128)
    for row, tone, length in zip(filters, tones, lengths, strict=True):
        start = math.ceil(width / 2 - length / 2) - length % 2
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        times = np.arange(-length // 2, length // 2) / SAMPLE_RATE
        row[start : start + length] = window / window.sum() * np.exp(2j * np.pi * tone * times)
    return filters


def half_band_filter(width: int, transition: float = 0.001) -> npt.NDArray[np.float64]:
    """A low-pass filter that keeps the lower half of the band: the wanted response, transformed, under a window."""
    frequencies = np.linspace(0, 1, width + 1)
    gains = np.interp(frequencies, [0, 0.5 / (1 + transition), 0.5 * (1 + transition), 1], [1, 1, 0, 0])
    delayed = gains * np.exp(-0.5j * (width - 1) * np.pi * frequencies)
    return np.fft.irfft(delayed)[:width] * np.hamming(width)


def normalized_log(magnitudes: Tensor) -> Tensor:
    """Decibels, moved and scaled to 0 to 1 within each example; 0 for an example that is the same everywhere."""
    decibels = 10 * torch.log10(magnitudes.square() + 1e-10)
    above = decibels - decibels.amin((1, 2), keepdim=True)
    range_ = above.amax((1, 2), keepdim=True)
    return torch.where(range_ == 0, 0.0, above / range_)


def harmonic_stack(spectrum: Tensor) -> Tensor:
    """One channel for each harmonic: the spectrum, moved so that the harmonic lies at its fundamental's bin."""
    channels = []
    for harmonic in HARMONICS:
        shift = round(BINS_PER_OCTAVE * math.log2(harmonic))
        channels.append(functional.pad(spectrum, (-shift, shift))[..., :NUM_CONTOUR_BINS])
    return torch.cat(channels, 1)


class BasicPitch(nn.Module):
    """What is played in audio of shape [batch, 43844, 1], in 172 frames.

    Returns probabilities: "contour" of shape [batch, 172, 264], three for each key of a piano, and "note" and "onset",
    each of shape [batch, 172, 88].
    """

    def __init__(self) -> None:
        super().__init__()
        self.transform = ConstantQTransform()
        self.norm = norm(1)
        self.contour = nn.Sequential(
            nn.Conv2d(len(HARMONICS), 8, (3, 39), padding=(1, 19)),
            norm(8),
            nn.ReLU(),
            nn.Conv2d(8, 1, 5, padding=2),
            nn.Sigmoid(),
        )
        self.note = nn.Sequential(
            nn.Conv2d(1, 32, 7, stride=(1, BINS_PER_SEMITONE), padding=(3, 2)),
            nn.ReLU(),
            nn.Conv2d(32, 1, (7, 3), padding=(3, 1)),
            nn.Sigmoid(),
        )
        self.onset_features = nn.Sequential(
            nn.Conv2d(len(HARMONICS), 32, 5, stride=(1, BINS_PER_SEMITONE), padding=(2, 1)),
            norm(32),
            nn.ReLU(),
        )
        self.onset = nn.Sequential(nn.Conv2d(33, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, audio: Tensor) -> dict[str, Tensor]:
        spectrum = normalized_log(self.transform(audio.flatten(1)))
        harmonics = harmonic_stack(self.norm(spectrum[:, None]))
        contour = self.contour(harmonics)
        note = self.note(contour)
        onset = self.onset(torch.cat([note, self.onset_features(harmonics)], 1))
        return {"contour": contour[:, 0], "note": note[:, 0], "onset": onset[:, 0]}


def norm(num_channels: int) -> nn.BatchNorm2d:
    """With what Keras takes where nothing is said."""
    return nn.BatchNorm2d(num_channels, eps=1e-3, momentum=0.01)


# The names of the modules' layers in the file. Their order does not tell: the file has them by their distance from the
# outputs, in which the two branches alternate.
MAP = {
    "norm": "batch_normalization",
    "contour.0": "conv2d_1",
    "contour.1": "batch_normalization_2",
    "contour.3": "contours-reduced",
    "note.0": "conv2d_2",
    "note.2": "conv2d_3",
    "onset_features.0": "conv2d_4",
    "onset_features.1": "batch_normalization_3",
    "onset.0": "conv2d_5",
}


def load(path: str | os.PathLike[str]) -> BasicPitch:
    """The model with the values of a SavedModel or a checkpoint."""
    net = BasicPitch()
    load_keras(net, path, map=MAP)
    return net.eval()


def predict(net: BasicPitch, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the model hears in the stored audio, in those frames of which TensorFlow's answer is stored."""
    audio = torch.from_numpy(stored["audio"].astype(np.float32) / 2**15)
    with torch.no_grad():
        return {name: found[:, stored["frames"]] for name, found in net(audio[None, :, None]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "sm2-basic-pitch")
    stored = np.load(CORPUS / "ported" / "basic_pitch.npz")
    found = predict(load(parser.parse_args().path), stored)
    names = [f"{KEYS[key % 12]}{key // 12 - 1}" for key in range(21, 109)]
    for frame, probabilities in zip(stored["frames"], found["note"][0], strict=True):
        heard = [name for name, probability in zip(names, probabilities, strict=True) if probability > 0.5]
        print(f"{frame * HOP / SAMPLE_RATE:5.2f} s  {' '.join(heard)}")
    for name, values in found.items():
        print(f"{name}: within {np.abs(values.numpy() - stored[name]).max():.1e} of TensorFlow")


if __name__ == "__main__":
    main()
