"""What is refused before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora.config.early import DATA, MODEL, OUTPUT, check_early
from vlm_lora.config.sources import parse
from vlm_lora.errors import UserError

NEEDED = (MODEL, DATA, OUTPUT)


def refused(*words: str, needed: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        check_early(parse(words, environ={}), "train", needed)
    return str(caught.value)


def accepted(*words: str, needed: tuple[str, ...] = ()) -> None:
    check_early(parse(words, environ={}), "train", needed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lerning_rate 1", "--lerning_rate is not a known key. Did you mean 'learning_rate'?"),
        ("--lerning_rate 1 --bacth_size 2", "'batch_size'"),
        ("--eval_strategy sometimes", "--eval_strategy sometimes: must be one of no, steps, epoch"),
        ("--learning_rate fast", "--learning_rate fast: must be a number"),
        ("--per_device_train_batch_size 1.5", "must be a whole number"),
        ("--bf16 maybe", "--bf16 maybe: must be true or false"),
        ("--use_lazy_mode --backend cpu", "--use_lazy_mode is for the gaudi and habana backends: add --use_habana"),
        ("--model_name_or_path ./nowhere", "./nowhere: no such folder"),
        ("--model_name_or_path a/b/c", "a/b/c: no such folder"),
        ("--dataset_name nowhere.jsonl", "--dataset_name nowhere.jsonl: no such file or folder"),
        ("--validation_name /nowhere/v", "--validation_name /nowhere/v: no such file or folder"),
        ("--report_to dagshub", "--report_to dagshub: the package is not installed. Type: pip install dagshub"),
        ("--report_to none dagshub", "pip install dagshub"),
        ("--pack_length 256", "--pack_length 256 is for --packing true: add it, or leave it out."),
        ("--nonfinite_limit 3", "--nonfinite_limit 3 is for --on_nonfinite skip_step: add it, or leave it out."),
        ("--packing true --group_by_length true", "so --train_sampling_strategy group_by_length has no place beside"),
        ("--packing true --streaming true", "--packing true does not go with --streaming true: packs are planned"),
        ("--group_by_length true --streaming true", "group_by_length does not go with --streaming true: how long"),
        ("--static_shapes true --streaming true", "batch shapes are planned from all rows, and a stream is not read"),
        ("--image_cache on --streaming true", "--image_cache on does not go with --streaming true: a stream reads"),
        ("--on_overflow drop --streaming true", "--on_overflow drop does not go with --streaming true: rows are dro"),
        ("--streaming true", "--streaming true needs --max_steps: nothing but reading all of a stream says"),
    ],
)
def test_a_refusal_says_what_to_do(words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused(*words.split())
    assert said in text


def test_what_goes_together_is_not_refused() -> None:
    accepted("--packing", "true", "--pack_length", "256", "--train_sampling_strategy", "random")
    accepted("--streaming", "true", "--max_steps", "3", "--image_cache", "auto", "--static_shapes", "false")
    accepted("--streaming", "true", "--dry_run", "true")
    packed = parse(["--pack_length", "256", "--group_by_length", "true"], environ={})
    check_early(packed, "eval", trains=False)  # a training's file evaluates, too
    check_early(parse(["--streaming", "true"], environ={}), "check")


def test_only_values_that_can_be_used_are_listed() -> None:
    listed = "must be one of random, sequential, group_by_length."
    for word in ("grouped", "batch_rebalance"):
        assert refused("--train_sampling_strategy", word) == f"--train_sampling_strategy {word}: {listed}"


def test_all_missing_flags_are_named_at_once_with_a_line_to_type(tmp_path: Path) -> None:
    text = refused(needed=NEEDED)
    assert [name for name in NEEDED if f"  --{name}: " not in text] == []
    assert "For example: vlm-lora train --model_name_or_path google/gemma-3-4b-it --dataset_name data/train" in text
    one = refused("--model_name_or_path", str(tmp_path), "--dataset_name", str(tmp_path), needed=NEEDED)
    assert one.startswith("--output_dir is missing: ")
    assert f"--model_name_or_path {tmp_path} --dataset_name {tmp_path} --output_dir runs/first" in one


@pytest.mark.parametrize(
    "words",
    [
        "--model_name_or_path google/gemma-3-4b-it --dataset_name HuggingFaceM4/ChartQA",
        "--dataset_name data/{000..007}.tar",
        "--dataset_name a.jsonl,b.jsonl",
        "--dataset_name a.jsonl + b.jsonl",
        "--dataset_name data/*.parquet",
        "--report_to none",
        "--report_to all",
        "--parallelism_config x",
        "--lr_scheduler_type cosine --warmup_ratio 0.1 --group_by_length",
        "--use_habana --use_lazy_mode --gaudi_config_name Habana/gpt2",
    ],
)
def test_what_can_only_be_known_later_passes(words: str) -> None:
    accepted(*words.split())


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\n"
        "from vlm_lora.config.early import check_early\n"
        "from vlm_lora.config.sources import parse\n"
        "check_early(parse(['--learning_rate', '1e-4', '--report_to', 'none'], environ={}), 'train')\n"
        "print([name for name in ('torch', 'transformers', 'accelerate', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
