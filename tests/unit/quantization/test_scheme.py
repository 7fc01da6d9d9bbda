from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from compress.errors import UsageError
from compress.quantization.scheme import Scheme


@pytest.mark.parametrize(("bits", "expected"), [(8, (-127, 127)), (7, (-63, 63)), (2, (-1, 1))])
def test_weight_range_is_symmetric(bits: int, expected: tuple[int, int]):
    assert Scheme(weight_bits=bits).weight_range(half_range=True) == expected
    assert Scheme(full_range_weight_bits=bits).weight_range(half_range=False) == expected


@pytest.mark.parametrize(("half_range", "activation"), [(True, 127), (False, 255)])
def test_two_products_fit_sixteen_bits(half_range: bool, activation: int):
    low, high = Scheme().weight_range(half_range=half_range)
    assert 2 * activation * high < 2**15
    assert 2 * activation * low >= -(2**15)


def test_one_bit_more_would_not_fit():
    _, high = Scheme(full_range_weight_bits=8).weight_range(half_range=False)
    assert 2 * 255 * high >= 2**15


@pytest.mark.parametrize("field", ["weight_bits", "full_range_weight_bits"])
@pytest.mark.parametrize("bits", [1, 9])
def test_other_widths_are_refused(field: str, bits: int):
    options: dict[str, Any] = {field: bits}
    with pytest.raises(UsageError, match=f"{field} is {bits}, expected 2 to 8") as caught:
        Scheme(**options)
    assert caught.value.exit_code == 2


def test_as_json():
    expected = {"name": "int8-symmetric", "weight_bits": 7, "full_range_weight_bits": 6}
    assert Scheme(weight_bits=7, full_range_weight_bits=6).to_dict() == expected


def test_it_needs_no_tensor_library():
    code = "import sys, compress.quantization.scheme; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
