"""The answers of checking children. Their form and size are bounded here, because a child is not trusted."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MAGIC = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff", "image/webp": b"RIFF"}
_Side = Annotated[int, Field(ge=1, le=2**20)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Reply(BaseModel):
    """An answer of a checking child."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    def fits(self, given: bytes) -> bool:
        """Whether the bytes sent along have the type that the answer names."""
        return True


class FeaturesReply(Reply):
    """The numbers of `results.ImageFeatures`."""

    width: _Side
    height: _Side
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    dhash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    colours: Annotated[str, Field(pattern=r"^[0-9a-f]{384}$")]
    sides: Annotated[list[_Side], Field(min_length=1, max_length=12)]
    sharpness: Annotated[list[Annotated[float, Field(ge=0, le=64)]], Field(min_length=1, max_length=12)]
    contrast: _Share
    opaque: _Share
    visible: _Share

    @model_validator(mode="after")
    def _sides_ascend(self) -> Self:
        if len(self.sides) != len(self.sharpness) or self.sides != sorted(set(self.sides)):
            raise ValueError("sharpness is given at ascending sides")
        return self


class ImageReply(Reply):
    """An image that was measured and encoded anew; its bytes come along."""

    content_type: Literal["image/png", "image/jpeg", "image/webp"]
    width: _Side
    height: _Side
    features: FeaturesReply

    def fits(self, given: bytes) -> bool:
        return given.startswith(_MAGIC[self.content_type])


class PackedReply(Reply):
    """One image of an archive with its caption; its bytes come along, unchecked."""

    filename: Annotated[str, Field(min_length=1, max_length=300)]
    caption: Annotated[str, Field(max_length=100_000)] | None


class PdfReply(Reply):
    """A PDF that was written anew; its bytes come along."""

    num_pages: Annotated[int, Field(ge=1, le=100_000)]

    def fits(self, given: bytes) -> bool:
        return given.startswith(b"%PDF-")


class MarkdownReply(Reply):
    """A Markdown text, which has no pages; its bytes come along."""

    num_pages: None


class WeightsReply(Reply):
    """The numbers of `results.CheckedWeights`."""

    num_tensors: Annotated[int, Field(ge=1, le=10**6)]
    text_layers: Annotated[int, Field(ge=0, le=10**6)]
    text_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    norm: Annotated[float, Field(ge=0, allow_inf_nan=False)]
