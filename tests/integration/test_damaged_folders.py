"""A file of a model or adapter folder that is missing, cut or has a flipped bit is named, and no traceback shown."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from support.tiny import available, build_processor
from support.tiny.batches import load_plainly
from support.tiny.folders import ENDS
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.style import style_for
from vlm_lora.cli.main import main, run_script
from vlm_lora.errors import RenderingError

ADAPTER, BASE = "adapter", "base"
FILES = {
    ADAPTER: (
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
    BASE: (
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
}
ALLOWED = {
    (BASE, "generation_config.json"),  # not every model has one
    (BASE, "preprocessor_config.json"),  # 5.x reads processor_config.json, which holds the same
    (ADAPTER, "preprocessor_config.json"),
}
"""Files without which a folder still loads rightly on some stack."""


@dataclass(frozen=True)
class Folders:
    """Whole folders, and a place for broken copies."""

    root: Path

    def broken(self, kind: str, name: str, content: bytes | None) -> Path:
        """Return a copy in which one file has other content, or is missing."""
        copy = self.root / "broken" / kind
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.root / kind, copy)
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        return copy


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Folders:
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(model_folder("qwen2_vl"), root / BASE)
    data = write_uneven_rows(root / "data", rows=2, validation=1)
    run(root / BASE, data, root / ADAPTER, do_train=True, max_steps=1, learning_rate=0.01)
    return Folders(root)


def asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Ask a model folder a question; return the exit code and what was said on stderr."""
    image = next((folder.parents[1] / "data").glob("*.png"))
    capsys.readouterr()
    flags = ["--use_cpu", "true", "--max_new_tokens", "2", "--image", str(image), "--prompt", "Hi"]
    code = main(["ask", "--model_name_or_path", str(folder), *flags])
    return code, capsys.readouterr().err


def refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Make sure that a folder is refused with one message that names the file; return the message."""
    code, said = asked(folder, capsys)
    assert code == 1, said
    message = next(line for line in said.splitlines() if line.startswith("error: "))
    assert name in message
    assert str(folder) in message
    assert "Traceback" not in said
    return message


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FILES.items() for name in names])
def test_a_file_that_is_missing_empty_or_cut_is_named(
    kind: str, name: str, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folders.root / kind / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        refused(folders.broken(kind, name, content), name, capsys)
    missing = folders.broken(kind, name, None)
    if name == "tokenizer.json" and (missing / "vocab.json").is_file():  # 4.55 saves the vocabulary a second time
        (missing / "vocab.json").unlink()
        (missing / "merges.txt").unlink()
    if (kind, name) not in ALLOWED:
        refused(missing, name, capsys)


def test_training_names_missing_weights_before_any_row_is_read(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = folders.broken(BASE, "model.safetensors", None)
    assert run_script(script_flags(copy, folders.root / "data", tmp_path / "out", do_train=True, log_level="info")) == 1
    said = capsys.readouterr().err
    assert f"error: {copy}: it has a config.json and no weights" in said
    assert "Checked " not in said


def test_whole_folders_answer(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in FILES:
        copy = folders.root / "broken" / kind
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folders.root / kind, copy)
        assert asked(copy, capsys)[0] == 0


@pytest.mark.parametrize(
    ("kind", "name", "before", "after"),
    [
        (ADAPTER, "adapter_config.json", b'"r": ', b'"s": '),
        (ADAPTER, "adapter_config.json", b'"lora_alpha": ', b'"lora_alphc": '),
        (ADAPTER, "adapter_config.json", b'"peft_type": "LORA"', b'"peft_type": "LORC"'),
        (ADAPTER, "adapter_config.json", b'"base_model_name_or_path": "/', b'"base_model_name_or_path": "?'),
        (ADAPTER, "adapter_config.json", b"q_proj", b"q_proz"),
        (ADAPTER, "adapter_model.safetensors", b"lora_A", b"lora_C"),
        (ADAPTER, "chat_template.jinja", b"in messages", b"in messagds"),
        (BASE, "chat_template.jinja", b"<|vision_start|>", b"<|wision_start|>"),
        (ADAPTER, "tokenizer_config.json", b'"eos_token"', b'"eor_token"'),
        (BASE, "config.json", b'"model_type": "qwen2_vl",', b'"modem_type": "qwen2_vl",'),
        (BASE, "config.json", b'"hidden_act": "silu"', b'"hidden_act": "sihu"'),
        (BASE, "config.json", b'"num_hidden_layers": 2', b'"num_hidden_layers": 3'),
        (BASE, "generation_config.json", b'"eos_token_id"', b'"eor_token_id"'),
        (BASE, "model.safetensors", b"q_proj.weight", b"q_prnj.weight"),
        (BASE, "model.safetensors", b'"F32"', b'"F33"'),
        (BASE, "preprocessor_config.json", b'"image_mean"', b'"image_meao"'),
    ],
)
def test_one_flipped_bit_is_named(
    kind: str, name: str, before: bytes, after: bytes, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folders.root / kind / name).read_bytes()
    assert before in whole
    refused(folders.broken(kind, name, whole.replace(before, after, 1)), name, capsys)


@pytest.mark.parametrize(("kind", "name"), [(ADAPTER, "adapter_config.json"), (BASE, "config.json")])
def test_no_flipped_bit_is_an_error_of_ours(
    kind: str, name: str, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is: the file is named, or its meaning is one that another value could have had."""
    whole = (folders.root / kind / name).read_bytes()
    places = random.Random(name)
    for _ in range(8):
        changed = bytearray(whole)
        changed[places.randrange(len(whole))] ^= 1 << places.randrange(7)
        broken = folders.broken(kind, name, bytes(changed))
        code, said = asked(broken, capsys)
        assert code in (0, 1), said
        assert code == 0 or name in said


