"""Draws the contact sheet: for each brand a row of its own pictures, of the base's and of the adapter's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE, GAP, LABEL, HEAD, COLUMNS = 144, 10, 170, 58, 6
INK, PALE, PAPER, LINE = (25, 28, 36), (112, 118, 130), (255, 255, 255), (214, 218, 226)


@dataclass(frozen=True)
class Row:
    """A label and up to six pictures."""

    label: str
    note: str
    pictures: Sequence[Path]


@dataclass(frozen=True)
class Section:
    """The rows of one brand, under its name."""

    title: str
    note: str
    rows: Sequence[Row]


def draw_contact_sheet(sections: Sequence[Section], path: Path) -> Path:
    """Write the sheet as PNG."""
    width = LABEL + COLUMNS * (SIDE + GAP) + GAP
    heights = [HEAD + len(section.rows) * (SIDE + GAP) + GAP for section in sections]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), PAPER)
    top = GAP
    for section, height in zip(sections, heights, strict=True):
        _draw_section(sheet, section, top)
        top += height
    sheet.save(path)
    return path


def _draw_section(sheet: Image.Image, section: Section, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.line([(GAP, top), (sheet.width - GAP, top)], fill=LINE, width=2)
    pen.text((GAP, top + 10), section.title, fill=INK, font=_font(28))
    pen.text((sheet.width - GAP, top + 22), section.note, fill=PALE, font=_font(15), anchor="ra")
    for number, row in enumerate(section.rows):
        _draw_row(sheet, row, top + HEAD + number * (SIDE + GAP))


def _draw_row(sheet: Image.Image, row: Row, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, top + SIDE // 2 - 22), row.label, fill=INK, font=_font(18))
    pen.text((GAP, top + SIDE // 2 + 4), row.note, fill=PALE, font=_font(14))
    for column, picture in enumerate(row.pictures[:COLUMNS]):
        left = LABEL + column * (SIDE + GAP)
        with Image.open(picture) as image:
            sheet.paste(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=LINE)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
