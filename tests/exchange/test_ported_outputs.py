"""What tests/corpus/ported has of TensorFlow's outputs is what TensorFlow gives."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpus_truth import CORPUS

ALSO_NEEDED = {
    "iris": "tf_keras",
    "sonnet_lstm": "sonnet",
    "sonnet_cifar": "sonnet",
    "sonnet_vqvae": "sonnet",
    "sonnet_mean": "sonnet",
}


@pytest.mark.usefixtures("tensorflow")
def test_the_stored_outputs_of_other_peoples_models_are_those_of_tensorflow(tmp_path: Path) -> None:
    names = [path.stem for path in sorted((CORPUS / "ported").glob("*.npz"))]
    made = [name for name in names if importlib.util.find_spec(ALSO_NEEDED.get(name, "tensorflow")) is not None]
    script = CORPUS / "make_ported_outputs.py"

    command = [sys.executable, str(script), *made, "--directory", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    assert result.returncode == 0, result.stderr
    for name in made:
        with np.load(CORPUS / "ported" / f"{name}.npz") as stored, np.load(tmp_path / f"{name}.npz") as found:
            assert stored.files == found.files
            for key in stored.files:
                assert stored[key].dtype == found[key].dtype
                if stored[key].dtype.kind == "f":
                    tolerance = 1e-5 * max(1.0, np.abs(stored[key]).max())
                    np.testing.assert_allclose(
                        found[key], stored[key], rtol=0, atol=tolerance, err_msg=f"{name}, {key}"
                    )
                else:
                    np.testing.assert_array_equal(found[key], stored[key], err_msg=f"{name}, {key}")
