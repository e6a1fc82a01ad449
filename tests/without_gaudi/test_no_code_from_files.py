"""Files that would run code when they are unpickled or imported: in data, model folders and checkpoints none does."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from support.sealed import seal_again
from vlm_lora.cli.main import main, run_script
from vlm_lora.compat import RUNS_LOCAL_GENERATE
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import ConfigError, DataError, ImageError
from vlm_lora.training.checkpoints.pickles import names_in, refuse_programs

MARKER = Path("it_ran")
"""In the test's own working folder."""
CODE = f"open({str(MARKER)!r}, 'w').close()"


class Program:
    """Runs `CODE` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CODE,)


def saved(content: object = None, *, legacy: bool = False) -> bytes:
    """Return what torch.save writes, by default of a program among tensors."""
    content = {"state": {0: torch.ones(2)}, "program": Program()} if content is None else content
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not MARKER.exists(), "the code ran"


def test_the_program_would_run() -> None:
    """The control: loaded as it is, each of these does run."""
    loads: list[Callable[[], object]] = [
        lambda: pickle.loads(pickle.dumps(Program())),
        lambda: torch.load(io.BytesIO(saved()), weights_only=False),
        lambda: torch.load(io.BytesIO(saved(legacy=True)), weights_only=False),
        lambda: np.load(io.BytesIO(array_file()), allow_pickle=True),
    ]
    for load in loads:
        load()
        assert MARKER.exists()
        MARKER.unlink()


def array_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Program()], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.fixture(scope="module")
def trained(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and the run `out`, which has checkpoints. Copy it before changing it."""
    root = tmp_path_factory.mktemp("trained")
    data = write_uneven_rows(root / "data", rows=4)
    run(model_folder("gemma3"), data, root / "out", do_train=True, max_steps=2, save_strategy="steps", save_steps=1)
    return root


def resume(model: Path, root: Path, checkpoint: Path, *, steps: int = 2) -> int:
    flags = {"do_train": True, "max_steps": steps, "resume_from_checkpoint": checkpoint}
    return run_script(script_flags(model, root / "data", checkpoint.parent, **flags))


