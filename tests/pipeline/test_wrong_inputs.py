"""What people get wrong, through the command line: each ends with its exit code and says what to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

HEAD = """
name: wrong
data: {dataset: digits}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
"""
CHAIN = (
    HEAD
    + """
  float: {stage: export, model: teacher}
  int8: {stage: calibrate, model: float, samples: 128}
"""
)
OWN = """
name: wrong
data: {dataset: digits}
steps:
  teacher: {stage: train, model: {name: "net:build"}, epochs: 1}
  float: {stage: export, model: teacher}
"""

Recipe = tuple[str, list[str], int, str]  # text, further arguments, exit code, what the message holds


def distilled(how: str) -> str:
    return (
        HEAD + f"  student: {{stage: distill, teacher: teacher, model: {{name: mlp, widths: [4]}}, epochs: 1, {how}}}\n"
    )


# Refused when the recipe is read, before anything is computed.
RECIPES: dict[str, Recipe] = {
    "unknown key": (HEAD.replace("epochs", "epoch"), [], 2, r"unknown key 'epoch'; nearest: 'epochs'"),
    "duplicate key": (HEAD + "  teacher: {stage: train}\n", [], 2, r"duplicate key.*teacher|teacher.*twice"),
    "empty recipe": ("", [], 2, r"the recipe is empty"),
    "recipe that is a list": ("- a\n- b\n", [], 2, r"a recipe is a mapping, got a list"),
    "unknown stage": (HEAD.replace("train", "trian"), [], 2, r"unknown stage 'trian'.*'train'"),
    "role of the wrong kind": (
        CHAIN.replace("model: float", "model: teacher"),
        [],
        2,
        r"takes OnnxModel, but step 'teacher' makes Checkpoint",
    ),
    "ambiguous role": (
        HEAD
        + """
  other: {stage: train, model: {name: mlp, widths: [4]}, epochs: 1}
  float: {stage: export}
""",
        [],
        2,
        r"model is ambiguous; name one of the candidates: teacher, other",
    ),
    "cycle": (
        """
name: wrong
data: {dataset: digits}
steps:
  one: {stage: distill, teacher: two, model: {name: mlp, widths: [8]}, epochs: 1}
  two: {stage: distill, teacher: one, model: {name: mlp, widths: [8]}, epochs: 1}
""",
        [],
        2,
        r"a cycle: (one <- two <- one|two <- one <- two)",
    ),
    "unknown loss": (distilled("losses: [{loss: dk}]"), [], 2, r"losses\.0\.loss: unknown loss 'dk'; nearest: 'dkd'"),
    "losses that weigh nothing": (
        distilled("losses: [{loss: kd, weight: 0}]"),
        [],
        2,
        r"weights of all losses are zero",
    ),
    "losses and a temperature": (
        distilled("losses: [{loss: kd}], temperature: 2"),
        [],
        2,
        r"`temperature` is of plain distillation: name it in each of the `losses` that take one",
    ),
    "override without a value": (HEAD, ["--set", "seed"], 2, r"--set seed: expected PATH=VALUE"),
    "override of nothing": (HEAD, ["--set", "steps.tutor.epochs=2"], 2, r"the recipe has no step 'tutor'"),
    "batch min above opt": (
        CHAIN + "  engine: {stage: engine, model: int8, batch: {min: 9, opt: 8, max: 64}}\n",
        [],
        2,
        r"expected min <= opt <= max, got 9, 8, 64",
    ),
    "batch of zero": (
        CHAIN + "  report: {stage: benchmark, reference: teacher, variants: [int8], latency: {batches: [1, 0]}}\n",
        [],
        2,
        r"latency\.batches\.1.*greater than or equal to 1, got 0",
    ),
    "batch named twice": (
        CHAIN + "  report: {stage: benchmark, reference: teacher, variants: [int8], latency: {batches: [8, 8]}}\n",
        [],
        2,
        r"a batch size is named twice: 8, 8",
    ),
    "temperature of zero": (
        HEAD
        + "  student: {stage: distill, teacher: teacher, model: {name: mlp, widths: [4]}, epochs: 1, temperature: 0}\n",
        [],
        2,
        r"temperature.*greater than 0",
    ),
    "two problems at once": (
        HEAD.replace("epochs", "epoch").replace("digits", "digitz"),
        [],
        2,
        r"(?s)(digitz.*'epoch'|'epoch'.*digitz)",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_refused_before_any_work(name, wrong, tmp_path, assert_refused):
    text, arguments, code, message = RECIPES[name]

    assert_refused(wrong(text, *arguments), code, message)

    assert not (tmp_path / "store").exists(), "nothing was started"


def test_missing_recipe(cli, tmp_path, assert_refused):
    assert_refused(
        cli("run", "nowhere.yaml", cwd=tmp_path),
        2,
        r"(?s)(?=.*nowhere\.yaml).*there is no such recipe",
    )


def test_store_that_cannot_be_written(cli, tmp_path, assert_refused):
    (tmp_path / "wrong.yaml").write_text(HEAD)

    # Not even root can make a folder there, and chmod would not stop root.
    assert_refused(
        cli("run", "wrong.yaml", "--store", "/sys/store", cwd=tmp_path), 75, r"(?s)cannot be written.*/sys/store"
    )


def test_store_that_is_a_file(wrong, tmp_path, assert_refused):
    (tmp_path / "store").write_text("a file where the folder should be")

    assert_refused(wrong(HEAD), 2, r"the store must be a folder, got the file store")


@pytest.mark.slow
def test_calibration_set_below_100(wrong, assert_refused):
    assert_refused(
        wrong(CHAIN.replace("128", "99")), 5, r"calibration set too small: got 99 samples, expected at least 100"
    )


@pytest.mark.slow
def test_too_few_samples(wrong, assert_refused):
    assert_refused(
        wrong(CHAIN.replace("digits}", "digits, train_samples: 110}").replace("128", "500")),
        5,
        r"too few samples: the calibration set needs 500, train has",
    )


@pytest.mark.slow
def test_weights_of_another_network(wrong, root, assert_refused):
    weights = root / "examples" / "bring_your_own" / "teacher.safetensors"
    text = HEAD.replace("epochs: 1", f"weights: {weights}")

    assert_refused(wrong(text), 5, r"(?s)missing.*unexpected|unexpected.*missing")


@pytest.mark.slow
def test_teacher_of_other_classes(wrong, root, assert_refused):
    example = root / "examples" / "bring_your_own"
    text = f"""
