"""The backend's keys against its class: transformers' own, and one with the names of transformers 4.55."""

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import pytest
from transformers import HfArgumentParser, TrainingArguments

from vlm_lora.config.aliases import aliases
from vlm_lora.config.fields import own_fields
from vlm_lora.config.files import read_mapping
from vlm_lora.config.resolution import OWN_HINTS, resolve, to_mapping, write_resolved
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError
from vlm_lora.training.arguments import check_arguments


class Interval(str, Enum):
    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


@dataclass
class OldArguments:
    """Fields as transformers 4.55 declares them."""

    output_dir: Optional[str] = None  # noqa: UP045
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    warmup_ratio: float = 0.0
    warmup_steps: int = 0
    group_by_length: bool = False
    logging_dir: Optional[str] = None  # noqa: UP045
    save_safetensors: Optional[bool] = True  # noqa: UP045
    use_cpu: bool = False
    no_cuda: bool = False
    per_device_train_batch_size: int = 8
    optim: Union[Interval, str] = "no"  # noqa: UP007
    eval_strategy: Union[Interval, str] = "no"  # noqa: UP007
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: Optional[Union[dict[str, Any], str]] = None  # noqa: UP007, UP045
    include_tokens_per_second: Optional[bool] = False  # noqa: UP045
    include_num_input_tokens_seen: Optional[bool] = False  # noqa: UP045
    fsdp_config: Optional[Union[dict[str, Any], str]] = None  # noqa: UP007, UP045
    fsdp_min_num_params: int = 0
    past_index: int = -1
    report_to: Union[str, list[str], None] = None  # noqa: UP007
    level: str = field(default="low", metadata={"choices": ["low", "high"]})
    computed: int = field(init=False, default=0)


@dataclass
class NewArguments:
    """Fields as transformers 5.23 declares them."""

    output_dir: str | None = None
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    max_steps: int = -1
    warmup_steps: float = 0
    train_sampling_strategy: str = "random"
    dataloader_num_workers: int = 0
    dataloader_prefetch_factor: int | None = None
    dataloader_persistent_workers: bool = False
    use_cpu: bool = False
    bf16: bool = False
    per_device_train_batch_size: int = 8
    eval_strategy: Interval | str = "no"
    save_steps: float = 500
    gradient_checkpointing: bool | None = None
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = None
    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: dict[str, Any] | str | None = None
    include_num_input_tokens_seen: str | bool = "no"
    fsdp_config: dict[str, Any] | str | None = None
    lr_scheduler_kwargs: dict[str, Any] | str | None = None
    report_to: str | list[str] | None = "none"
    resume_from_checkpoint: str | None = None
    run_name: str | None = None
    hub_token: str | None = None
    log_level: str = field(default="passive", metadata={"choices": {"passive": 1, "info": 2}.keys()})
    seed: int = 42


@dataclass
class OlderArguments:
    """A class from before `eval_strategy`."""

    evaluation_strategy: str = "no"


def resolved(*words: str, cls: type = NewArguments) -> dict[str, Any]:
    return resolve(parse(words, environ={}), cls)[1]


def refused(*words: str, cls: type = NewArguments) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*words, cls=cls)
    return str(caught.value)


SAMPLES = {bool: "true", int: "3", float: "0.25", str: "text", dict: '{"a": 1}', list: "text"}
HF_CANNOT = {
    "parallelism_config",  # an object; no text makes one
    "liger_kernel_config",  # argparse's dict() takes no JSON text
    "gradient_checkpointing",  # passed on under its new name where there is one
    "gradient_checkpointing_kwargs",
}


def sample(name: str) -> str:
    """A valid text for a field of TrainingArguments."""
    declared = DECLARED[name]
    own = OWN_HINTS.get(name)
    if get_origin(own) is Literal:
        return str(get_args(own)[-1])
    if "choices" in declared.metadata:
        return str(list(declared.metadata["choices"])[-1])
    hint = HINTS[name]
    members = [get_origin(member) or member for member in (hint, *get_args(hint))]
    for member in members:
        if isinstance(member, type) and issubclass(member, Enum):
            return str(list(member)[-1].value)
    return next(text for kind, text in SAMPLES.items() if any(member is kind for member in members))


