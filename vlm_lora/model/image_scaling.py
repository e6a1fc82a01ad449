"""The table of image processors: what a number of pixels, and a longest side, are in the settings of each.

A most is kept to from below and a least from above: where a processor shows images in tiles or patches, the next whole
number of them counts, and what it comes to is said. The overview of the whole image that some processors add to its
tiles is not counted. What each class makes of its settings was read in its code in transformers 4.55 and 5.x.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import isqrt
from types import MappingProxyType
from typing import Any

from vlm_lora.batching.canvases import BY_PIXELS

Settings = dict[str, Any]
"""A processor's settings by name, as plain values; and what is known in addition: `step`, `longest`."""

Change = Callable[[Settings, int], Settings]
"""Returns the settings that keep to a number, those that change alone."""


class ImpossibleError(Exception):
    """Why a processor has no settings that keep to a number."""


def _nothing(settings: Settings, vocabulary: Collection[str]) -> None:
    """Find no fault."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How one kind of image processor scales images."""

    keys: tuple[str, ...] = ()
    """The settings that say so."""
    fixed: tuple[str, ...] = ()
    """Settings that are read in addition and never changed: sides of tiles and patches."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a setting is where the image processor leaves it open."""
    in_tokenizer: bool = False
    """Whether the processor takes the settings from its tokenizer's alone."""
    words: Callable[[Settings], str]
    """Says how images are shown."""
    max_pixels: Change | str
    """Or why there is no such setting."""
    min_pixels: Change | str
    image_size: Change | str
    check: Callable[[Settings, Collection[str]], None] = _nothing
    """Raises `ImpossibleError` for settings that contradict each other, or need tokens that the vocabulary has not."""

    @property
    def told(self) -> tuple[str, ...]:
        """Settings that are shown in messages; of those that nothing can change, the sides."""
        return self.keys or self.fixed

    def change(self, flag: str, settings: Settings, value: int) -> Settings:
        """Return what `--flag value` changes.

        Raises:
            ImpossibleError: there is no such setting, or no value of it that keeps to the number.
        """
        change: Change | str = getattr(self, flag)
        if isinstance(change, str):
            raise ImpossibleError(change)
        return change(settings, value)


_ENLARGED = "smaller images are enlarged to the model's own size anyway, so there is no least to set; leave it out"
_NEVER_ENLARGED = "images are never enlarged, so there is no least; leave it out"


def _area(size: Mapping[str, int]) -> int:
    return int(size["height"]) * int(size["width"])


def _square(change: Change) -> Change:
    """Read a longest side as the number of pixels of that square."""
    return lambda settings, side: change(settings, side * side)


def _whole(value: int, unit: int, what: str) -> int:
    """Return how many whole units a number has. Raises ImpossibleError for none."""
    if value < unit:
        raise ImpossibleError(f"{what} has {unit} pixels, and less than one cannot be shown; type that or more")
    return value // unit


def _split_budget(settings: Settings, most: int) -> Settings:
    return {"size": {**settings["size"], "longest_edge": most}}


def _raise_budget(settings: Settings, least: int) -> Settings:
    return {"size": {**settings["size"], "shortest_edge": least}}


def _check_budget(settings: Settings, vocabulary: Collection[str]) -> None:
    least, most = settings["size"]["shortest_edge"], settings["size"]["longest_edge"]
    if least > most:
        raise ImpossibleError(
            f"the least is {least} pixels and the most {most}. Type both, --min_pixels and --max_pixels"
        )
    patch = (settings["patch_size"] * settings["merge_size"]) ** 2
    _whole(most, patch, "a patch")


_BUDGET = Scaling(
    keys=("size",),
    fixed=("patch_size", "merge_size"),
    words=lambda s: f"scaled to {s['size']['shortest_edge']} to {s['size']['longest_edge']} pixels",
    max_pixels=_split_budget,
    min_pixels=_raise_budget,
    image_size=_square(_split_budget),
    check=_check_budget,
)


def _tile(settings: Settings) -> str:
    return f"{settings['size']['width']}x{settings['size']['height']}"


