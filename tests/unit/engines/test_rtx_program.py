from __future__ import annotations

import pytest

from compress.engines.rtx_program import (
    CONVOLUTION,
    GEMM,
    Kind,
    Operation,
    compute_capabilities,
    count_int8,
    operand_types,
)

NODES: dict[str, Kind] = {"a": CONVOLUTION, "b": CONVOLUTION, "head": GEMM}


def operation(name: str, *inputs: str, kind: Kind = CONVOLUTION, layers: tuple[str, ...] = ()) -> Operation:
    return Operation(kind, "corrltn", name, layers, inputs, ("float",))


def test_a_real_engine_shows_its_operands(int8_engine):
    operations = operand_types(int8_engine.read_bytes())
    assert [entry.name.split("_")[0] for entry in operations] == ["c1", "c2", "c3", "head"]
    assert [entry.kind for entry in operations] == [CONVOLUTION] * 3 + [GEMM]
    assert all(entry.inputs[:2] == ("int8", "int8") for entry in operations)
    assert all(name in entry.layers for name, entry in zip(["c1", "c2", "c3", "head"], operations, strict=True))


def test_a_real_header_names_capabilities(int8_engine):
    assert compute_capabilities(int8_engine.read_bytes()) == ("8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.mark.parametrize("plan", [b"", b"vtrt", b"ptrt" + bytes(100), b"\xff" * 1000])
def test_other_bytes_show_nothing(plan):
    assert operand_types(plan) == []
    assert compute_capabilities(plan) == ()


def test_a_cut_engine_is_unseen_not_int8(int8_engine):
    plan = int8_engine.read_bytes()
    counts = count_int8(operand_types(plan[: plan.index(b"corrltn={")]), NODES)
    assert (counts.convolutions_int8, counts.gemms_int8) == (0, 0)
    assert counts.unseen_nodes == ("a", "b", "head")


def test_tensor_names_hold_within_one_program():
    def program(dtype: bytes) -> bytes:
        tensors = b"".join(
            b'\n  tensor={ alignment=32 name="%s" offset=0 type=%s }' % (name, dtype) for name in (b"x", b"w", b"y")
        )
        return (
            b"header {\n  version = 5\n}"
            + tensors
            + b'\n  corrltn={ name="a" output={"y" } input={"x" "w" } stream=0 }\n'
        )

    found = operand_types(program(b"int8") + b"\x00\x01" + program(b"float"))
    assert [entry.inputs for entry in found] == [("int8", "int8"), ("float", "float")]


def test_counts_by_hand():
    counts = count_int8(
        [
            operation("a", "int8", "int8", "float"),
            operation("b", "int8", "float"),
            operation("head", "int8", "int8", kind=GEMM),
        ],
        NODES,
    )
    assert (counts.convolutions_int8, counts.convolutions, counts.gemms_int8, counts.gemms) == (1, 2, 1, 1)
    assert counts.float_nodes == ("b",)
    assert counts.unseen_nodes == ()


def test_merged_layers_each_count():
    counts = count_int8([operation("a+b", "int8", "int8")], NODES)
    assert counts.convolutions_int8 == 2
    assert counts.unseen_nodes == ("head",)


def test_a_node_with_a_float_part_is_float():
    counts = count_int8([operation("a", "int8", "int8"), operation("x", "float", "float", layers=("a",))], NODES)
    assert counts.convolutions_int8 == 0
    assert counts.float_nodes == ("a",)


def test_unreadable_types_are_not_int8():
    assert not operation("a", "?", "?").int8
    assert not operation("a").int8


@pytest.mark.parametrize(
    ("types", "int8"),
    [(("int8", "int8", "int8"), True), (("int8", "int8", "half"), False), (("half", "half", "half"), False)],
)
def test_fused_attention_is_int8_where_all_that_it_multiplies_is(types, int8):
    tensors = b"".join(
        b'\n  tensor={ alignment=32 name="%s" offset=0 type=%s }' % (name, dtype.encode())
        for name, dtype in zip((b"q", b"k", b"v", b"n", b"y"), (*types, "int64", "int8"), strict=True)
    )
    plan = (
        b"header {\n  version = 5\n}"
        + tensors
        + b'\n  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0x1 args={ "q" "k" "v" "n" "y" }'
        + b' input_args={ "q" "k" "v" "n" } shape_args_count=5 output_args={ "y" }'
        + b' kernel_kind=7 layers="[ONNX Layer: a]\x1f[ONNX Layer: softmax]\x1f[ONNX Layer: b]" swap_ab=false }\n'
    )
    (found,) = operand_types(plan)
    assert found.layers == ("a", "softmax", "b")
    counts = count_int8([found], {"a": GEMM, "b": GEMM})
    assert (counts.gemms_int8, counts.gemms) == (2 if int8 else 0, 2)
    assert counts.unseen_nodes == ()
