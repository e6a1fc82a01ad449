"""Draws one small bar chart with Pillow: 96 x 96 pixels, every bar labelled with its value."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vlm_lora.demo.scenes import SIZE, Colour, Item, draw_item, text_height, text_width

_PALETTE: tuple[Colour, ...] = (
    (76, 120, 168),
    (245, 133, 24),
    (228, 87, 86),
    (114, 183, 178),
    (84, 162, 75),
    (238, 202, 59),
    (178, 121, 162),
    (255, 157, 166),
    (157, 117, 93),
    (186, 176, 172),
)
_PAPER: tuple[Colour, ...] = (
    (255, 255, 255),
    (255, 255, 255),
    (248, 248, 240),
    (240, 244, 250),
    (250, 240, 245),
)
_INK: tuple[Colour, ...] = ((0, 0, 0), (0, 0, 0), (40, 40, 60), (60, 30, 20))


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its category's name and its value as printed."""

    name: str
    value: str

    @property
    def number(self) -> float:
        """The value as a number."""
        return float(self.value)


def fits_upright(bars: tuple[Bar, ...], font_size: float) -> bool:
    """Whether names and values are narrow enough to stand in columns."""
    cell = SIZE // len(bars) - 2
    return all(text_width(text, font_size) <= cell for bar in bars for text in (bar.name, bar.value))


def fits_sideways(bars: tuple[Bar, ...], font_size: float) -> bool:
    """Whether names and values leave at least 12 pixels of width for the bars."""
    names = max(text_width(bar.name, font_size) for bar in bars)
    values = max(text_width(bar.value, font_size) for bar in bars)
    return names + values + 6 + 12 <= SIZE


def draw_chart(bars: tuple[Bar, ...], rng: random.Random, *, font_size: float) -> Image.Image:
    """Draw the bars upright where they fit (three times in four), else sideways."""
    image = Image.new("RGB", (SIZE, SIZE), rng.choice(_PAPER))
    draw = ImageDraw.Draw(image)
    ink = rng.choice(_INK)
    colours = [rng.choice(_PALETTE)] * len(bars)
    if rng.random() < 0.5:
        colours = rng.sample(_PALETTE, len(bars))
    upright = fits_upright(bars, font_size)
    if upright and fits_sideways(bars, font_size):
        upright = rng.random() < 0.75
    layout = _upright if upright else _sideways
    layout(draw, bars, colours, ink, rng, font_size)
    return image


def _upright(
    draw: ImageDraw.ImageDraw,
    bars: tuple[Bar, ...],
    colours: list[Colour],
    ink: Colour,
    rng: random.Random,
    font_size: float,
) -> None:
    height, cell = text_height(font_size), SIZE // len(bars)
    floor = SIZE - height - rng.randrange(3, 8)
    highest = max(bar.number for bar in bars)
    tallest = floor - height - rng.randrange(2, 12)
    half = max(3, int(cell * rng.uniform(0.25, 0.42)))
    for column, (bar, colour) in enumerate(zip(bars, colours, strict=True)):
        centre = cell * column + cell // 2
        top = floor - max(1, round(tallest * bar.number / highest))
        draw.rectangle((centre - half, top, centre + half, floor), fill=colour)
        for text, y in ((bar.name, floor + 2), (bar.value, top - height)):
            width = text_width(text, font_size)
            x = min(max(0, centre - width // 2), SIZE - width)
            draw_item(draw, Item(text=text, x=x, y=y, font_size=font_size), ink)
    draw.line((0, floor, SIZE, floor), fill=ink)


def _sideways(
    draw: ImageDraw.ImageDraw,
    bars: tuple[Bar, ...],
    colours: list[Colour],
    ink: Colour,
    rng: random.Random,
    font_size: float,
) -> None:
    height, cell = text_height(font_size), SIZE // len(bars)
    names = max(text_width(bar.name, font_size) for bar in bars)
    values = max(text_width(bar.value, font_size) for bar in bars)
    wall = names + 3
    highest = max(bar.number for bar in bars)
    longest = SIZE - wall - values - 3
    longest -= rng.randrange(max(1, longest - 11))
    half = max(3, int(min(cell, 30) * rng.uniform(0.25, 0.42)))
    for row, (bar, colour) in enumerate(zip(bars, colours, strict=True)):
        centre = cell * row + cell // 2
        end = wall + max(1, round(longest * bar.number / highest))
        draw.rectangle((wall, centre - half, end, centre + half), fill=colour)
        y = centre - height // 2
        x = wall - 2 - text_width(bar.name, font_size)
        draw_item(draw, Item(text=bar.name, x=max(0, x), y=y, font_size=font_size), ink)
        draw_item(draw, Item(text=bar.value, x=end + 3, y=y, font_size=font_size), ink)
    draw.line((wall, 0, wall, SIZE), fill=ink)
