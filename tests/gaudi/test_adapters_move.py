"""Adapters and checkpoints go from any of four ways to any other; what cannot go is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.stacks import GAUDI, MAIN, NEW_ROAD, OLD_ROAD, Road, on_cpu, on_hpu, run_words

EXAMPLES_RUN = "run_lora_vlm.py"
LAZY = {"PT_HPU_LAZY_MODE": "1"}
WAYS: dict[str, tuple[Callable[..., list[str]], Road]] = {
    "CPU, main": (on_cpu, Road(python=MAIN, variables={})),
    "CPU, gaudi's stack": (on_cpu, Road(python=GAUDI, variables=LAZY)),
    "habana": (on_hpu, OLD_ROAD),
    "gaudi": (on_hpu, NEW_ROAD),
}
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


def test_vision_lora_of_transformers_5_is_refused_by_4_55(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The tower's layers have other names there: a plain load would leave them out without a word."""
    settings = {"do_train": True, "max_steps": 1, "lora_targets": "language,vision", "bf16": False}
    train(MAIN, on_cpu(model_folder("gemma3"), data, tmp_path / "adapter", **settings))
    words = on_cpu(tmp_path / "adapter", data, tmp_path / "out", do_eval=True)
    refused = run_words([EXAMPLES_RUN, *words], python=GAUDI, variables=LAZY)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "vision" in refused.stderr
    assert "transformers" in refused.stderr
    kept = run_words([EXAMPLES_RUN, *words], python=MAIN, variables=LAZY)
    assert kept.returncode == 0, kept.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_perplexity"] > 1


def test_vision_lora_of_4_55_does_the_same_on_transformers_5(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT takes the piece of a name away that transformers 5 has no more; without the tower's LoRA, it differs."""
    import torch
    from safetensors.torch import load_file, save_file

    settings = {"do_train": True, "max_steps": 3, "learning_rate": 1e-2, "bf16": False}
    adapter, base = tmp_path / "adapter", model_folder("gemma3")
    train(GAUDI, on_hpu(base, data, adapter, lora_targets="language,vision", **settings))
    there, here = (logits(stack, base, adapter, data, tmp_path)["tuned"] for stack in (GAUDI, MAIN))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}, file)
    assert len(load_file(file)) < len(tensors)
    without = logits(MAIN, base, adapter, data, tmp_path)["tuned"]
    assert isinstance(without, torch.Tensor)
    assert isinstance(here, torch.Tensor)
    assert not torch.allclose(without, here, rtol=1e-5, atol=1e-5)


def run(way: str, model: Path, data: Path, output: Path, *more: str, **settings: object) -> dict[str, float]:
    """Return the figures of a run in one of the four ways."""
    flags, road = WAYS[way]
    words = [*flags(model, data, output, bf16=False, image_backend="pil", **settings), *more]
    done = run_words([EXAMPLES_RUN, *words], python=road.python, variables=road.variables)
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, float] = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    return figures


def test_a_checkpoint_goes_on_in_every_way(data: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """With torch's AdamW everywhere: three steps and three more elsewhere give the perplexity of six steps."""
    plain = tmp_path / "plain.json"
    plain.write_text('{"use_fused_adam": false, "use_fused_clip_norm": true}')
    settings = {
        "do_train": True,
        "do_eval": True,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "static_shapes": True,
        "max_shapes": 1,
        "adam_epsilon": 1e-6,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    model, found = model_folder("gemma3"), {}
    ours = {way: {"gaudi_config_name": plain} if WAYS[way][0] is on_hpu else {} for way in WAYS}
    for way in WAYS:
        found[way] = run(way, model, data, tmp_path / way, **settings, **ours[way])["eval_perplexity"]
    three = run("CPU, main", model, data, tmp_path / "three", **{**settings, "max_steps": 3})["eval_perplexity"]
    assert three != pytest.approx(found["CPU, main"], rel=1e-2), "the control: the last steps matter"
    names = list(WAYS)
    for before, after in zip(names, [*names[2:], *names[:2]], strict=True):
        output = tmp_path / f"{before}, {after}"
        shutil.copytree(tmp_path / before, output)
        shutil.rmtree(output / "checkpoint-6")
        more = ["--resume_from_checkpoint", "true", "--allow_changed", "backend", "optim", "versions"]
        gone_on = run(after, model, data, output, *more, **settings, **ours[after])
        assert gone_on["eval_perplexity"] == pytest.approx(found[before], rel=1e-4)


def test_an_adapter_has_one_perplexity_in_every_way(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same canvases everywhere, chosen from the validation rows."""
    train = {"do_train": True, "max_steps": 3, "learning_rate": 1e-2}
    judge = {"do_eval": True, "static_shapes": True}
    base = model_folder("qwen2_5_vl")
    untrained = run("CPU, main", base, data, tmp_path / "untrained", **judge)["eval_perplexity"]
    for made in ("habana", "gaudi"):
        run(made, base, data, tmp_path / made, **train)
        found = [
            run(way, tmp_path / made, data, tmp_path / f"{made}, {way}", **judge)["eval_perplexity"] for way in WAYS
        ]
        assert found == pytest.approx([found[0]] * 4, rel=1e-4)
        assert found[0] != pytest.approx(untrained, rel=1e-3), "the control"


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_lora_that_begins_with_weights_trains_the_same_on_both_roads(
    start: str, data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """SGD, whose small steps show what a gradient is; the beginning, which stays, is in the file of each."""
    import torch
    from safetensors.torch import load_file

    settings = {"do_train": True, "max_steps": 2, "learning_rate": 1e-2, "optim": "sgd", "static_shapes": True}
    plain = tmp_path / "plain.json"
    plain.write_text('{"use_fused_adam": false, "use_fused_clip_norm": true}')
    found = {}
    for way in ("CPU, gaudi's stack", "habana", "gaudi"):
        own = {"gaudi_config_name": plain} if WAYS[way][0] is on_hpu else {}
        run(way, model_folder("llava"), data, tmp_path / way, lora_rank=4, lora_init=start, **settings, **own)
        found[way] = load_file(tmp_path / way / "adapter_model.safetensors")
    cpu = found.pop("CPU, gaudi's stack")
    for other in found.values():
        assert all(torch.allclose(other[name], tensor, rtol=0, atol=1e-5) for name, tensor in cpu.items())
    moved = [a - b for a, b in (tensor.chunk(2) for name, tensor in cpu.items() if "lora_A" in name)]
    assert max(float(change.abs().max()) for change in moved) > 1e-4  # the control
