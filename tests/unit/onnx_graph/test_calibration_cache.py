from __future__ import annotations

import numpy as np
import pytest

from compress.errors import ModelError, UsageError
from compress.onnx_graph.calibration_cache import calibration_cache, read_calibration_cache
from compress.onnx_graph.scales import Scale, ScaleTable

TABLE = ScaleTable(
    {
        "image": Scale(float(np.float32(1 / 127)), "minmax"),
        "/layer1/relu:0": Scale(0.5, "qat"),
        "a: b": Scale(1e-38, "mse"),
        "w": Scale((0.25, 0.5), "max", 0),
        "v": Scale(2.0, "max"),
    }
)
ACTIVATIONS = ["image", "/layer1/relu:0", "a: b"]


def test_by_hand():
    text = calibration_cache(TABLE, ["image", "/layer1/relu:0"], "10.3.0")
    # 1 / 127 is 0x3c010204, 0.5 is 0x3f000000
    assert text == "TRT-100300-EntropyCalibration2\n/layer1/relu:0: 3f000000\nimage: 3c010204\n"


def test_it_reads_back():
    cache = read_calibration_cache(calibration_cache(TABLE, ACTIVATIONS, "10.14.1", calibrator="MinMaxCalibration"))
    assert (cache.version, cache.calibrator) == ((10, 14, 1), "MinMaxCalibration")
    assert cache.scales == {name: np.float32(np.array(TABLE[name].scale)) for name in ACTIVATIONS}


def test_what_tensorrt_has_written_is_read():
    cache = read_calibration_cache(
        "TRT-8401-EntropyCalibration2\ninput: 3caa54fc\n(Unnamed Layer* 64) [Shuffle]_output: 0\n371: 3caa54fc\n"
    )
    assert cache.version == (8, 4, 1)
    assert cache.scales["input"] == pytest.approx(2.64 / 127, rel=1e-3)
    assert cache.scales["(Unnamed Layer* 64) [Shuffle]_output"] == 0


def test_the_version_is_that_of_a_tensorrt_with_calibrators():
    assert calibration_cache(TABLE, [], "8.6.1") == "TRT-8601-EntropyCalibration2\n"
    for version, said in (
        ("11.0.0", r"for TensorRT 7 to 10, not 11\.0\.0"),
        ("6.0.1", r"not 6\.0\.1"),
        ("10.3", "such as"),
        ("ten", "such as"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            calibration_cache(TABLE, [], version)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "words"), [("w", "Activation w has 2 scales"), ("nowhere", "nowhere has no scale"), ("a\nb", "a line")]
)
def test_what_cannot_be_written(name, words):
    table = {**TABLE, "a\nb": Scale(1.0, "qat")}
    with pytest.raises(ModelError, match=words) as caught:
        calibration_cache(table, [name], "10.3.0")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "malformed: ''; expected TRT-100300"),
        ("image: 3c010204\n", 1, "expected TRT-100300-<EntropyCalibration2 or MinMaxCalibration>"),
        ("TRT-100300-Other\n", 1, "TRT-100300-Other"),
        ("TRT-100300-EntropyCalibration2\nimage 3c010204\n", 2, "expected NAME: HEXADECIMAL"),
        ("TRT-100300-EntropyCalibration2\nimage: 3c010204\n\nr: 3c0102040\n", 4, "at most 8 digits"),
        ("TRT-100300-EntropyCalibration2\nimage: xyz\n", 2, "expected NAME: HEXADECIMAL"),
        ("TRT-100300-EntropyCalibration2\nimage: 7fc00000\n", 2, "a scale, got nan"),
        ("TRT-100300-EntropyCalibration2\nimage: bf800000\n", 2, "a scale, got -1.0"),
        ("TRT-100300-EntropyCalibration2\nimage: 1\nimage: 1\n", 3, "each tensor once"),
    ],
)
def test_malformed_files(text, line, words):
    with pytest.raises(ModelError, match="The calibration cache is malformed") as caught:
        read_calibration_cache(text)
    assert words in str(caught.value)
    assert caught.value.where == f"line {line}"
    assert caught.value.exit_code == 5
