from __future__ import annotations

import subprocess
import sys

import pytest

from compress.errors import UsageError
from compress.quantization.settings import QuantizeSettings


def test_defaults():
    settings = QuantizeSettings()
    assert (settings.method, settings.weights, settings.granularity) == ("mse", "max", "per_channel")
    assert (settings.float_layers, settings.unsigned_weights) == ((), "shifted")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            {"method": "kl"},
            "Unknown calibration method 'kl'; expected one of minmax, moving_average, percentile, entropy, mse",
        ),
        ({"weights": "min"}, "Unknown method for weights 'min'; expected one of max, mse"),
        ({"granularity": "per_row"}, "Unknown granularity of weights 'per_row'; expected one of per_channel"),
        ({"percentile": 50}, "The percentile is 50; expected above 50 and at most 100"),
        ({"percentile": 100.1}, "The percentile is 100.1"),
        ({"percentile": float("nan")}, "The percentile is nan"),
    ],
)
def test_what_is_unknown_is_refused(choice, words):
    with pytest.raises(UsageError, match=words) as caught:
        QuantizeSettings(**choice)
    assert caught.value.exit_code == 2


def test_no_tensor_library_is_imported():
    code = "import sys, compress.quantization.settings; print({'torch', 'numpy', 'onnx'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