FILES: dict[str, Callable[[], bytes]] = {
    "optimizer.pt": saved,
    "scheduler.pt": saved,
    "rng_state.pth": saved,
    "scaler.pt": saved,
    "pytorch_model.bin": saved,
    "global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt": saved,
    "global_step1/mp_rank_00_model_states.pt": lambda: saved(legacy=True),
    "pytorch_model_fsdp_0/.metadata": lambda: pickle.dumps(Program()),
    "optimizer_0/__0_0.distcp": saved,
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_checkpoint_with_a_program_is_refused(
    name: str, trained: Path, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-1"
    shutil.copytree(trained / "out", tmp_path / "out")
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(FILES[name]())
    seal_again(checkpoint)
    assert resume(model_folder("gemma3"), trained, checkpoint) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --resume_from_checkpoint")
    assert str(checkpoint / name) in said
    assert "Traceback" not in said


def test_what_is_never_loaded_is_never_run(trained: Path, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-1"
    shutil.copytree(trained / "out", tmp_path / "out")
    (checkpoint / "training_args.bin").write_bytes(saved())
    (checkpoint / "setup.py").write_text(CODE, encoding="utf-8")
    (checkpoint / "notes.pkl").write_bytes(pickle.dumps(Program()))
    seal_again(checkpoint)
    assert resume(model_folder("gemma3"), trained, checkpoint, steps=3) == 0


# What DeepSpeed and the trainer write holds these and no more.
GOOD = {
    "tensors": lambda: {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.nn.Parameter(torch.zeros(2))},
    "numbers": lambda: {"epoch": 1.5, "names": {"a", "b"}, "size": torch.Size([2]), "dtype": torch.float16},
    "random state": lambda: {"numpy": np.random.default_rng(0).bytes(4), "state": np.random.RandomState(0).get_state()},
}


@pytest.mark.parametrize("name", list(GOOD))
def test_tensors_and_numbers_are_let_through(name: str, tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(saved(GOOD[name]()))
    refuse_programs(tmp_path)


def zipped(program: bytes, *more: str) -> bytes:
    """An archive as torch writes it, around a hand-made pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        for record in more:
            archive.writestr(f"archive/{record}", b"N.")
    return stream.getvalue()


PUT_TOGETHER = b"\x80\x04\x8c\x02os" + b"cbuiltins\nstr\n(S'system'\ntR" + b"\x93(S'true'\ntR."
HIDDEN = {
    "protocol 0": zipped(b"cos\nsystem\n(S'true'\ntR."),
    "protocol 4": zipped(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."),
    "instance": zipped(b"(S'true'\nios\nsystem\n."),
    "name put together by a call": zipped(PUT_TOGETHER),
    "attribute of what is allowed": zipped(b"\x80\x04\x8c\x05torch\x8c\x10os.system.Tensor\x93."),
    "harmless beginning": zipped(b"ctorch\nTensor.mro\n(tR."),
    "loads another pickle": zipped(b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR."),
    "legacy with an archive behind it": pickle.dumps(Program()) + zipped(b"N."),
    "no archive": pickle.dumps({"a": 1}),
    "cut off": saved()[:200],
    "empty": b"",
    "TorchScript": zipped(b"N.", "constants.pkl"),
}


@pytest.mark.parametrize("name", list(HIDDEN))
def test_hidden_names_are_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(HIDDEN[name])
    with pytest.raises(ConfigError, match=r"optimizer\.pt (holds more than tensors|is damaged)"):
        refuse_programs(tmp_path)
    # The control: the same archive around nothing is let through.
    (tmp_path / "optimizer.pt").write_bytes(zipped(b"N."))
    refuse_programs(tmp_path)


def test_names_are_those_that_were_written() -> None:
    assert names_in(io.BytesIO(saved())) >= {"__builtin__.exec", "torch._utils._rebuild_tensor_v2"}
    assert names_in(io.BytesIO(saved({"a": 1}))) == frozenset()


def test_a_tag_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step2\n", encoding="utf-8")
    refuse_programs(tmp_path)
    for tag in ("../other/global_step2", "/tmp/x", "..", ""):
        (tmp_path / "latest").write_text(tag, encoding="utf-8")
        with pytest.raises(ConfigError, match="names no folder of this checkpoint"):
            refuse_programs(tmp_path)


def ask(model: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    words = ["ask", "--model_name_or_path", str(model), "--prompt", "Hi", "--use_cpu", "true", "--max_new_tokens", "1"]
    return main(words), capsys.readouterr().err


def test_weights_with_a_program_are_refused(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for legacy in (False, True):
        model = tmp_path / f"model-{legacy}"
        shutil.copytree(model_folder("gemma3"), model)
        (model / "model.safetensors").unlink()
        (model / "pytorch_model.bin").write_bytes(saved(legacy=legacy))
        code, said = ask(model, capsys)
        assert (code, "holds more than weights" in said, "Traceback" in said) == (1, True, False), said


def test_an_adapter_with_a_program_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "out", adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(saved())
    seal_again(adapter)
    code, said = ask(adapter, capsys)
    assert (code, "holds more than weights" in said, "Traceback" in said) == (1, True, False), said


def test_an_adapter_that_names_a_module_to_import_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "imported_by_name.py").write_text(CODE, encoding="utf-8")
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "out", adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings |= {"megatron_core": "imported_by_name", "megatron_config": {"a": 1}}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    seal_again(adapter)
    code, said = ask(adapter, capsys)
    assert (code, "megatron_config" in said, "Traceback" in said) == (1, True, False), said


def test_code_beside_a_model_is_not_run_unless_asked_for(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder("gemma3"), model)
    module = f"{CODE}\nclass Evil: pass\n"
    for name in ("evil.py", "setup.py", "conftest.py", "sitecustomize.py"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(module, encoding="utf-8")
    for name in ("model.pkl", "optimizer.pt", "training_args.bin", "tokenizer.pkl"):
        (model / name).write_bytes(saved() if name != "model.pkl" else pickle.dumps(Program()))
    kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer")
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        place = model / name
        settings = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
        named = {kind: ["evil.Evil", "evil.Evil"] if kind == "AutoTokenizer" else "evil.Evil" for kind in kinds}
        place.write_text(json.dumps({**settings, "auto_map": named}), encoding="utf-8")
    code, said = ask(model, capsys)
    # Known families have classes of transformers' own, so the model works without the code that it brings.
    assert code == 0, said


def test_code_that_generates_is_not_run_unless_asked_for(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers 4.55 runs it unasked, so there the folder is refused; 5.x leaves it alone."""
    model = tmp_path / "model"
    shutil.copytree(model_folder("gemma3"), model)
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(CODE, encoding="utf-8")
    code, said = ask(model, capsys)
    if RUNS_LOCAL_GENERATE:
        assert (code, "custom_generate/generate.py in it is Python code" in said) == (1, True), said
    else:
        assert code == 0, said


def table() -> pa.Table:
    return pa.table({"question": ["What?"] * 3, "answer": ["Red."] * 3})


def rows(path: Path, **settings: Any) -> list[Any]:
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, **settings)
    data = load_splits(config, need_train=True, need_validation=False).train
    assert data is not None
    return [data[index] for index in range(len(data))]


@pytest.mark.parametrize("name", ["train.pkl", "train.npy", "train.pt", "train.py", "train.bin"])
def test_pickles_and_scripts_are_no_data(name: str, tmp_path: Path) -> None:
    content = {"train.npy": array_file(), "train.py": CODE.encode(), "train.pkl": pickle.dumps(Program())}
    (tmp_path / name).write_bytes(content.get(name, saved()))
    with pytest.raises(DataError, match=r"are not read|this is a pickle by its name"):
        rows(tmp_path / name)


def test_pickles_in_the_metadata_of_tables_stay_bytes(tmp_path: Path) -> None:
    program = pickle.dumps(Program())
    pandas = json.dumps({"index_columns": [], "columns": [{"name": "question", "metadata": program.decode("latin-1")}]})
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": program}
    fields = [pa.field("question", pa.string(), metadata=extension), pa.field("answer", pa.string())]
    hostile = table().cast(pa.schema(fields, metadata={b"pandas": pandas.encode(), b"huggingface": b'{"info": {}}'}))
    pq.write_table(hostile, tmp_path / "train.parquet")
    with pa.OSFile(str(tmp_path / "train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, hostile.schema) as writer:
        writer.write_table(hostile)
    for name in ("train.parquet", "train.arrow"):
        assert [row.turns[0].text for row in rows(tmp_path / name)] == ["What?"] * 3


def test_a_script_beside_the_data_is_not_run(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "shapes.py").write_text(CODE, encoding="utf-8")
    (folder / "dataset_infos.json").write_text(json.dumps({"default": {"builder_name": "shapes"}}), encoding="utf-8")
    pq.write_table(table(), folder / "train.parquet")
    assert len(rows(folder)) == 3
    datasets.Dataset(table()).save_to_disk(str(tmp_path / "on_disk"))
    (tmp_path / "on_disk" / "on_disk.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "on_disk" / "extra.pkl").write_bytes(pickle.dumps(Program()))
    assert len(rows(tmp_path / "on_disk")) == 3


@pytest.mark.parametrize(
    "encoded",
    [pickle.dumps(Program()), array_file(), saved(), saved(legacy=True)],
    ids=["pickle", "numpy", "torch", "old torch"],
)
def test_a_pickle_in_the_place_of_an_image_is_refused(encoded: bytes, tmp_path: Path) -> None:
    from vlm_lora.data.images.loader import ImageLimits, load_image

    (tmp_path / "a.png").write_bytes(encoded)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    row = {"image": "a.png", "question": "What?", "answer": "Red."}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ImageError, match="not a readable image"):
        load_image(rows(tmp_path / "train.jsonl")[0].images[0].source, limits=ImageLimits())