DECLARED = {item.name: item for item in dataclasses.fields(TrainingArguments)}
HINTS = get_type_hints(TrainingArguments)
FIELDS = [name for name, item in DECLARED.items() if item.init]
OURS = {name for name in FIELDS if name in own_fields()}
TRANSLATED = {
    name
    for name in FIELDS
    if name in aliases() and (aliases()[name].canonical in FIELDS or aliases()[name].canonical in own_fields())
}


@cache
def hf_parser() -> HfArgumentParser:
    return HfArgumentParser(TrainingArguments)


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in HF_CANNOT | OURS | TRANSLATED])
def test_every_field_is_a_flag_and_reads_as_transformers_reads_it(name: str) -> None:
    words = [f"--{name}", sample(name)]
    namespace = hf_parser().parse_args(words)
    expected = getattr(namespace, name)
    found = resolved(*words, cls=TrainingArguments)[name]
    if isinstance(found, dict):  # transformers turns JSON text into a mapping one step later
        assert expected == sample(name)
    else:
        assert found == (expected.value if isinstance(expected, Enum) else expected)


BUILDABLE = (
    "--use_cpu --eval_strategy steps --eval_steps 5 --learning_rate 1e-4 --gradient_checkpointing "
    "--warmup_ratio 0.1 --group_by_length --report_to none"
)