def test_an_index_and_its_files(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    sharded = folders.root / "sharded"
    shutil.copytree(folders.root / BASE, sharded)
    (sharded / "model.safetensors").unlink()
    load_plainly(folders.root / BASE)[1].save_pretrained(sharded, max_shard_size="150KB")
    index = "model.safetensors.index.json"
    text = (sharded / index).read_bytes()
    shard = sorted(set(json.loads(text)["weight_map"].values()))[1]
    weights = (sharded / shard).read_bytes()
    refused(folders.broken("sharded", shard, None), shard, capsys)
    refused(folders.broken("sharded", shard, weights[: len(weights) // 2]), shard, capsys)
    refused(folders.broken("sharded", shard, weights.replace(b"weight", b"wehght", 1)), shard, capsys)
    for content in (b"", text[: len(text) // 2], text.replace(b'"weight_map"', b'"weight_mcp"')):
        refused(folders.broken("sharded", index, content), index, capsys)
    refused(folders.broken("sharded", index, text.replace(b".weight", b".wehght", 1)), index, capsys)
    assert asked(folders.broken("sharded", index, text), capsys)[0] == 0


@pytest.mark.parametrize("verb", ["eval", "train"])
def test_other_verbs_name_it_too(
    verb: str, folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders.broken(BASE, "config.json", b'{"model_type": ')
    data = ["--dataset_name", str(folders.root / "data"), "--output_dir", str(tmp_path / "out")]
    assert main([verb, "--model_name_or_path", str(folder), "--use_cpu", "true", *data]) == 1
    assert f"{folder / 'config.json'}: cut off or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in available() if name not in ("paligemma", "phi3_v")])
def test_every_familys_template_writes_a_short_conversation(name: str) -> None:
    processor = build_processor(name)
    ends = frozenset(processor.tokenizer.convert_tokens_to_ids(token) for token in ENDS[name])
    style = style_for(name.partition("-")[0])
    RowEncoder(processor, style, eos_token_ids=ends, max_length=None).check_template()
    processor.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(RenderingError):
        RowEncoder(processor, style, eos_token_ids=ends, max_length=None).check_template()
