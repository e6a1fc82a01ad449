"""The manifest of what several ranks saved, in one folder or one a machine, and the choice that they make together."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora.model import hashing
from vlm_lora.model.hashing import known_hash, sha256_of
from vlm_lora.model.manifest import FileEntry, Manifest, State, entries_of, examine, read_manifest, write_manifest
from vlm_lora.training.checkpoints import choosing, sealing, shared_folder
from vlm_lora.training.checkpoints.choosing import Views, find_checkpoint
from vlm_lora.training.checkpoints.sealing import begin_checkpoint, owner_of, seal_checkpoint
from vlm_lora.training.checkpoints.shared_folder import check_machines


class Table:
    """Where ranks that are threads meet, as processes do at their store."""

    def __init__(self, ranks: int) -> None:
        self._here = threading.Barrier(ranks, timeout=20)
        self._texts: list[str] = [""] * ranks
        self._message = ""

    def __call__(self, rank: int, ranks: int, timeout: object, connection: object = None) -> Any:
        def message(own: str, compose: Callable[[Sequence[str]], str]) -> str:
            self._texts[rank] = own
            self._here.wait()
            if rank == 0:
                self._message = compose(list(self._texts))
            self._here.wait()
            heard = self._message
            self._here.wait()
            return heard

        return SimpleNamespace(message=message)


def on_ranks(ranks: int, run: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what `run` returns, or raises, on each rank."""
    table = Table(ranks)
    for module in (choosing, sealing, shared_folder):
        monkeypatch.setattr(module, "Meeting", table)
    found: list[Any] = [None] * ranks

    def one(rank: int) -> None:
        try:
            found[rank] = run(rank)
        except ConfigError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def arguments(rank: int, *, ranks: int = 4, machines: int = 1) -> Any:
    local = rank % (ranks // machines)
    return SimpleNamespace(
        process_index=rank,
        local_process_index=local,
        world_size=ranks,
        save_on_each_node=machines > 1,
        should_save=local == 0 and (machines > 1 or rank == 0),
        ddp_timeout=20,
        save_strategy="steps",
    )


NAMES = {
    "rng_state_3.pth": 3,
    "adapter_model.safetensors": 0,
    "model-00002-of-00003.safetensors": 0,
    "mp_rank_00_model_states.pt": 0,
    "zero_pp_rank_2_mp_rank_00_model_states.pt": 2,
    "bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt": 12,
    "__1_0.distcp": 1,
    ".metadata": 0,
    "pytorch_model_fsdp_rank1.bin": 1,
}


def test_whose_a_file_is() -> None:
    assert {name: owner_of(Path("checkpoint-1") / name) for name in NAMES} == NAMES


def write_part(folder: Path, rank: int, *, saves: bool) -> None:
    (folder / "global_step5").mkdir(parents=True, exist_ok=True)
    (folder / "global_step5" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(bytes([rank]) * 100)
    (folder / f"rng_state_{rank}.pth").write_bytes(b"r")
    if saves:
        for name in ("adapter_model.safetensors", "latest", "README.md"):
            (folder / name).write_bytes(b"weights")
        (folder / "trainer_state.json").write_text('{"global_step": 5}')


def test_ranks_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank reads its own files and no other's; the manifest is there once all go on."""
    folder = tmp_path / "checkpoint-5"
    read: list[tuple[int, str]] = []

    def watched(place: Path, paths: Sequence[Path], *, rank: int = 0) -> dict[str, FileEntry]:
        wanted = list(paths)
        read.extend((rank, path.name) for path in wanted)
        return entries_of(place, wanted, rank=rank)

    monkeypatch.setattr(sealing, "entries_of", watched)
    begin_checkpoint(folder, arguments(0))

    def save(rank: int) -> State:
        write_part(folder, rank, saves=rank == 0)
        seal_checkpoint(folder, arguments(rank))
        return examine(folder).state

    assert on_ranks(4, save, monkeypatch) == [State.WHOLE] * 4
    manifest = read_manifest(folder / "MANIFEST.json")
    assert isinstance(manifest, Manifest)
    assert {name: entry.rank for name, entry in manifest.files.items()} == {
        **{f"global_step5/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": rank for rank in range(4)},
        **{f"rng_state_{rank}.pth": rank for rank in range(4)},
        **dict.fromkeys(("adapter_model.safetensors", "latest", "trainer_state.json"), 0),
    }
    assert manifest.step == 5
    assert all(owner_of(Path(name)) == rank for rank, name in read), "nobody hashes another's files"
    assert len(read) == len(manifest.files)
    (folder / "global_step5" / "zero_pp_rank_2_mp_rank_00_optim_states.pt").write_bytes(b"\2" * 99 + b"\3")
    assert "zero_pp_rank_2" in str(examine(folder))


def test_a_folder_of_each_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two machines of two ranks: the parts are valid together alone, and all ranks choose the same checkpoint."""

    def place(rank: int) -> Path:
        return tmp_path / f"machine-{rank // 2}"

    def save(rank: int) -> None:
        given = arguments(rank, machines=2)
        for step in (4, 5):
            folder = place(rank) / f"checkpoint-{step}"
            if given.should_save:
                begin_checkpoint(folder, given)
            write_part(folder, rank, saves=given.should_save)
            seal_checkpoint(folder, given)

    on_ranks(4, save, monkeypatch)
    assert sorted(path.name for path in tmp_path.glob("*/checkpoint-5/MANIFEST*")) == [
        "MANIFEST-0.json", "MANIFEST-2.json"
    ]  # fmt: skip

    def choose(rank: int) -> str | None:
        found = find_checkpoint(place(rank), "auto", views=Views.of(arguments(rank, machines=2)))
        return None if found is None else Path(found).name

    monkeypatch.setattr(choosing, "missing_parts", lambda _: [])
    assert on_ranks(4, choose, monkeypatch) == ["checkpoint-5"] * 4
    (place(2) / "checkpoint-5" / "rng_state_3.pth").write_bytes(b"s")
    assert on_ranks(4, choose, monkeypatch) == ["checkpoint-4"] * 4
    assert {path.name for path in tmp_path.glob("*/*")} == {"checkpoint-4", "checkpoint-5.damaged"}
    assert "rng_state_3.pth: changed" in caplog.text
    # One machine alone has one part of two.
    assert find_checkpoint(place(0), "auto") is None
    assert "the parts of the machines of ranks 2 are missing" in caplog.text


@pytest.mark.parametrize(
    ("machines", "one_folder", "own_parts", "said"),
    [
        (1, True, False, None),
        (1, True, True, None),
        (2, True, False, None),
        (2, False, True, None),
        (2, False, False, "of rank 0 is not there on the machine of rank 2: each machine has a folder of its own"),
        (2, True, True, "is one folder for the machines of ranks 0, 2, which would write the same files at once"),
    ],
)
def test_machines_have_the_folder_that_their_setting_says(
    machines: int, one_folder: bool, own_parts: bool, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(rank: int) -> None:
        given = arguments(rank, machines=machines)
        given.save_on_each_node = own_parts
        folder = tmp_path / ("one" if one_folder else f"machine-{rank // 2}")
        folder.mkdir(exist_ok=True)
        check_machines(folder, given)

    found = on_ranks(4, check, monkeypatch)
    assert [error is not None and str(said) in str(error) for error in found] == [said is not None] * 4
    assert (said is not None) or found == [None] * 4
    assert list(tmp_path.glob("*/.*")) == [], "nothing is left of the question"


def test_all_ranks_say_what_the_first_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first one looks, so that gigabytes are read once."""
    looked: list[Path] = []

    def look(path: Path, **_: Any) -> choosing.Look:
        looked.append(path)
        return choosing.Look(fate=choosing.Fate.INTERRUPTED)

    def choose(rank: int) -> Any:
        return find_checkpoint(tmp_path, str(tmp_path / "checkpoint-1"), views=Views.of(arguments(rank, ranks=2)))

    monkeypatch.setattr(choosing, "look_at", look)
    said = f"--resume_from_checkpoint {tmp_path / 'checkpoint-1'}: "
    assert [str(error) for error in on_ranks(2, choose, monkeypatch)] == [f"{said}no such folder."] * 2
    (tmp_path / "checkpoint-1").mkdir()
    found = [str(error) for error in on_ranks(2, choose, monkeypatch)]
    assert found[0] == found[1]
    assert found[0].startswith(f"{said}MANIFEST.json, which is written last")
    assert looked == [tmp_path / "checkpoint-1"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 9}', b'{"format": 1, "sha256": ""}'])
def test_a_damaged_manifest_is_named(content: bytes, tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest())
    assert examine(tmp_path).state is State.WHOLE
    (tmp_path / "MANIFEST.json").write_bytes(content)
    verdict = examine(tmp_path)
    assert verdict.state is State.DAMAGED
    assert str(verdict).startswith("MANIFEST.json: ")


def test_a_file_of_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 5
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(hashing, "PART", 500)
    parts = [hashlib.sha256(content[start : start + 500]).digest() for start in (0, 500, 1000)]
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_large_file_is_read_once_for_its_size_time_and_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "LARGE", 10)
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights of a model")
    expected = sha256_of(file)
    assert known_hash(file) == expected
    read: list[Path] = []

    def watched(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(hashing, "sha256_of", watched)
    hashing._known.clear()  # another process
    assert known_hash(file) == expected
    assert read == []
    shutil.copy(file, tmp_path / "copy")
    (tmp_path / "copy").replace(file)
    hashing._known.clear()
    assert known_hash(file) == expected
    assert read == [file], "another inode"