def test_values_build_the_class(tmp_path: Path) -> None:
    values = resolved(
        *BUILDABLE.split(),
        "--output_dir",
        str(tmp_path),
        "--gradient_checkpointing_kwargs",
        '{"use_reentrant": false}',
        cls=TrainingArguments,
    )
    arguments = TrainingArguments(**values)
    assert arguments.gradient_checkpointing is True
    assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert arguments.get_warmup_steps(50) == 5
    grouped = {"train_sampling_strategy": "group_by_length", "group_by_length": True}
    assert [name for name in grouped if values.get(name) == grouped[name]] != []
    assert arguments.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("words", "new", "old"),
    [
        ("--warmup_ratio 0.1", {"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        ("--warmup_steps 0.1", {"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        ("--warmup_steps 10", {"warmup_steps": 10.0}, {"warmup_steps": 10}),
        (
            "--warmup_ratio 0.1 --warmup_steps 9",
            {"warmup_steps": 9.0},
            {"warmup_ratio": 0.1, "warmup_steps": 9},
        ),
        (
            "--warmup_ratio 0.1 --warmup_steps 0",
            {"warmup_steps": 0.1},
            {"warmup_ratio": 0.1, "warmup_steps": 0},
        ),
        ("--group_by_length", {"train_sampling_strategy": "group_by_length"}, {"group_by_length": True}),
        ("--group_by_length no", {"train_sampling_strategy": "random"}, {"group_by_length": False}),
        ("--save_safetensors", {}, {"save_safetensors": True}),
        ("--past_index=-1", {}, {"past_index": -1}),
        ("--no_cuda", {}, {}),
        ("--use_cpu", {}, {}),
        ("--evaluation_strategy epoch", {"eval_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        (
            "--per_gpu_train_batch_size 2",
            {"per_device_train_batch_size": 2},
            {"per_device_train_batch_size": 2},
        ),
        ("--gradient_checkpointing", {"activation_checkpointing": True}, {"gradient_checkpointing": True}),
        ("--activation_checkpointing", {"activation_checkpointing": True}, {"gradient_checkpointing": True}),
        (
            "--include_tokens_per_second",
            {"include_num_input_tokens_seen": True},
            {"include_tokens_per_second": True},
        ),
        ("--include_tokens_per_second no", {}, {"include_tokens_per_second": False}),
        ("--fsdp_min_num_params 9", {"fsdp_config": {"min_num_params": 9}}, {"fsdp_min_num_params": 9}),
        ("--fsdp_min_num_params 0", {}, {"fsdp_min_num_params": 0}),
        ("--report_to a b", {"report_to": ["a", "b"]}, {"report_to": ["a", "b"]}),
    ],
)
def test_the_class_decides_the_name(words: str, new: dict[str, Any], old: dict[str, Any]) -> None:
    assert resolved(*words.split()) == new
    assert resolved(*words.split(), cls=OldArguments) == old


def test_a_class_from_before_a_rename_gets_its_own_name() -> None:
    assert resolved("--eval_strategy", "epoch", cls=OlderArguments) == {"evaluation_strategy": "epoch"}


def test_logging_dir_becomes_tensorboards_variable_where_the_field_is_gone() -> None:
    run, values = resolve(parse(["--logging_dir", "logs"], environ={}), NewArguments)
    assert values == {}
    assert run.environment == {"TENSORBOARD_LOGGING_DIR": "logs"}
    run, values = resolve(parse(["--logging_dir", "logs"], environ={}), OldArguments)
    assert values == {"logging_dir": "logs"}
    assert run.environment == {}


def test_a_layer_to_wrap_joins_the_fsdp_config() -> None:
    words = ["--fsdp_transformer_layer_cls_to_wrap", "A,B", "--fsdp_config", '{"min_num_params": 1}']
    assert resolved(*words)["fsdp_config"] == {
        "min_num_params": 1,
        "transformer_layer_cls_to_wrap": ["A", "B"],
    }
    assert "contradict" in refused(*words[:2], "--fsdp_config", '{"transformer_layer_cls_to_wrap": ["C"]}')
    assert "write it into f.json" in refused(*words[:2], "--fsdp_config", "f.json")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--save_safetensors false", ("--save_safetensors false", "safetensors only")),
        ("--past_index 1", ("--past_index 1",)),
        ("--use_ipex", ("--use_ipex true", "part of PyTorch")),
        ("--fp16_backend apex", ("--fp16_backend apex", "mixed precision")),
        ("--tpu_num_cores 8", ("--tpu_num_cores 8", "no TPU")),
        ("--warmup_ratio 1.5", ("--warmup_ratio 1.5", "below 1")),
        ("--warmup_ratio much", ("--warmup_ratio much", "a number")),
        ("--learning_rate fast", ("--learning_rate fast", "a number")),
        ("--learning_rate nan", ("--learning_rate nan", "a number")),
        ("--bf16 maybe", ("--bf16 maybe", "true or false")),
        ("--max_steps 1.5", ("--max_steps 1.5", "a whole number")),
        ("--eval_strategy sometimes", ("--eval_strategy sometimes", "one of no, steps, epoch")),
        ("--log_level loud", ("--log_level loud", "one of")),
        ("--lr_scheduler_kwargs {a", ("--lr_scheduler_kwargs {a", "JSON text")),
        ("--lerning_rate 1", ("--lerning_rate is not a known key", "'learning_rate'")),
        ("--lora_rnak 1", ("'lora_rank'",)),
        ("--num_epoch 1", ("'num_epochs'",)),
        ("--qqqqqqq 1", ("--qqqqqqq", "--help_all")),
        (
            "--gaudi_config_name Habana/gpt2",
            ("--gaudi_config_name is for the gaudi and habana backends", "--use_habana"),
        ),
        ("--use_lazy_mode", ("gaudi and habana backends",)),
        ("--use_lazy_mode --backend habana", ("not known to the installed version of the habana backend's packages",)),
        ("--world_size 8", ("vlm-lora launch", "before the name")),
        ("--lerning_rate 1 --use_mpi --bacth_size 2", ("'learning_rate'", "vlm-lora launch", "'batch_size'")),
        ("--wandb_project p --logging_dir l --environment.TENSORBOARD_LOGGING_DIR m", ("contradict",)),
    ],
)
def test_a_refusal_says_what_to_do(words: str, parts: tuple[str, ...]) -> None:
    text = refused(*words.split())
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize("flag", ["--prefetch-factor", "--dataloader_prefetch_factor"])
def test_0_prefetched_batches_are_none(flag: str) -> None:
    words = ["--num-workers", "0", "--persistent-workers", "False"]
    values = resolved(*words, flag, "0")
    assert values == {
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
    }
    check_arguments(values)
    assert resolved(flag, "2") == {"dataloader_prefetch_factor": 2}, "the control"


