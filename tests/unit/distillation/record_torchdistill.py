"""Records what torchdistill's losses give, as torchdistill.json beside this file. Its requirements are not needed here.

Its SPKDLoss is left out: rows are divided by the sum of their absolute values there, by their length in the paper.

pip install --no-deps --target FOLDER torchdistill==1.1.5
PYTHONPATH=FOLDER python tests/unit/distillation/record_torchdistill.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchdistill.losses.mid_level import ATLoss, DISTLoss, KDLoss, RKDLoss

BOTH = {
    "student_module_path": "s",
    "student_module_io": "output",
    "teacher_module_path": "t",
    "teacher_module_io": "output",
}
PATHS = {"student_output_path": "s", "teacher_output_path": "t"}
PAIR = {"one": {"student": {"io": "output", "path": "s"}, "teacher": {"io": "output", "path": "t"}}}


def numbers(seed: int, *shape: int) -> Tensor:
    """Neither random nor regular, of full rank, with two decimals so that every machine starts from the same."""
    count = torch.Size(shape).numel()
    return (2 * torch.sin(torch.arange(count, dtype=torch.float64) ** 2 * 0.37 + seed)).round(decimals=2).reshape(shape)


def recorded(loss: Any, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
    """Inputs, loss and gradient of one case."""
    student.requires_grad_()
    value = loss({"s": {"output": student}}, {"t": {"output": teacher}}, *([] if labels is None else [labels]))
    value.backward()
    assert student.grad is not None
    case = {"student": student.detach(), "teacher": teacher, "loss": value.detach(), "gradient": student.grad}
    return {name: [round(x, 9) for x in one.flatten().tolist()] for name, one in case.items()} | {
        "shapes": [list(student.shape), list(teacher.shape)],
        "labels": [] if labels is None else labels.tolist(),
    }


def main() -> None:
    """Record every case."""
    logits, labels = (6, 5), torch.tensor([0, 3, 1, 4, 4, 2])
    maps, features = ((5, 3, 4, 4), (5, 7, 4, 4)), ((6, 8), (6, 13))
    dist = [DISTLoss(**BOTH, beta=beta, gamma=gamma, tau=tau) for beta, gamma, tau in ((1, 1, 1), (2, 0.5, 4))]
    rkd = [RKDLoss(**PATHS, dist_factor=d, angle_factor=a, reduction="mean") for d, a in ((1, 0), (0, 1))]
    cases = {
        "kd": recorded(KDLoss(**BOTH, temperature=4.0, alpha=0.3), numbers(1, *logits), numbers(2, *logits), labels),
        "dist": recorded(dist[0], numbers(3, *logits), numbers(4, *logits)),
        "dist_softened": recorded(dist[1], numbers(3, *logits), numbers(4, *logits)),
        "attention_transfer": recorded(ATLoss(PAIR, mode="code"), numbers(5, *maps[0]), numbers(6, *maps[1])),
        "relational_distance": recorded(rkd[0], numbers(7, *features[0]), numbers(8, *features[1])),
        "relational_angle": recorded(rkd[1], numbers(7, *features[0]), numbers(8, *features[1])),
    }
    document = {"torchdistill": version("torchdistill"), "cases": cases}
    text = json.dumps(document).replace('}, "', '},\n"')
    Path(__file__).with_name("torchdistill.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
