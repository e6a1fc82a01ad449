"""Boxes through training text and back to pixels, as each family's makers count them; wrong readings are far off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.datasets import encode_png, write_jsonl
from support.mask_cases import new_encoder, processor_of
from vlm_lora.batching.boxes.conventions import (
    CONVENTIONS,
    GRIDS,
    OWN_CHOICE,
    PIXELS,
    BoxConvention,
    SeenImage,
    convention_for,
)
from vlm_lora.batching.boxes.writing import Region, read_places
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.compat import set_budget
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation, OwnSize
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import ModelError, RenderingError

SIZES = [(640, 480), (480, 640), (3000, 2000)]
MOST = 512 * 512
"""Pixels that Qwen's images have at most here: each of the sizes is scaled down."""

FAMILIES: dict[str, BoxConvention] = {
    "qwen2_vl-own": CONVENTIONS["qwen2_vl"],
    "qwen2_5_vl": CONVENTIONS["qwen2_5_vl"],
    "qwen2_5_vl-per_mille": OWN_CHOICE,
    "qwen2_5_vl-pixels": PIXELS,
    "paligemma": CONVENTIONS["paligemma"],
    "internvl": CONVENTIONS["internvl"],
    "llava": convention_for("llava", "auto"),
}
"""By processor: Qwen2-VL's is Qwen2.5-VL's. Qwen3-VL and GLM-V count as `qwen2_5_vl-per_mille` here."""


