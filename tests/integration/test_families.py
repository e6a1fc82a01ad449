"""Every family in the table: three steps through the command line, and a reload by plain PEFT.

The list comes from the table, filtered by what the installed transformers can build. Each family's row
in docs/families.md is made here; `make docs` writes the rows that changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from support.families.page import BEGIN
from support.rows import write_uneven_rows
from support.runs import capture_trainer, run
from support.tiny import available
from vlm_lora.compat import keep_answers_causal
from vlm_lora.config.sources import parse
from vlm_lora.model.families import FAMILIES
from vlm_lora.session import open_preprocessing

REMOTE_CODE = {"phi3_v"}
HEAD = (
    "| Model type | Published models | Linear layers that LoRA adapts by default | Test | Rows can be packed | "
    "Features of a frozen tower can be kept |"
)
DOCS = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.parametrize("name", available())
def test_train_reload_and_document(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = capture_trainer(monkeypatch)
    data = write_uneven_rows(tmp_path / "data", rows=6, validation=2)
    folder = model_folder(name)
    output = tmp_path / "out"
    results = run(
        folder,
        data,
        output,
        do_train=True,
        do_eval=True,
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        trust_remote_code=name in REMOTE_CODE,
    )
    assert results["eval_perplexity"] > 1
    trained = trainers[0].model.eval()
    batch = trainers[0].data_collator([trainers[0].eval_dataset[i] for i in range(2)])
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "supervised_positions")}
    base = type(trained.get_base_model()).from_pretrained(folder)
    keep_answers_causal(base)  # 4.55 needs it wherever answers are in the inputs, not for generation
    expected = logits_of(trained, inputs)
    assert not torch.allclose(logits_of(base.eval(), inputs), expected, atol=1e-4), "training changed nothing"
    reloaded = PeftModel.from_pretrained(base, output).eval()
    torch.testing.assert_close(logits_of(reloaded, inputs), expected, rtol=1e-5, atol=1e-5)
    check_same_tensors(folder, output, trainers[0].eval_dataset[0], trust=name in REMOTE_CODE)
    check_documented(name, trained)


def check_same_tensors(base: Path, output: Path, row: Any, *, trust: bool) -> None:
    """The saved processor makes of a row what the base's made of it in training."""
    flags = ["--trust_remote_code", str(trust).lower(), "--model_name_or_path"]
    ours, theirs = (
        open_preprocessing(parse([*flags, str(place)], environ={})).encoder.encode(row) for place in (base, output)
    )
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.media.keys() == theirs.media.keys()
    for name, tensor in ours.media.items():
        assert torch.equal(tensor, theirs.media[name]), name


def logits_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def family_name(variant: str) -> str:
    """`llava_next-granite` is a variant of the family `llava_next`: another language model or vision tower."""
    return variant.partition("-")[0]


def check_documented(variant: str, trained: Any) -> None:
    """The family's row in the docs says what this run found."""
    config = trained.peft_config["default"]
    adapted = sorted({name.rpartition(".lora_A")[0] for name, _ in trained.named_parameters() if ".lora_A" in name})
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
    family = FAMILIES[family_name(variant)]
    published = ", ".join(family.published)
    packs = "yes" if family.packing.packs else f"no: {family.packing.refused}"
    features = "no: it takes none in place of pixels" if family.features.entry == "none" else "yes"
    row = f"| `{variant}` | {published} | {kinds} | rank {config.r}: trained, reloaded | {packs} | {features} |"
    text, marker, tried = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    lines = text.splitlines()
    current = [i for i, line in enumerate(lines) if line.startswith(f"| `{variant}` |")]
    if os.environ.get("UPDATE_DOCS") == "1":
        rows = [line for line in lines if line.startswith("| `") and not line.startswith(f"| `{variant}` |")]
        rest = [line for line in lines if not line.startswith("| `")]
        table = rest.index(HEAD) + 2
        made = [*rest[:table], *sorted([*rows, row]), *rest[table:]]
        DOCS.write_text("\n".join(made) + "\n" + marker + tried, encoding="utf-8")
        return
    assert [lines[i] for i in current] == [row]


def test_docs_name_exactly_the_families_of_the_table() -> None:
    lines = DOCS.read_text(encoding="utf-8").partition(BEGIN)[0].splitlines()
    documented = {family_name(line.split("`")[1]) for line in lines if line.startswith("| `")}
    assert documented == {name for name, family in FAMILIES.items() if not family.refused}
