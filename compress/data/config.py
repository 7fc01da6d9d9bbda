"""The recipe's `data:` entry."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pixels = Annotated[int, Field(ge=1, le=4096)]

FOLDERS = {
    "imagefolder": "a folder with train/<class>/ and test/<class>/",
    "cifar10": "the folder of the binary version, with data_batch_1.bin and test_batch.bin",
    "cifar100": "the folder of the binary version, with train.bin and test.bin",
}


class DataConfig(BaseModel):
    """Which images are read, and how much of them.

    Only `imagefolder` takes `size`; `digits` is in the box and takes no `path`; the CIFARs and `imagefolder` need one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "imagefolder"]
    path: str | None = Field(
        default=None, min_length=1, description="folder of the data, relative to the recipe's folder or absolute"
    )
    size: Pixels | tuple[Pixels, Pixels] | None = Field(
        default=None, description="imagefolder: resize every image to this many pixels, one side or (height, width)"
    )
    validation_fraction: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="share of the training images kept for validation; left out: the dataset's own",
    )
    train_samples: int | None = Field(
        default=None,
        ge=1,
        description="use a class-balanced subset of so many training images (validation shrinks alike)",
    )
    test_samples: int | None = Field(
        default=None, ge=1, description="use a class-balanced subset of so many test images"
    )

    @model_validator(mode="after")
    def _check_options(self) -> "DataConfig":
        if self.dataset in FOLDERS and self.path is None:
            raise ValueError(f"{self.dataset} needs `path`: {FOLDERS[self.dataset]}")
        if self.dataset == "digits" and self.path is not None:
            raise ValueError("digits takes no `path`: its images come with scikit-learn")
        if self.dataset != "imagefolder" and self.size is not None:
            raise ValueError(f"{self.dataset} takes no `size`: its images have a fixed one")
        return self

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width to resize to, pixels; None keeps the images as they are."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