def test_workers_that_are_not_there_cannot_persist() -> None:
    for workers in ({}, {"dataloader_num_workers": 0}):
        with pytest.raises(ConfigError, match=r"--dataloader_num_workers 0\) none can persist"):
            check_arguments({"dataloader_persistent_workers": True, **workers})
    check_arguments({"dataloader_persistent_workers": True, "dataloader_num_workers": 1})


def test_a_sampling_that_an_old_class_cannot_do_is_refused() -> None:
    text = refused("--train_sampling_strategy", "sequential", cls=OldArguments)
    assert "--train_sampling_strategy sequential" in text
    assert "--group_by_length" in text


def test_choices_in_the_field_are_checked() -> None:
    assert resolved("--level", "high", cls=OldArguments) == {"level": "high"}
    assert "one of low, high" in refused("--level", "middle", cls=OldArguments)
    assert "--computed is not a known key" in refused("--computed", "1", cls=OldArguments)


def test_typed_values_of_a_file_are_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("eval_strategy: no\nlearning_rate: 1e-4\nsave_steps: 5\nlr_scheduler_kwargs: {a: 1}\n")
    assert resolved(str(file)) == {
        "eval_strategy": "no",
        "learning_rate": 1e-4,
        "save_steps": 5.0,
        "lr_scheduler_kwargs": {"a": 1},
    }
    file.write_text("per_device_train_batch_size: true\n")
    assert "--per_device_train_batch_size true: must be a whole number" in refused(str(file))


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("--resume_from_checkpoint",), True),
        (("--resume_from_checkpoint", "true"), True),
        (("--resume_from_checkpoint", "false"), False),
        (("--resume_from_checkpoint", "runs/checkpoint-5"), "runs/checkpoint-5"),
    ],
)
def test_resume_takes_true_or_a_folder(words: tuple[str, ...], value: bool | str) -> None:
    assert resolved(*words) == {"resume_from_checkpoint": value}


# The record

FULL = (
    "--model_name_or_path m --dataset_name d --lora_r 8 --no_freeze_vision --use_habana --wandb_project p "
    "--output_model_name mine --num_epochs 2 --warmup_ratio 0.1 --group_by_length --logging_dir logs "
    "--gradient_checkpointing --eval_strategy no --report_to a b --run_name 1e-4 --seed 7 --debug"
)


@dataclass
class OldArgumentsWithMore(OldArguments):
    seed: int = 0
    run_name: str = ""


@pytest.mark.parametrize("cls", [TrainingArguments, NewArguments, OldArgumentsWithMore])
def test_the_record_reads_back_to_the_same_run(tmp_path: Path, cls: type) -> None:
    words = [
        *FULL.split(),
        "--accelerate_launch_args",
        '{"a": {"b": [1, "no"]}}',
        "--system_prompt",
        "line\nno: 'x'",
    ]
    run, values = resolve(parse(words, environ={}), cls)
    file = tmp_path / "deep" / "run_config.yaml"
    write_resolved(file, run, values)
    again = parse(["--config", str(file)], environ={})
    assert again == run
    assert resolve(again, cls) == (run, values)
    assert sorted(path.name for path in file.parent.iterdir()) == ["run_config.yaml"]


def test_the_record_holds_no_secret(tmp_path: Path) -> None:
    words = [
        "--token",
        "hf_a",
        "--hub_token",
        "hf_b",
        "--environment",
        '{"WANDB_API_KEY": "hf_c", "OTHER": "d"}',
    ]
    run, values = resolve(parse(words, environ={}), NewArguments)
    assert values == {"hub_token": "hf_b"}
    file = tmp_path / "run_config.yaml"
    write_resolved(file, run, values)
    assert "hf_" not in file.read_text()
    assert read_mapping(file)["environment"] == {"OTHER": "d"}
    again = parse([str(file)], environ={})
    assert again == dataclasses.replace(run, model=ModelConfig(), raw={}, environment={"OTHER": "d"})


def test_the_record_shows_our_defaults_and_the_given_keys_of_the_backend() -> None:
    content = to_mapping(RunConfig(), {"learning_rate": 1.0, "debug": "underflow_overflow"})
    assert content["lora_rank"] == 16
    assert content["learning_rate"] == 1.0
    assert content["debug"] == "underflow_overflow"
    assert "output_model_name" not in content
