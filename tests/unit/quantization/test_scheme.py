from __future__ import annotations

import subprocess
import sys

import pytest

from compress.errors import UsageError
from compress.quantization.scheme import Scheme


@pytest.mark.parametrize(("bits", "expected"), [(8, (-127, 127)), (7, (-63, 63)), (2, (-1, 1))])
def test_weight_range_is_symmetric(bits: int, expected: tuple[int, int]):
    assert Scheme(weight_bits=bits).weight_range == expected


def test_two_products_of_seven_bits_fit_sixteen():
    low, high = Scheme(weight_bits=7).weight_range
    assert 2 * 255 * high < 2**15 <= 2 * 255 * Scheme().weight_range[1]
    assert 2 * 255 * low >= -(2**15)


@pytest.mark.parametrize("bits", [1, 9])
def test_other_widths_are_refused(bits: int):
    with pytest.raises(UsageError, match=f"weight_bits is {bits}, expected 2 to 8") as caught:
        Scheme(weight_bits=bits)
    assert caught.value.exit_code == 2


def test_as_json():
    assert Scheme(weight_bits=7).to_dict() == {"name": "int8-symmetric", "weight_bits": 7}


def test_it_needs_no_tensor_library():
    code = "import sys, compress.quantization.scheme; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
