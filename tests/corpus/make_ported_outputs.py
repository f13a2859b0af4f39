"""Writes tests/corpus/ported: inputs for models of other people, and what they make of them in TensorFlow.

    python tests/corpus/make_ported_outputs.py [NAME ...] [--directory tests/corpus/ported]

SavedModels are run as they are; Sonnet's networks are built as Sonnet's conformance tests build them, and take the
values of the checkpoint. Needs TensorFlow, and for what has no graph of its own tf_keras and dm-sonnet.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

CORPUS = Path(__file__).parent


def basic_pitch() -> Arrays:
    """Four notes of decaying tones, one after the other and ringing on, above a little noise."""
    import tensorflow as tf

    times = np.arange(43844) / 22050
    audio = 0.002 * np.random.default_rng(0).standard_normal(len(times))
    for key, start in ((57, 0.1), (61, 0.5), (64, 0.9), (69, 1.3)):
        since = np.maximum(times - start, 0)
        loudness = (times >= start) * np.minimum(since / 0.01, 1) * np.exp(-2 * since)
        tone = 440 * 2 ** ((key - 69) / 12)
        for harmonic in range(1, 7):
            audio += 0.2 * loudness * np.sin(2 * np.pi * harmonic * tone * since) / harmonic**1.5
    samples = np.round(audio * 2**15).astype(np.int16)
    signature = tf.saved_model.load(str(CORPUS / "sm2-basic-pitch")).signatures["serving_default"]
    found = signature(tf.constant(samples[None, :, None].astype(np.float32) / 2**15))
    frames = np.arange(3, 172, 12)
    real, imaginary, low_pass = [tf.convert_to_tensor(constant).numpy() for constant, _ in signature.graph.captures[:3]]
    tones = np.array([0, 17, 35])
    constants = {"tones": tones, "real": real[tones], "imaginary": -imaginary[tones], "low_pass": low_pass[None, None]}
    outputs = {name: found[name].numpy()[:, frames] for name in ("contour", "note", "onset")}
    return {"audio": samples, "frames": frames, **outputs, **constants}


def lstm_from_sequential() -> Arrays:
    import tensorflow as tf

    sequences = np.random.default_rng(0).standard_normal((8, 5, 3)).astype(np.float32)
    signature = tf.saved_model.load(str(CORPUS / "sm2-lstm-keras-2.12")).signatures["serving_default"]
    return {"sequences": sequences, "dense": signature(tf.constant(sequences))["dense"].numpy()}


def penguins() -> Arrays:
    """The signature takes records; the features go in by name."""
    import tensorflow as tf

    names = ("culmen_length_mm", "culmen_depth_mm", "flipper_length_mm", "body_mass_g")
    features = np.random.default_rng(0).uniform(0, 1, (8, 4)).astype(np.float32)
    records = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
                    for name, value in zip(names, row, strict=True)
                }
            )
        ).SerializeToString()
        for row in features
    ]
    signature = tf.saved_model.load(str(CORPUS / "sm2-keras-iris")).signatures["serving_default"]
    return {"features": features, "output_0": signature(tf.constant(records))["output_0"].numpy()}


def iris() -> Arrays:
    """The model is built as its example builds it: one input for each feature, Dense layers with relu, softmax."""
    import tensorflow as tf
    import tf_keras as keras

    inputs = [keras.layers.Input((1,)) for _ in range(4)]
    hidden = keras.layers.concatenate(inputs)
    for _ in range(3):
        hidden = keras.layers.Dense(8, activation="relu")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(hidden))
    model.load_weights(str(CORPUS / "v2-prefix-named-checkpoint" / "checkpoint")).assert_existing_objects_matched()
    features = np.random.default_rng(0).uniform(0, 1, (8, 4)).astype(np.float32)
    return {"features": features, "probabilities": model(tf.split(tf.constant(features), 4, axis=1)).numpy()}


def guesslang() -> Arrays:
    """Short programs; all pairs of bytes, of which a part is cut off; texts that are too short to have a pair."""
    import tensorflow as tf

    texts = [
        b'#include <stdio.h>\n\nint main(void) {\n    printf("hello\\n");\n    return 0;\n}\n',
        b"def greet(names):\n    for name in names:\n        print(f'hello {name}')\n\n\ngreet(['you'])\n",
        b'fn main() {\n    let total: u32 = (1..=10).filter(|n| n % 2 == 0).sum();\n    println!("{}", total);\n}\n',
        b"SELECT name, COUNT(*) FROM users WHERE age > 21 GROUP BY name ORDER BY 2 DESC;\n",
        "données: [été, hiver]\nclé: naïve\n".encode(),
        bytes(range(1, 256)) * 50 + b"\n",
        b"x",
        b"",
    ]
    signature = tf.saved_model.load(str(CORPUS / "sm2-guesslang-estimator")).signatures["classification"]
    found = signature(tf.constant(texts))
    return {
        "texts": np.array(texts),
        "scores": found["scores"].numpy(),
        "classes": found["classes"].numpy()[0].astype("S"),
    }


def sonnet_lstm() -> Arrays:
    """Inputs under which the gates stay between open and shut, although each weight is one larger than the last.

    Each step makes rounding errors a hundred times larger: all is computed in double precision.
    """
    import sonnet as snt
    import tensorflow as tf

    single = snt.LSTM(hidden_size=8, projection_size=1)
    single(tf.zeros((1, 128)), single.initial_state(1))
    restore_sonnet(single, "v2-sonnet-lstm")
    module = snt.LSTM(hidden_size=8, projection_size=1, dtype=tf.float64)
    state = module.initial_state(3)
    module(tf.zeros((3, 128), tf.float64), state)
    for variable, value in zip(module.variables, single.variables, strict=True):
        variable.assign(tf.cast(value, tf.float64))
    rng = np.random.default_rng(0)
    sequences, outputs = [], []
    for _ in range(3):
        # The gate of a column is 32 sum(row * input) + column * (sum(input) + hidden + 1); rows count from zero.
        inputs = rng.normal(0, 1e-5, (3, 128))
        inputs[:, 1] = rng.uniform(-0.03, 0.03, 3)
        inputs[:, 0] = rng.uniform(-0.05, 0.05, 3) - 1 - state.hidden.numpy()[:, 0] - inputs[:, 1:].sum(1)
        sequences.append(inputs)
        output, state = module(tf.constant(inputs), state)
        outputs.append(output.numpy())
    return {"sequences": np.stack(sequences), "outputs": np.stack(outputs), "cell": state.cell.numpy()}


def sonnet_cifar() -> Arrays:
    """With the moving averages, which Sonnet takes when it is told not to look at the batch."""
    import sonnet as snt
    import tensorflow as tf

    module = snt.nets.Cifar10ConvNet(output_channels=(2, 3), strides=(2, 2))
    images = np.random.default_rng(0).uniform(-1, 1, (3, 9, 8, 2)).astype(np.float32)
    module(tf.constant(images), is_training=True)
    restore_sonnet(module, "v2-sonnet-cifar")
    found = module(tf.constant(images), is_training=False, test_local_stats=False)
    return {"images": images, "logits": found["logits"].numpy()}


def sonnet_vqvae() -> Arrays:
    import sonnet as snt
    import tensorflow as tf

    module = snt.nets.VectorQuantizerEMA(embedding_dim=5, num_embeddings=7, commitment_cost=0.5, decay=0.9)
    restore_sonnet(module, "v2-sonnet-vqvae-ema")
    rng = np.random.default_rng(0)
    codes = module.embeddings.numpy().T[[0, 3, 3, 6, 5, 1]]
    inputs = (codes + rng.normal(0, 0.2, codes.shape)).astype(np.float32).reshape(2, 3, 5)
    found = module(tf.constant(inputs), is_training=False)
    names = ("quantize", "loss", "perplexity", "encoding_indices")
    outputs = {name: found[name].numpy() for name in names}
    module(tf.constant(inputs), is_training=True)
    return {"inputs": inputs, **outputs, "embeddings_after_step": module.embeddings.numpy()}


def sonnet_mean() -> Arrays:
    import sonnet as snt
    import tensorflow as tf

    module = snt.Mean()
    module.initialize(tf.zeros((2, 2)))
    restore_sonnet(module, "v2-sonnet-mean-2shards")
    inputs = np.random.default_rng(0).standard_normal((3, 2, 2)).astype(np.float32)
    return {"inputs": inputs, "means": np.stack([module(tf.constant(value)).numpy() for value in inputs])}


def restore_sonnet(module: Any, item: str) -> None:
    """Takes all values of the only checkpoint in a directory."""
    import tensorflow as tf

    tf.train.Checkpoint(module=module).restore(tf.train.latest_checkpoint(str(CORPUS / item))).assert_consumed()


MAKERS: dict[str, Callable[[], Arrays]] = {
    "basic_pitch": basic_pitch,
    "lstm_from_sequential": lstm_from_sequential,
    "guesslang": guesslang,
    "penguins": penguins,
    "iris": iris,
    "sonnet_lstm": sonnet_lstm,
    "sonnet_cifar": sonnet_cifar,
    "sonnet_vqvae": sonnet_vqvae,
    "sonnet_mean": sonnet_mean,
}


def main() -> None:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(MAKERS), help="without one, all")
    parser.add_argument("--directory", type=Path, default=CORPUS / "ported")
    arguments = parser.parse_args()
    for name in arguments.names:
        path = arguments.directory / f"{name}.npz"
        np.savez_compressed(path, **MAKERS[name]())
        print(f"{path.stat().st_size:7} bytes  {path}")


if __name__ == "__main__":
    main()
