"""A recipe's `model:` entry: a built-in network, or the user's own callable."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    RootModel,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Width = Annotated[int, Field(ge=1, le=4096)]


def _check_some(widths: tuple[int, ...]) -> tuple[int, ...]:
    # Not `min_length`: with that, a width out of range would be reported as an empty tuple besides.
    if not widths:
        raise ValueError("it is empty, expected at least one width")
    return widths


Widths = Annotated[tuple[Width, ...], AfterValidator(_check_some), Field(json_schema_extra={"minItems": 1})]
Depth = Annotated[int, Field(ge=0, le=64)]


class Architecture(BaseModel):
    """Base of the networks' options: frozen; an unknown key is refused and the nearest known one named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _name_nearest(cls, value: Any, handler: ModelWrapValidatorHandler["Architecture"]) -> "Architecture":
        try:
            return handler(value)
        except ValidationError as error:
            raise ValidationError.from_exception_data(error.title, [cls._details(e) for e in error.errors()]) from None

    @classmethod
    def _details(cls, error: Any) -> InitErrorDetails:
        key = str(error["loc"][-1])
        kind, message = error["type"], error["msg"]
        if kind == "extra_forbidden":
            kind = "value_error"  # complete as it is; readers of `extra_forbidden` look for near names themselves
            near = difflib.get_close_matches(key, cls.model_fields, n=1)
            known = ", ".join(cls.model_fields)
            message = f"unknown key {key!r}" + (f"; nearest: {near[0]!r}" if near else f"; known: {known}")
        reason = PydanticCustomError(kind, "{reason}", {"reason": message})
        return InitErrorDetails(type=reason, loc=error["loc"], input=error["input"])


class ResNetConfig(Architecture):
    """Residual network of basic blocks (He et al., 2016, arXiv:1512.03385), for images of 8 to 64 pixels.

    With `preactivation`, a stem of 16 channels and widths of 16k, 32k and 64k it is the Wide ResNet WRN-d-k of
    depth d = 6n + 4, n blocks a stage (Zagoruyko and Komodakis, 2016, arXiv:1605.07146).
    """

    name: Literal["resnet"] = "resnet"
    widths: Widths = Field(default=(16, 32, 64), description="channels of each stage")
    depths: tuple[Depth, ...] = Field(
        default=(),
        description="blocks of each stage, 1 each if left out; 0, first stage only: its width is the stem's alone",
    )
    stem_width: Width | None = Field(
        default=None, description="channels of the first convolution; those of the first stage if left out"
    )
    stem_stride: Literal[1, 2] = Field(default=1, description="stride of the first convolution; 2 quarters the work")
    preactivation: bool = Field(
        default=False,
        description="normalise and activate before each convolution; in int8, norms behind a residual sum stay float",
    )

    @model_validator(mode="after")
    def _check_depths(self) -> "ResNetConfig":
        return _with_depths(self, self.widths, self.depths)


class MobileNetConfig(Architecture):
    """Inverted residuals with depthwise convolutions (Sandler et al., 2018, arXiv:1801.04381)."""

    name: Literal["mobilenet"] = "mobilenet"
    widths: Widths = Field(default=(16, 24, 40), description="channels of each stage")
    depths: tuple[Depth, ...] = Field(
        default=(),
        description="blocks of each stage, 1 each if left out; 0, first stage only: its width is the stem's alone",
    )
    expansion: int = Field(default=4, ge=1, le=16, description="channels inside a block per channel outside")
    head_width: Width | None = Field(
        default=None, description="channels before the classifier; four times the last width"
    )
    stem_stride: Literal[1, 2] = Field(default=1, description="stride of the first convolution; 2 quarters the work")

    @model_validator(mode="after")
    def _check_depths(self) -> "MobileNetConfig":
        return _with_depths(self, self.widths, self.depths)


class MlpConfig(Architecture):
    """Fully connected layers with ReLU between them, on the flattened image."""

    name: Literal["mlp"] = "mlp"
    widths: Widths = Field(default=(128, 64), description="units of each hidden layer")


class VitConfig(Architecture):
    """Small vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929): pre-norm blocks, mean over tokens."""

    name: Literal["vit"] = "vit"
    width: Width = Field(default=64, description="channels of a token")
    depth: int = Field(default=3, ge=1, le=64, description="encoder blocks")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads; the width is a multiple of them")
    patch: int = Field(default=4, ge=1, le=64, description="side of a patch, pixels; the image's sides are multiples")
    expansion: int = Field(default=2, ge=1, le=16, description="hidden units of a block's MLP per channel of a token")
    activation: Literal["relu", "gelu"] = Field(
        default="relu", description="of the MLPs; gelu runs in float between integer layers, relu costs nothing there"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> "VitConfig":
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, expected a multiple of heads, {self.heads}")
        return self


class CustomConfig(Architecture):
    """The user's own network: a callable that returns an `nn.Module`."""

    name: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", description="module:callable")
    folder: str = Field(default=".", min_length=1, description="where the module lies, relative to the recipe's folder")
    kwargs: dict[str, JsonValue] = Field(default={}, description="keyword arguments of the callable")

    @field_validator("kwargs")
    @classmethod
    def _check_names(cls, kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        wrong = [name for name in kwargs if not name.isidentifier()]
        if wrong:
            raise ValueError(f"kwargs must be named like arguments, got {wrong[0]!r}")
        return kwargs


def _with_depths(config: Any, widths: tuple[int, ...], depths: tuple[int, ...]) -> Any:
    if not depths:
        # Written out, so that leaving the key away and spelling the default make the same artifact.
        return config.model_copy(update={"depths": (1,) * len(widths)})
    if len(depths) != len(widths):
        raise ValueError(f"depths has {len(depths)} entries, expected one for each of {len(widths)} widths")
    if 0 in depths[1:] or not any(depths):
        raise ValueError(f"depths is {list(depths)}: only the first stage may be 0, and one must have blocks")
    return config


BUILT_IN: dict[str, type[Architecture]] = {
    "resnet": ResNetConfig,
    "mobilenet": MobileNetConfig,
    "mlp": MlpConfig,
    "vit": VitConfig,
}


def _tag(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return name if name in BUILT_IN else "custom"


class ModelConfig(
    RootModel[
        Annotated[
            Annotated[ResNetConfig, Tag("resnet")]
            | Annotated[MobileNetConfig, Tag("mobilenet")]
            | Annotated[MlpConfig, Tag("mlp")]
            | Annotated[VitConfig, Tag("vit")]
            | Annotated[CustomConfig, Tag("custom")],
            Discriminator(_tag),
        ]
    ]
):
    """`{name: resnet | mobilenet | mlp | vit, its options}` or `{name: "module:callable", kwargs: {}}`.

    Validates from and dumps to the plain mapping; `root` is the network's own config.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            if isinstance(value, str):
                raise ValueError(f"a model is a mapping: got {value!r}, expected {{name: {value}}}")
            return value
        name = value.get("name")
        known = f"{', '.join(BUILT_IN)}, or module:callable"
        if not isinstance(name, str):
            raise ValueError(f"a model needs a `name`: {known}")
        if name not in BUILT_IN and ":" not in name:
            near = difflib.get_close_matches(name, BUILT_IN, n=1)
            raise ValueError(f"unknown model {name!r}" + (f"; nearest: {near[0]!r}" if near else f"; known: {known}"))
        return value

    @property
    def name(self) -> str:
        """The built-in network's name, or `module:callable`."""
        return self.root.name