def _most_tiles(key: str) -> Change:
    return lambda settings, most: {key: _whole(most, _area(settings["size"]), f"a tile of {_tile(settings)}")}


def _least_patches(settings: Settings, least: int) -> Settings:
    return {"min_patches": -(-least // _area(settings["size"]))}


def _check_patches(settings: Settings, vocabulary: Collection[str]) -> None:
    if settings["min_patches"] > settings["max_patches"]:
        tile = _area(settings["size"])
        raise ImpossibleError(
            f"the least is {settings['min_patches']} tiles of {tile} pixels and the most {settings['max_patches']}. "
            "Type both, --min_pixels and --max_pixels"
        )


_PATCHES = Scaling(
    keys=("min_patches", "max_patches"),
    fixed=("size",),
    words=lambda s: f"in {s['min_patches']} to {s['max_patches']} tiles of {_tile(s)} pixels",
    max_pixels=_most_tiles("max_patches"),
    min_pixels=_least_patches,
    image_size=_square(_most_tiles("max_patches")),
    check=_check_patches,
)


def _crops(key: str, *, size: Mapping[str, int] | None = None) -> Scaling:
    return Scaling(
        keys=(key,),
        fixed=("size",),
        defaults={} if size is None else {"size": size},
        words=lambda s: f"in up to {s[key]} crops of {_tile(s)} pixels",
        max_pixels=_most_tiles(key),
        min_pixels=_NEVER_ENLARGED,
        image_size=_square(_most_tiles(key)),
    )


def _grids(settings: Settings, fits: Callable[[int, int], bool]) -> Settings:
    sizes = settings["image_grid_pinpoints"]
    kept = [size for size in sizes if fits(*size)]
    if not kept:
        raise ImpossibleError(f"none of the sizes that images are brought to fits: {_sizes(sizes)}")
    return {"image_grid_pinpoints": kept}


def _sizes(sizes: Collection[Any]) -> str:
    """Write heights and widths as other sizes are written: the width first."""
    return ", ".join(f"{width}x{height}" for height, width in sizes)


_GRIDS = Scaling(
    keys=("image_grid_pinpoints",),
    words=lambda s: f"at the best of the sizes {_sizes(s['image_grid_pinpoints'])}, in tiles",
    max_pixels=lambda s, most: _grids(s, lambda height, width: height * width <= most),
    min_pixels=lambda s, least: _grids(s, lambda height, width: height * width >= least),
    image_size=lambda s, side: _grids(s, lambda height, width: max(height, width) <= side),
)


def _longest_edge(settings: Settings, side: int) -> Settings:
    step, most = settings["step"], settings["longest"]
    if side < step:
        raise ImpossibleError(f"a patch has {step} pixels a side, and less than one cannot be shown")
    if most is not None and side > most:
        raise ImpossibleError(f"the model's vision tower has positions for {most} pixels a side and no more")
    return {"size": {**settings["size"], "longest_edge": side - side % step}}


_EDGE = Scaling(
    keys=("size",),
    words=lambda s: f"with a side of at most {s['size']['longest_edge']} pixels",
    # A square has the most pixels of all images with that longest side.
    max_pixels=lambda s, most: _longest_edge(s, isqrt(most)),
    min_pixels=_NEVER_ENLARGED,
    image_size=_longest_edge,
)


def _tiled_edge(settings: Settings, side: int) -> Settings:
    tile = settings["max_image_size"]["longest_edge"]
    if side < tile:
        raise ImpossibleError(f"a tile has {tile} pixels a side, and less than one cannot be shown")
    edge = min(side - side % tile, _ABSOLUTE - _ABSOLUTE % tile)
    split = {"do_image_splitting": True} if edge > tile else {}
    return {"size": {**settings["size"], "longest_edge": edge}, **split}


_ABSOLUTE = 4096
"""MAX_IMAGE_SIZE of Idefics3's image processor: longer sides are reduced to it, whatever the settings say."""


def _say_tiled_edge(settings: Settings) -> str:
    tile = settings["max_image_size"]["longest_edge"]
    if not settings["do_image_splitting"]:
        return f"at {tile}x{tile} pixels"
    return f"with a longest side of {settings['size']['longest_edge']} pixels, in tiles of {tile}x{tile}"


def _check_rows(settings: Settings, vocabulary: Collection[str]) -> None:
    tiles = -(-settings["size"]["longest_edge"] // settings["max_image_size"]["longest_edge"])
    if tiles > 1:
        _check_marks(tiles, [(tiles, tiles)], "<row_{}_col_{}>", vocabulary)


def _check_marks(tiles: int, grids: Collection[tuple[int, int]], mark: str, vocabulary: Collection[str]) -> None:
    missing = next((mark.format(*grid) for grid in grids if mark.format(*grid) not in vocabulary), None)
    if missing is not None:
        raise ImpossibleError(f"{tiles} tiles need the token {missing}, which the tokenizer has not; type less")


_TILED_EDGE = Scaling(
    keys=("size", "do_image_splitting"),
    fixed=("max_image_size",),
    words=_say_tiled_edge,
    max_pixels=lambda s, most: _tiled_edge(s, isqrt(most)),
    min_pixels=_ENLARGED,
    image_size=_tiled_edge,
    check=_check_rows,
)

_SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""What Gemma 4's image processor allows as `max_soft_tokens`."""


def _soft_tokens(settings: Settings, most: int) -> Settings:
    token = (settings["patch_size"] * settings["pooling_kernel_size"]) ** 2
    fits = [count for count in _SOFT_TOKENS if count * token <= most]
    if not fits:
        raise ImpossibleError(f"{_SOFT_TOKENS[0]} tokens of {token} pixels are the least; type {70 * token} or more")
    return {"max_soft_tokens": fits[-1]}


_TOKENS = Scaling(
    keys=("max_soft_tokens",),
    fixed=("patch_size", "pooling_kernel_size"),
    words=lambda s: (
        f"scaled to at most {s['max_soft_tokens'] * (s['patch_size'] * s['pooling_kernel_size']) ** 2} pixels, of "
        f"which {(s['patch_size'] * s['pooling_kernel_size']) ** 2} are a token"
    ),
    max_pixels=_soft_tokens,
    min_pixels=_ENLARGED,
    image_size=_square(_soft_tokens),
)


def _token_pixels(settings: Settings) -> int:
    return int((settings["encoder_patch_size"] * settings["downsample_factor"]) ** 2)


def _tiles_or_tokens(settings: Settings, most: int) -> Settings:
    """Cut into as many tiles as fit, or into none and give the whole image as many tokens as fit."""
    tile, token = settings["tile_size"] ** 2, _token_pixels(settings)
    if most // tile >= max(2, settings["min_tiles"]):
        return {"do_image_splitting": True, "max_tiles": most // tile}
    tokens = min(_whole(most, token, "a token"), tile // token)
    return {"do_image_splitting": False, "max_image_tokens": tokens}


def _say_tiles_or_tokens(settings: Settings) -> str:
    token, tile = _token_pixels(settings), settings["tile_size"]
    whole = f"scaled to {settings['min_image_tokens'] * token} to {settings['max_image_tokens'] * token} pixels"
    if not settings["do_image_splitting"]:
        return whole
    return f"{whole}, larger ones in {settings['min_tiles']} to {settings['max_tiles']} tiles of {tile}x{tile}"


def _check_tiles_or_tokens(settings: Settings, vocabulary: Collection[str]) -> None:
    least, most = settings["min_image_tokens"], settings["max_image_tokens"]
    if least > most:
        token = _token_pixels(settings)
        raise ImpossibleError(
            f"the least is {least * token} pixels and the most {most * token}. Type both, --min_pixels and --max_pixels"
        )
    if settings["do_image_splitting"]:
        tiles = settings["max_tiles"]
        grids = [(row, tiles // row) for row in range(1, tiles + 1)]
        _check_marks(tiles, grids, "<|img_row_{}_col_{}|>", vocabulary)


_TILES_OR_TOKENS = Scaling(
    keys=("do_image_splitting", "max_tiles", "min_image_tokens", "max_image_tokens"),
    fixed=("min_tiles", "tile_size", "encoder_patch_size", "downsample_factor"),
    words=_say_tiles_or_tokens,
    max_pixels=_tiles_or_tokens,
    min_pixels=lambda s, least: {"min_image_tokens": -(-least // _token_pixels(s))},
    image_size=_square(_tiles_or_tokens),
    check=_check_tiles_or_tokens,
)


def _pan_and_scan(settings: Settings, crops: int) -> Settings:
    """Cut a long image into this many crops along its longer side; one is the whole image alone."""
    if crops < 1:
        raise ImpossibleError(f"every image is shown at {_tile(settings)} pixels; type that or more")
    more = {"pan_and_scan_max_num_crops": crops} if crops > 1 else {}
    return {"do_pan_and_scan": crops > 1, **more}


def _say_pan_and_scan(settings: Settings) -> str:
    if not settings["do_pan_and_scan"]:
        return f"at {_tile(settings)} pixels"
    ratio, most = settings["pan_and_scan_min_ratio_to_activate"], settings["pan_and_scan_max_num_crops"]
    return (
        f"at {_tile(settings)} pixels, and in up to {most} crops of that size where a side is {ratio} times the other"
    )


_PAN_AND_SCAN = Scaling(
    keys=("do_pan_and_scan", "pan_and_scan_max_num_crops"),
    fixed=("size", "pan_and_scan_min_crop_size", "pan_and_scan_min_ratio_to_activate"),
    # Gemma3Processor has these of its own and passes them on, whatever its image processor's file says; only its
    # tokenizer's settings come before them. What is written there is saved, and read by a plain reload.
    in_tokenizer=True,
    defaults={
        "do_pan_and_scan": False,
        "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    },
    words=_say_pan_and_scan,
    max_pixels=lambda s, most: _pan_and_scan(s, most // _area(s["size"])),
    min_pixels=_ENLARGED,
    image_size=lambda s, side: _pan_and_scan(s, side // s["size"]["width"]),
)


def _one_size(key: str, why: str = "this model knows one size alone; leave it out") -> Scaling:
    def words(settings: Settings) -> str:
        size = settings[key]
        return (
            f"at {size.get('width', size.get('shortest_edge'))}x{size.get('height', size.get('shortest_edge'))} pixels"
        )

    return Scaling(fixed=(key,), words=words, max_pixels=why, min_pixels=why, image_size=why)


_TILE_NUMBERS = (
    "the model numbers its shapes of tiles by max_image_tiles, and with any other number would take one shape for "
    "another. Make the images themselves smaller"
)
_MLLAMA = Scaling(
    fixed=("max_image_tiles", "size"),
    words=lambda s: f"in up to {s['max_image_tiles']} tiles of {_tile(s)} pixels",
    max_pixels=_TILE_NUMBERS,
    min_pixels=_TILE_NUMBERS,
    image_size=_TILE_NUMBERS,
)

SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {
        BY_PIXELS: _BUDGET,
        "GotOcr2ImageProcessor": _PATCHES,
        "LlavaNextImageProcessor": _GRIDS,
        "LlavaOnevisionImageProcessor": _GRIDS,
        "MllamaImageProcessor": _MLLAMA,
        "PixtralImageProcessor": _EDGE,
        "Idefics3ImageProcessor": _TILED_EDGE,
        "SmolVLMImageProcessor": _TILED_EDGE,
        "Gemma3ImageProcessor": _PAN_AND_SCAN,
        "Gemma4ImageProcessor": _TOKENS,
        "Lfm2VlImageProcessor": _TILES_OR_TOKENS,
        "Phi4MultimodalImageProcessor": _crops("dynamic_hd"),
        # Its code has the side of a crop in it, not in its settings.
        "Phi3VImageProcessor": _crops("num_crops", size={"height": 336, "width": 336}),
        "CLIPImageProcessor": _one_size("crop_size"),
        "LlavaImageProcessor": _one_size("crop_size"),
        "SiglipImageProcessor": _one_size("size"),
    }
)
"""By the start of the class's name: its ends are `Pil`, `Fast` or none, by version and implementation."""