def boxes_in(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Return boxes in the corners, across the image, and thin ones."""
    width, height = size
    return [
        (0, 0, width, height),
        (1, 2, 40, 33),
        (width - 61, height - 47, width - 1, height),
        (width // 3, height // 5, width // 3 + 77, height // 5 + 301),
        (13, height // 2, width - 7, height // 2 + 19),
    ]


@cache
def processor(family: str, most: int) -> Any:
    found = deepcopy(processor_of(family))  # it is one object for all tests
    if family.startswith("qwen"):
        set_budget(found.image_processor, 32 * 32, most)
    return found


def encoder(name: str, convention: BoxConvention, *, most: int = MOST, **settings: Any) -> Any:
    family = name.partition("-")[0].replace("qwen2_vl", "qwen2_5_vl")
    return new_encoder(family, processor(family, most), boxes=convention, load_image=None, **settings)


def detection_row(folder: Path, size: tuple[int, int]) -> Conversation:
    """Return a row of detection data as training reads it: labels that look like marks must stay labels."""
    (folder / "a.png").write_bytes(encode_png(Image.new("RGB", size, "white")))
    boxes = boxes_in(size)
    labels = [f"thing {number}" for number in range(len(boxes))]
    path = write_jsonl(folder / "rows.jsonl", [{"image": "a.png", "objects": {"bbox": boxes, "category": labels}}])
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, box_format="xyxy")
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    return train[0]


def answer_of(row: EncodedRow) -> str:
    """Return what the row trains to write, as its tokens' characters, without the end of the turn."""
    assert row.answer is not None
    assert row.answer in row.text
    return row.answer


def off(found: Sequence[Region], size: tuple[int, int]) -> float:
    """Return by how many pixels the worst number differs; infinity for another number of boxes."""
    true = boxes_in(size)
    if len(found) != len(true):
        return float("inf")
    return max(
        abs(a - b) for region, box in zip(found, true, strict=True) for a, b in zip(region.numbers, box, strict=True)
    )


def step(convention: BoxConvention, seen: SeenImage) -> float:
    """Return the length in pixels of one step of a convention's own grid, along the longer side."""
    if convention.unit in GRIDS:
        return max(seen.size) / GRIDS[convention.unit][0]
    if convention.unit == "resized_pixels":
        assert seen.fed is not None
        return max(stored / fed for stored, fed in zip(seen.size, seen.fed, strict=True))
    return 1.0


def others(convention: BoxConvention, seen: SeenImage) -> Iterator[tuple[str, BoxConvention, SeenImage]]:
    """Yield wrong readings of an answer: another scale, x and y exchanged, the resized size taken for the stored."""
    scales: dict[str, BoxConvention] = {
        "pixels": replace(convention, unit="pixels"),
        "per_mille": replace(convention, unit="per_mille"),
    }
    for name, scale in scales.items():
        if name != convention.unit and convention.unit != "bins":
            yield name, scale, seen
    if convention.unit == "bins":
        yield "pixels", scales["pixels"], seen
    yield "exchanged", replace(convention, y_first=not convention.y_first), seen
    # The processor's size taken for that of the image as it is stored: half of it where that is nothing to this family.
    resized = seen.fed or (seen.size[0] // 2, seen.size[1] // 2)
    if convention.unit == "pixels":
        yield "resized for stored", replace(convention, unit="resized_pixels"), replace(seen, fed=resized)
    else:
        yield "resized for stored", convention, replace(seen, size=resized)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [MOST, MOST // 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_boxes_come_back_within_a_step_and_wrong_readings_do_not(
    name: str, most: int, size: tuple[int, int], tmp_path: Path
) -> None:
    convention = FAMILIES[name]
    row = encoder(name, convention, most=most).encode(detection_row(tmp_path, size))
    (seen,) = row.seen
    assert seen.size == size
    found = read_places(answer_of(row), row.seen, convention)
    assert [region.label for region in found] == [f"thing {number}" for number in range(len(found))]
    assert off(found, size) <= max(1.0, step(convention, seen))
    assert off(row.regions, size) <= max(1.0, step(convention, seen))
    wrong = {
        kind: off(read_places(answer_of(row), [other], scale), size) for kind, scale, other in others(convention, seen)
    }
    assert len(wrong) >= 3
    assert min(wrong.values()) > 10, wrong


def test_resized_pixels_are_those_that_the_processor_feeds(tmp_path: Path) -> None:
    convention = CONVENTIONS["qwen2_5_vl"]
    row = detection_row(tmp_path, (3000, 2000))
    fed = []
    for most in (MOST, MOST // 2):
        encoded = encoder("qwen2_5_vl", convention, most=most).encode(row)
        patch = processor("qwen2_5_vl", most).image_processor.patch_size
        _, rows, columns = encoded.media["image_grid_thw"][0].tolist()
        assert encoded.seen[0].fed == (columns * patch, rows * patch)
        fed.append(encoded.seen[0].fed)
        whole = [columns * patch, rows * patch]
        assert f'"bbox_2d": [0, 0, {whole[0]}, {whole[1]}]' in answer_of(encoded)
    assert fed[0] != fed[1], "half of the budget is another size"


def test_shrunk_images_and_canvases_are_the_sizes_that_count(tmp_path: Path) -> None:
    convention = CONVENTIONS["qwen2_5_vl"]
    row = detection_row(tmp_path, (640, 480))
    whole = encoder("qwen2_5_vl", convention).encode(row)
    limit = len(whole.input_ids) - 200
    shrunk = encoder("qwen2_5_vl", convention, max_length=limit, on_overflow="shrink_images").encode(row)
    on_canvas = encoder("qwen2_5_vl", convention).with_canvases([(320, 160)]).encode(row)
    prompt = encoder("qwen2_5_vl", convention).with_canvases([(320, 160)]).encode_prompt(row)
    assert prompt.answer == on_canvas.answer
    assert prompt.seen == on_canvas.seen
    for encoded in (shrunk, on_canvas):
        (seen,) = encoded.seen
        assert seen.given != seen.size == (640, 480)
        assert encoded.seen[0].fed != whole.seen[0].fed
        found = read_places(answer_of(encoded), encoded.seen, convention)
        assert off(found, (640, 480)) <= step(convention, seen)
        assert off(read_places(answer_of(encoded), whole.seen, convention), (640, 480)) > 10, "the control"


def test_a_family_that_feeds_no_whole_image_has_no_resized_pixels() -> None:
    resized = convention_for("internvl", "resized_pixels")
    for name in ("internvl", "llava", "paligemma"):
        with pytest.raises(
            ModelError, match=r"--box_coordinates resized_pixels: .* Allowed are auto, pixels, per_mille"
        ):
            encoder(name, resized)
    assert encoder("qwen2_5_vl", resized) is not None


@pytest.mark.parametrize("name", ["qwen2_vl-own", "internvl", "paligemma"])
def test_marks_are_control_tokens_and_what_a_label_says_is_not(name: str, tmp_path: Path) -> None:
    convention = FAMILIES[name]
    mark = {"qwen2_vl-own": "<|box_end|>", "internvl": "</box>", "paligemma": "<loc0000>"}[name]
    row = detection_row(tmp_path, (640, 480))
    encoded = encoder(name, convention).encode(row)
    family = name.partition("-")[0].replace("qwen2_vl", "qwen2_5_vl")
    number = processor(family, MOST).tokenizer.convert_tokens_to_ids(mark)
    supervised = encoded.labels[encoded.labels != IGNORE_INDEX].tolist()
    written = answer_of(encoded).count(mark)
    assert written >= 1
    assert supervised.count(number) == written
    if name == "paligemma":
        return  # its <loc...> are no special tokens: what somebody types is one, too
    path = write_jsonl(
        tmp_path / "typed.jsonl", [{"image": "a.png", "objects": {"bbox": [[1, 2, 30, 40]], "category": [f"a {mark}"]}}]
    )
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, box_format="xyxy")
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    typed = encoder(name, convention).encode(train[0])
    assert answer_of(typed).count(mark) == 2
    assert typed.labels.tolist().count(number) == 1, "the control: the label's stays text"


def test_the_default_question_says_how_to_count(tmp_path: Path) -> None:
    row = detection_row(tmp_path, (640, 480))
    said = {name: encoder(name, convention).encode(row).text for name, convention in FAMILIES.items()}
    assert "}, in pixels." in said["qwen2_5_vl-pixels"]
    assert "}, in pixels of the picture as you see it." in said["qwen2_5_vl"]
    for name in ("qwen2_5_vl-per_mille", "llava"):
        assert "from 0 to 1000 along the picture's width and height." in said[name]
    for name in ("paligemma", "internvl", "qwen2_vl-own"):
        assert "Find every object in the picture. Answer with the name and the box of each." in said[name]
    for name in said.keys() - {"qwen2_5_vl-pixels", "qwen2_5_vl"}:
        assert "in pixels" not in said[name]


def two_images(folder: Path, image_id: Any) -> Conversation:
    (folder / "a.png").write_bytes(encode_png(Image.new("RGB", (640, 480))))
    (folder / "b.png").write_bytes(encode_png(Image.new("RGB", (200, 400))))
    objects = {"bbox": [[10, 20, 110, 220], [10, 20, 110, 220]], "category": ["x", "y"], "image_id": image_id}
    path = write_jsonl(folder / "rows.jsonl", [{"images": ["a.png", "b.png"], "objects": objects}])
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, box_format="xyxy")
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    return train[0]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_with_several_images_each_box_is_counted_on_its_own(name: str, tmp_path: Path) -> None:
    row = encoder(name, FAMILIES[name]).encode(two_images(tmp_path, [0, 1]))
    assert [seen.size for seen in row.seen] == [(640, 480), (200, 400)]
    found = read_places(answer_of(row), row.seen, FAMILIES[name])
    assert [region.image for region in found] == [0, 1]
    for region, seen in zip(found, row.seen, strict=True):
        allowed = max(1.0, step(FAMILIES[name], seen))
        assert max(abs(a - b) for a, b in zip(region.numbers, (10, 20, 110, 220), strict=True)) <= allowed
    exchanged = read_places(answer_of(row), row.seen[::-1], FAMILIES[name])
    assert max(abs(a - b) for a, b in zip(exchanged[0].numbers, (10, 20, 110, 220), strict=True)) > 10, "the control"
    assert '"image_id": 1}]' in answer_of(row)
    assert "image_id counts the pictures from 0" in row.text


def test_a_spelling_that_cannot_say_which_image_refuses_several(tmp_path: Path) -> None:
    row = two_images(tmp_path, [0, 1])
    with pytest.raises(
        RenderingError, match=r"rows\.jsonl row 0 \(line 1\): .*cannot say which.*--box_coordinates per_mille"
    ):
        encoder("internvl", CONVENTIONS["internvl"]).encode(row)


def test_a_box_of_an_image_that_was_left_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", (640, 480))))
    turns = [
        {"role": "user", "content": "<image>" + "What is it? " * 30},
        {"role": "assistant", "content": "A bus."},
        {"role": "user", "content": "<image>Where is it?"},
        {"role": "assistant", "content": "<bbox>"},
    ]
    for image_id, fits in ((1, True), (0, False)):
        objects = {"ref": [], "bbox": [[10, 20, 110, 220]], "image_id": [image_id]}
        path = write_jsonl(
            tmp_path / "rows.jsonl", [{"messages": turns, "images": ["a.png", "a.png"], "objects": objects}]
        )
        config = DataConfig(dataset_name=str(path), validation_fraction=0.0)
        train = load_splits(config, need_train=True, need_validation=False).train
        assert train is not None
        whole = encoder("qwen2_5_vl", PIXELS).encode(train[0])
        assert len(whole.regions) == 1
        settings: dict[str, Any] = {"max_length": len(whole.input_ids) - 1, "on_overflow": "trim_turns"}
        smaller = encoder("qwen2_5_vl", PIXELS, **settings)
        if fits:
            assert smaller.encode(train[0]).regions[0].image == 0
        else:
            with pytest.raises(
                RenderingError, match=r"rows\.jsonl row 0 \(line 1\): a box lies in an image that the row no longer"
            ):
                smaller.encode(train[0])


@pytest.mark.parametrize("convention", [CONVENTIONS["qwen2_5_vl"], OWN_CHOICE, PIXELS])
def test_an_image_with_a_size_of_its_own_keeps_its_boxes(convention: BoxConvention, tmp_path: Path) -> None:
    """Its part asks for fewer pixels than the processor would give it: boxes are of the stored image all the same."""
    row = detection_row(tmp_path, (640, 480))
    image = row.images[0]
    smaller = replace(image, size=OwnSize(max_pixels=128 * 128))
    turns = [
        replace(turn, parts=tuple(smaller if part is image else part for part in turn.parts)) for turn in row.turns
    ]
    chosen = encoder("qwen2_5_vl", convention)
    plain, encoded = chosen.encode(row), chosen.encode(replace(row, turns=tuple(turns)))
    assert len(encoded.input_ids) < len(plain.input_ids)
    assert encoded.seen[0].size == (640, 480)
    step = max(640, 480) / 112 if convention.unit == "resized_pixels" else 1.0
    for region, box in zip(encoded.regions, boxes_in((640, 480)), strict=True):
        assert region.numbers == pytest.approx(box, abs=step)
    read = read_places(encoded.answer, encoded.seen, convention)
    assert [region.numbers for region in read] == [region.numbers for region in encoded.regions]
    if convention.unit == "resized_pixels":
        wrong = read_places(encoded.answer, plain.seen, convention)  # the control: the size that others are fed at
        assert (
            max(
                abs(a - b)
                for one, box in zip(wrong, boxes_in((640, 480)), strict=True)
                for a, b in zip(one.numbers, box, strict=True)
            )
            > 10
        )
