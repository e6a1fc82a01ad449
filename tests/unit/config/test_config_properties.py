"""A setting means the same whether it is a flag, a key of a file, or both."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlm_lora.config.fields import own_fields
from vlm_lora.config.files import read_mapping, write_mapping
from vlm_lora.config.run_config import BOX_COORDINATES, BOX_FORMATS, RunConfig
from vlm_lora.config.sources import parse

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\ufeff"), min_size=1)
WORDS = TEXT.filter(lambda text: text.strip() != "")
POSITIVE = st.integers(1, 10**9)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "validation_fraction": st.floats(0.001, 0.999),
    "max_bad_fraction": st.floats(0, 1),
    "on_bad_sample": st.sampled_from(["error", "skip"]),
    "skip_check": st.just(False),
    "streaming": st.just(False),
    "lora_dropout": st.floats(0, 0.999),
    "lora_init": st.sampled_from(["default", "gaussian"]),
    "train_fully": st.lists(st.sampled_from(["projector", "vision"]), max_size=2),
    "lora_alpha": st.floats(0.001, 1e6),
    "vision_cache_gb": st.floats(1e-6, 1e6),
    "cache_vision_features": st.sampled_from(["auto", "on"]),
    "image_cache": st.sampled_from(["auto", "on"]),
    "split_seed": st.integers(-5, 10**9),
    "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    "bnb_4bit_quant_type": st.sampled_from(["nf4", "fp4"]),
    "bnb_4bit_compute_dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    "image_backend": st.sampled_from(["auto", "pil", "torchvision"]),
    "choices": st.sampled_from(["shown", "refuse"]),
    "box_format": st.sampled_from(BOX_FORMATS),
    "box_coordinates": st.sampled_from(BOX_COORDINATES),
    "answer_style": st.sampled_from(["auto", "bbox", "bbox_2d"]),
    "peft_method": st.sampled_from(["lora", "none"]),
    "on_overflow": st.sampled_from(["error", "drop", "shrink_images", "trim_turns"]),
    "freeze_language": st.just(False),
    "ignore_columns": st.lists(WORDS.map("ignored {}".format), max_size=3),  # none that is named as a column
    "predict_with_generate": st.just(True),  # which metrics need
    "no_model": st.just(False),
    "dry_run_generate": st.just(False),
    "environment": st.dictionaries(st.from_regex(r"[A-Z]{1,4}", fullmatch=True), WORDS, max_size=2),
    "accelerate_launch_args": st.dictionaries(WORDS, st.one_of(WORDS, POSITIVE, st.booleans()), max_size=2),
}
BY_HINT: dict[Any, st.SearchStrategy[Any]] = {
    str: WORDS,
    str | None: WORDS,
    int: POSITIVE,
    int | None: POSITIVE,
    float | None: st.floats(1e-9, 1),
    float: st.floats(1e-9, 1e9),
    Literal["stop", "skip_step"]: st.sampled_from(["stop", "skip_step"]),
    Literal["auto", "on", "off"]: st.sampled_from(["auto", "on", "off"]),
    bool: st.booleans(),
    bool | None: st.booleans(),
    tuple[float, ...]: st.lists(st.floats(1e-3, 1e3), max_size=3),
    tuple[str, ...]: st.lists(WORDS, max_size=3),
}
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        name: BY_NAME[name] if name in BY_NAME else BY_HINT[field.hint]
        for name, field in own_fields().items()
        if name != "from_run"  # no key of a file, and a run must be there
    }
    | {"learning_rate": st.just("0.5"), "run_name": WORDS},
)


def as_flag(name: str, value: Any, *, dashes: bool, bare: bool) -> str:
    spelled = name.replace("_", "-") if dashes else name
    if bare and isinstance(value, bool):
        return f"--{spelled}" if value else f"--no_{spelled}"
    return f"--{spelled}={json.dumps(value) if isinstance(value, (dict, list, bool)) else value}"


def run_of(words: list[str], content: dict[str, Any], suffix: str) -> RunConfig:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"run{suffix}"
        if suffix == ".json":
            file.write_text(json.dumps(content), encoding="utf-8")
        else:
            write_mapping(file, content, heading="settings")
        return parse([*words, "--config", str(file)], environ={})


@settings(max_examples=60, deadline=None)
@given(CHOICES, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_flags_and_files_give_the_same_run(chosen: dict[str, Any], dashes: bool, bare: bool, random: Any) -> None:
    # A column that is named and ignored is an error of its own. Which words are drawn is not the same in every process:
    # hypothesis draws constants of the modules that are loaded, too.
    named = {value for name, value in chosen.items() if name.endswith("_column")}
    assume(not named & {column.strip() for text in chosen.get("ignore_columns", ()) for column in text.split(",")})
    words = {name: as_flag(name, value, dashes=dashes, bare=bare) for name, value in chosen.items()}
    from_flags = parse(list(words.values()), environ={})
    assert run_of([], chosen, ".json") == from_flags
    assert run_of([], chosen, ".yaml") == from_flags
    in_file = {name for name in chosen if random.random() < 0.5}
    mixed = run_of(
        [word for name, word in words.items() if name not in in_file],
        {name: value for name, value in chosen.items() if name in in_file},
        ".yaml",
    )
    assert mixed == from_flags


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(WORDS, st.one_of(TEXT, st.floats(allow_nan=False), st.integers(), st.booleans(), st.none())))
def test_what_is_written_reads_back(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.yaml"
        write_mapping(file, content, heading="a record")
        assert read_mapping(file) == content
