"""Images of words and numbers: what a scene is, and how it is drawn.

Scenes are what the base model is pre-trained on. There are no bar charts here on purpose; the
coloured rectangles are clutter whose size has nothing to do with any number. Reading charts is
what LoRA has to teach later.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SIZE = 96
"""Width and height of every image, in pixels."""

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Item:
    """One word or number and where its ink starts: left and top in pixels."""

    text: str
    x: int
    y: int
    font_size: float
    group: int = -1
    """Items with the same group belong together (a word and its number); -1 is nobody's."""

    @property
    def is_number(self) -> bool:
        """Whether it counts as a number in questions."""
        return self.text[0].isdigit()

    @property
    def width(self) -> int:
        """In pixels."""
        return text_width(self.text, self.font_size)

    @property
    def height(self) -> int:
        """In pixels."""
        return text_height(self.font_size)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels."""
        return (self.x, self.y, self.x + self.width, self.y + self.height)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One question about an image and its only right answer."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What an image shows, before it is drawn."""

    items: tuple[Item, ...]
    exchanges: tuple[Exchange, ...]
    style_seed: int


@cache
def scalable_font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font at a size in pixels; nothing has to be installed."""
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which the demo needs to draw text")
    return font


@cache
def _advance(character: str, size: float) -> float:
    return scalable_font(size).getlength(character)


def text_width(text: str, size: float) -> int:
    """Width of a text in whole pixels, rounded up (without kerning, so slightly generous)."""
    return int(sum(_advance(character, size) for character in text)) + 1


def text_height(size: float) -> int:
    """Height in pixels from the top of a capital to the bottom of a descender."""
    return int(size * 0.95) + 1


def character_centres(item: Item) -> list[tuple[str, float, float]]:
    """Each character with the centre (x, y) of its ink in pixels."""
    centres = []
    x = float(item.x)
    for character in item.text:
        advance = _advance(character, item.font_size)
        centres.append((character, x + advance / 2, item.y + item.font_size * 0.38))
        x += advance
    return centres


def draw_item(draw: ImageDraw.ImageDraw, item: Item, colour: Colour) -> None:
    """Draw a text so that the top of its capitals is at ``item.y``."""
    # "ls" anchors the baseline; the capitals of this font are 0.72 of its size high.
    baseline = item.y + round(item.font_size * 0.72)
    draw.text(
        (item.x, baseline),
        item.text,
        fill=colour,
        font=scalable_font(item.font_size),
        anchor="ls",
    )


def draw_scene(scene: Scene) -> Image.Image:
    """The image of a scene: 96 x 96 pixels, RGB."""
    rng = random.Random(scene.style_seed)
    dark = rng.random() < 0.2
    background = _shade(rng, dark=dark, vivid=False)
    image = Image.new("RGB", (SIZE, SIZE), background)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.choice((0, 0, 1, 2, 3, 4))):
        left, top = rng.randrange(-10, SIZE), rng.randrange(-10, SIZE)
        right, bottom = left + rng.randrange(3, 50), top + rng.randrange(3, 50)
        clear = all(apart((left, top, right, bottom), item.box, 0) for item in scene.items)
        if clear:
            vivid = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
            draw.rectangle((left, top, right, bottom), fill=vivid)
    if rng.random() < 0.15:
        y = rng.randrange(SIZE)
        draw.line((0, y, SIZE, y), fill=_shade(rng, dark=not dark, vivid=True))
    one_colour = _shade(rng, dark=not dark, vivid=True)
    many_colours = rng.random() < 0.3
    for item in scene.items:
        colour = _shade(rng, dark=not dark, vivid=True) if many_colours else one_colour
        if rng.random() < 0.08:
            x0, y0, x1, y1 = item.box
            pad = rng.randrange(1, 4)
            plate = _shade(rng, dark=not dark, vivid=True)
            draw.rectangle((x0 - pad, y0 - pad, x1 + pad, y1 + pad - 1), fill=plate)
            colour = background
        draw_item(draw, item, colour)
    return image


def _shade(rng: random.Random, *, dark: bool, vivid: bool) -> Colour:
    low, high = (0, 110) if dark else (200, 256)
    if not vivid and not dark and rng.random() < 0.5:
        return (255, 255, 255)
    if dark and rng.random() < 0.4:
        return (0, 0, 0)
    return (rng.randrange(low, high), rng.randrange(low, high), rng.randrange(low, high))


def apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int) -> bool:
    """Whether two boxes keep a gap in pixels between them, sideways or upright."""
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]
