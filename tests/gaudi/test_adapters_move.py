"""Adapters go from one stack to the other, with equal logits; what cannot go is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.stacks import GAUDI, MAIN, on_cpu, on_hpu, run_words

EXAMPLES_RUN = "run_lora_vlm.py"
LAZY = {"PT_HPU_LAZY_MODE": "1"}
LOGITS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from vlm_lora.batching.collator import Collator
from vlm_lora.config.sources import parse
from vlm_lora.data.dataset import load_splits
from vlm_lora.session import open_preprocessing
base, adapter, data, out = sys.argv[1:]
torch.set_num_threads(1)
run = parse(["--model_name_or_path", base, "--dataset_name", data], environ={})
preprocessing = open_preprocessing(run)
rows = load_splits(run.data, need_train=True, need_validation=False).train
batch = preprocessing.collator([rows[i] for i in range(3)])
inputs = {name: value for name, value in batch.items() if name not in ("labels", "supervised_positions")}
model = AutoModelForImageTextToText.from_pretrained(base, torch_dtype=torch.float32)
with torch.no_grad():
    real = batch["attention_mask"] == 1  # what padding says differs between versions, and nobody reads it
    plain = model.eval()(**inputs).logits[real]
    tuned = PeftModel.from_pretrained(model, adapter).eval()(**inputs).logits[real]
torch.save({"plain": plain, "tuned": tuned}, out)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=6, validation=2)


def train(python: Path, words: list[str]) -> None:
    done = run_words([EXAMPLES_RUN, *words], python=python, variables=LAZY)
    assert done.returncode == 0, done.stderr[-3000:]


def logits(python: Path, base: Path, adapter: Path, data: Path, tmp_path: Path) -> dict[str, object]:
    import torch

    script, out = tmp_path / "logits.py", tmp_path / f"{python.parents[1].name}.pt"
    script.write_text(LOGITS)
    done = run_words([script, base, adapter, data, out], python=python, variables=LAZY)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize(
    ("made_on", "shape"), [("hpu", "gemma3"), ("hpu", "qwen2_5_vl"), ("main", "llava"), ("main", "gemma3")]
)
def test_equal_logits_on_both_stacks(
    made_on: str, shape: str, data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    settings = {"do_train": True, "max_steps": 3, "learning_rate": 1e-2, "bf16": False}
    make, python = (on_hpu, GAUDI) if made_on == "hpu" else (on_cpu, MAIN)
    train(python, make(model_folder(shape), data, tmp_path / "adapter", **settings))
    found = [logits(stack, model_folder(shape), tmp_path / "adapter", data, tmp_path) for stack in (MAIN, GAUDI)]
    torch.testing.assert_close(found[0]["tuned"], found[1]["tuned"], rtol=1e-5, atol=1e-5)
    plain, tuned = (found[0][name] for name in ("plain", "tuned"))
    assert isinstance(plain, torch.Tensor)
    assert isinstance(tuned, torch.Tensor)
    assert not torch.allclose(plain, tuned, atol=1e-3), "the adapter does something"


@pytest.mark.parametrize("made_on", ["hpu", "main"])
def test_vision_lora_is_refused_by_the_other_stack(
    made_on: str, data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The towers' layers have other names there: a plain load would leave them out without a word."""
    settings = {"do_train": True, "max_steps": 1, "lora_targets": "language,vision", "bf16": False}
    make, python, other = (on_hpu, GAUDI, MAIN) if made_on == "hpu" else (on_cpu, MAIN, GAUDI)
    train(python, make(model_folder("gemma3"), data, tmp_path / "adapter", **settings))
    words = on_cpu(tmp_path / "adapter", data, tmp_path / "out", do_eval=True)
    refused = run_words([EXAMPLES_RUN, *words], python=other, variables=LAZY)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "vision" in refused.stderr
    assert "transformers" in refused.stderr
    kept = run_words([EXAMPLES_RUN, *words], python=python, variables=LAZY)
    assert kept.returncode == 0, kept.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_perplexity"] > 1
