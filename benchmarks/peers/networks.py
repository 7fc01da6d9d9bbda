"""The float networks that are quantized: small, on Fashion-MNIST, trained for a short time by the project's loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from compress.data.calibration_set import calibration_set
from compress.data.config import DataConfig
from compress.data.datasets import Dataset, load_dataset
from compress.data.split import Split
from compress.models.catalogue import build_model, count_parameters
from compress.models.normalized import Normalized
from compress.onnx_graph.export import export_onnx
from compress.pipeline.machine import resolve_precision, threads
from compress.training.loop import TrainSettings, fit
from compress.training.objectives import hard_objective


@dataclass(frozen=True)
class Recipe:
    """A network, and how it is trained; samples are of the training split, class-balanced."""

    model: dict[str, Any]
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    epochs: int
    samples: int

    def settings(self, seed: int) -> TrainSettings:
        """Of its training."""
        return TrainSettings(
            epochs=self.epochs,
            batch_size=64,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            precision=resolve_precision("auto"),
            threads=threads(),
            seed=seed,
        )

    def network(self, seed: int, data: Dataset) -> Normalized:
        """With random weights."""
        torch.manual_seed(seed)
        net = build_model(self.model, image_shape=data.image_shape, classes=len(data.classes), base=Path())
        return Normalized(net, *data.train.channel_statistics())


RECIPES = {
    # 15 convolutions and 6 residual adds
    "resnet": Recipe({"name": "resnet", "widths": [32, 64, 64], "depths": [2, 2, 2]}, "sgd", 0.1, 5e-4, 2, 10_000),
    # inverted residuals with depthwise convolutions and ReLU6
    "mobilenet": Recipe(
        {"name": "mobilenet", "widths": [16, 32, 64], "depths": [1, 2, 2]}, "sgd", 0.1, 5e-4, 3, 10_000
    ),
    "vit": Recipe({"name": "vit"}, "adamw", 1e-3, 0.05, 6, 15_000),
}


def data_of(samples: int | None = None) -> Dataset:
    """Fashion-MNIST, its training split reduced to so many samples."""
    return load_dataset(DataConfig(dataset="fashion-mnist", train_samples=samples), Path())


def train_float(recipe: Recipe, seed: int, path: Path) -> dict[str, Any]:
    """Train one network and export it.

    Args:
        recipe: what and how.
        seed: of weights and order.
        path: of the ONNX file.

    Returns:
        `parameters`, and `validation_top1` of the best epoch as a fraction.
    """
    data = data_of(recipe.samples)
    module = recipe.network(seed, data)
    fitted = fit(module, hard_objective(), data.train, data.validation, recipe.settings(seed))
    export_onnx(fitted.module, torch.zeros(2, *data.image_shape), path)
    best = fitted.history[fitted.best_epoch - 1]
    return {"parameters": count_parameters(module), "validation_top1": best["validation_top1"]}


def write_calibration(samples: int, path: Path) -> None:
    """Class-balanced calibration images of the whole training split, shuffled, as an uncompressed NPZ file."""
    chosen, _ = calibration_set(data_of().train, samples)
    order = np.random.default_rng(0).permutation(samples)
    _save(chosen.take(order), path)


def write_test(samples: int, path: Path) -> None:
    """The first so many test images with their labels."""
    _save(data_of().test.take(np.arange(samples)), path)


def _save(split: Split, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.divide(split.images, np.float32(255), dtype=np.float32)
    np.savez(path, image=images, label=split.labels)
