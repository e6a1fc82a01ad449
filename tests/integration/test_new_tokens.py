"""New tokens: of the embeddings their rows alone are trained, and plain PEFT reloads them on a base that has grown."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from support.rows import write_uneven_rows
from support.runs import capture_trainer, run, script_flags
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.cli.main import run_script
from vlm_lora.model.loading import load_adapter
from vlm_lora.model.parts import is_tied

TOKENS = ("<C1>", "<C2>", "greenish")
TIED, UNTIED = "gemma3", "llava"
OTHER = "qwen2_5_vl"
"""Its text model's configuration says nothing of tied tensors in transformers 5."""
FLAGS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that hold all new tokens, in questions and answers."""
    folder = write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=6, validation=2)
    for split in ("train", "validation"):
        file = folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["question"] += " <C1>"
            row["answer"] = "<C2> greenish " + row["answer"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder.parent / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=[TIED, UNTIED, OTHER])
def trained(
    request: pytest.FixtureRequest,
    data: Path,
    model_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path, dict[str, Any]]:
    """A family, the folder of a run that learnt the tokens, and its results."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    results = run(model_folder(request.param), data, out, **FLAGS, new_tokens=data.parent / "tokens.txt")
    return request.param, out, results


def on_grown_base(folder: Path, adapter: Path, *, rows: int, tied: bool) -> Any:
    """Load an adapter as its README says, by transformers and PEFT alone."""
    _, base = load_plainly(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' words on new rows
        base.resize_token_embeddings(rows)
        base.config.tie_word_embeddings = tied
        return PeftModel.from_pretrained(base, str(adapter)).eval()


def test_the_new_rows_move_and_all_others_stay_bit_for_bit(
    trained: tuple[str, Path, dict[str, Any]], model_folder: Callable[[str], Path]
) -> None:
    name, out, _ = trained
    _, before = load_plainly(model_folder(name))
    rows = before.get_input_embeddings().weight.shape[0]
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.convert_tokens_to_ids(list(TOKENS))
    assert len(set(ids)) == 3
    assert max(ids) >= rows  # the control: there was no room for them
    tied = is_tied(before)
    assert tied is (name == TIED)
    saved = load_file(out / "adapter_model.safetensors")
    deltas = {key: tensor for key, tensor in saved.items() if "trainable_tokens" in key}
    assert [tensor.shape[0] for tensor in deltas.values()] == [3] * (1 if tied else 2)
    assert not any(tensor.shape[0] >= rows for tensor in saved.values())  # no whole table
    merged = on_grown_base(model_folder(name), out, rows=len(tokenizer), tied=tied).merge_and_unload()
    for table in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, table)().weight, getattr(merged, table)().weight
        others = [row for row in range(rows) if row not in ids]
        assert torch.equal(new[others], old[others])
        begun = [_mean_of_pieces(model_folder(name), old, token) for token in TOKENS]
        assert all(not torch.equal(new[row], start) for row, start in zip(ids, begun, strict=True))
        # By at most the four steps' learning rate.
        assert all((new[row] - start).abs().max() < 0.05 for row, start in zip(ids, begun, strict=True))


def _mean_of_pieces(folder: Path, weight: torch.Tensor, token: str) -> torch.Tensor:
    pieces = AutoTokenizer.from_pretrained(folder)(token, add_special_tokens=False)["input_ids"]
    return weight[pieces].mean(dim=0)


def test_plain_peft_our_own_loading_and_the_merged_model_compute_the_same(
    trained: tuple[str, Path, dict[str, Any]], data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    name, out, results = trained
    processor, base = load_plainly(model_folder(name))
    batch = build_batch(processor)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(TOKENS)))
    batch["input_ids"][:, -3:] = ids
    tied = is_tied(base)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        ours = load_adapter(base, out).eval()(**batch).logits
        plain = on_grown_base(model_folder(name), out, rows=len(tokenizer), tied=tied)
        torch.testing.assert_close(plain(**batch).logits, ours)
        merged = plain.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        processor.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(load_plainly(tmp_path / "merged")[1](**batch).logits, ours, atol=1e-4, rtol=1e-4)
        # The control: without the learnt rows it computes something else.
        _, bare = load_plainly(model_folder(name))
        bare.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        assert (bare.eval()(**batch).logits - ours).abs().max() > 1e-2
    again = run(out, data, tmp_path / "scored", do_eval=True)
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)


def test_a_resumed_run_ends_with_the_same_bytes(
    trained: tuple[str, Path, dict[str, Any]], data: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    name, out, _ = trained
    tokens = data.parent / "tokens.txt"
    run(
        model_folder(name),
        data,
        tmp_path / "out",
        **FLAGS,
        new_tokens=tokens,
        resume_from_checkpoint=out / "checkpoint-2",
    )
    whole, ended, half = (
        load_file(place / "adapter_model.safetensors") for place in (out, tmp_path / "out", out / "checkpoint-2")
    )
    assert all(torch.equal(whole[key], ended[key]) for key in whole)
    assert not any(torch.equal(whole[key], half[key]) for key in whole if "trainable_tokens" in key)


def test_the_folder_says_how_plain_peft_loads_it(trained: tuple[str, Path, dict[str, Any]]) -> None:
    name, out, _ = trained
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"base.resize_token_embeddings({len(AutoTokenizer.from_pretrained(out))})" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    compile(code.group(1), name, "exec")


def test_tokens_have_a_learning_rate_of_their_own(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = capture_trainer(monkeypatch)
    flags = {**FLAGS, "do_eval": False, "max_steps": 1, "save_strategy": "no", "embeddings_learning_rate": 5e-3}
    run(model_folder(TIED), data, tmp_path / "out", **flags, new_tokens=data.parent / "tokens.txt")
    assert {group["initial_lr"] for group in trainers[0].optimizer.param_groups} == {1e-2, 5e-3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("<C1>\n\n<C2>\n", "line 2: it is empty"),
        ("<C1> \n", "line 1: it has white space around its token"),
        ("<C1>\n<C2>\n<C1>\n", "line 3: '<C1>' is there twice"),
        ("<eos>\n", "'<eos>' (and 0 more) is a token of this tokenizer already"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_names_no_new_tokens_is_refused_with_its_line(
    text: str | None,
    said: str,
    data: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tokens.txt"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert run_script(script_flags(model_folder(TIED), data, tmp_path / "out", **FLAGS, new_tokens=file)) == 1
    error = capsys.readouterr().err
    assert f"--new_tokens {file}" in error
    assert said in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"peft_method": "none"}, "--new_tokens are for --peft_method lora"),
        ({"train_fully": "embeddings"}, "--train_fully embeddings trains all rows"),
    ],
)
def test_what_contradicts_them_is_said(
    flags: dict[str, Any],
    said: str,
    data: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = data.parent / "tokens.txt"
    given = {**FLAGS, **flags, "new_tokens": tokens}
    assert run_script(script_flags(model_folder(TIED), data, tmp_path / "out", **given)) == 1
    assert said in capsys.readouterr().err