name: wrong
data: {{dataset: digits}}
steps:
  teacher:
    stage: train
    model: {{name: "tiny_net:build", folder: {example}, kwargs: {{width: 16, classes: 4}}}}
    weights: {example / "teacher.safetensors"}
"""
    assert_refused(wrong(text), 5, r"made for 4 classes, the data has 10")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ('"7": "1"', r"The student has no module '7'; nearest: "),
        ('"1": "8"', r"The teacher has no module '8'; nearest: "),
        ('"*": "[12]"', r"means 4 modules of the student .* 2 of the teacher"),
    ],
)
def test_layers_that_are_not_there(taps, message, wrong, assert_refused):
    text = distilled(f"losses: [{{loss: hints, taps: {{{taps}}}}}]")

    assert_refused(wrong(text), 2, rf"(?s){message}.*step '?student")


@pytest.mark.slow
def test_weights_that_are_not_finite(wrong, tmp_path, assert_refused):
    import torch
    from safetensors.torch import load_file, save_file

    assert wrong(HEAD).returncode == 0
    checkpoint = next((tmp_path / "store" / "train").glob("*/weights.safetensors"))
    weights = {name.removeprefix("net."): value for name, value in load_file(checkpoint).items() if "net." in name}
    first = next(name for name, value in weights.items() if value.is_floating_point())
    weights[first] = torch.full_like(weights[first], float("nan"))
    save_file(weights, tmp_path / "nan.safetensors")

    done = wrong(HEAD.replace("epochs: 1", "weights: nan.safetensors"))

    assert_refused(done, 5, rf"NaN or infinite weights in .*{re.escape(first)}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("return self.head(image.flatten(1))[:2].reshape(2, self.classes)", r"has no dynamic batch axis"),
        (
            "return self.head(torch.special.i1e(image).flatten(1))",
            r"No ONNX form for 1 operator\(s\): prims\.bessel_i1e",
        ),
    ],
    ids=["no dynamic batch", "unsupported operator"],
)
def test_networks_that_cannot_be_exported(forward, message, wrong, tmp_path, assert_refused):
    (tmp_path / "net.py").write_text(f"""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.head = nn.Linear(64, classes)

    def forward(self, image):
        if self.training or not torch.compiler.is_compiling() and image.shape[0] != 2:
            return self.head(image.flatten(1))
        {forward}


def build(classes):
    return Net(classes)
""")
    assert_refused(wrong(OWN), 5, message)


@pytest.mark.slow
def test_damaged_artifact_is_moved_aside_and_made_again(wrong, tmp_path):
    assert wrong(CHAIN).returncode == 0
    weights = next((tmp_path / "store" / "train").glob("*/weights.safetensors"))
    spoiled = bytearray(weights.read_bytes())
    spoiled[-1] ^= 1
    weights.write_bytes(spoiled)

    done = wrong(CHAIN, "--force", "float")

    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr
    assert list((tmp_path / "store" / "quarantine").iterdir())


@pytest.mark.slow
def test_damaged_artifact_without_the_step_that_makes_it(wrong, tmp_path, assert_refused):
    assert wrong(CHAIN).returncode == 0
    weights = next((tmp_path / "store" / "train").glob("*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])

    assert_refused(
        wrong(CHAIN, "--only", "float", "--force", "float"),
        6,
        r"(?s)damaged.*weights\.safetensors.*teacher|teacher.*damaged",
    )


@pytest.mark.slow
def test_full_disk(tmp_path, root, assert_refused):
    """A file system of 256 KiB cannot hold the first artifact's draft."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and CAP_SYS_ADMIN")
    try:
        (tmp_path / "wrong.yaml").write_text(HEAD.replace("[8]", "[4096]"))
        command = [sys.executable, "-m", "compress", "run", "wrong.yaml", "--store", str(small)]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=300)
        assert_refused(done, 75, r"(?i)disk|space")
        assert not list(small.glob("train/*/manifest.json"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_ctrl_c(tmp_path, request):
    (tmp_path / "wrong.yaml").write_text(HEAD.replace("epochs: 1", "epochs: 5000"))
    command = [sys.executable, "-m", "compress", "run", "wrong.yaml", "--store", "store"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    request.addfinalizer(process.kill)
    runs = tmp_path / "store" / "runs"
    deadline = time.monotonic() + 60
    while not runs.is_dir() or not list(runs.glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    # Where the interrupt lands inside exec(), Python ends by the signal itself, which a shell reports as 130 as well.
    assert process.returncode in (130, -signal.SIGINT), errors
    assert time.monotonic() - sent < 10
    assert "Traceback" not in errors
    assert not list((tmp_path / "store").glob("train/*/manifest.json"))
