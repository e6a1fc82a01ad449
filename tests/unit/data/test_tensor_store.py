"""The store of tensors: an entry is whole or not there, whoever writes and however writing ends."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_lora.batching.prepared.store import TensorStore, _Writer

KEY, OTHER = "a" * 64, "b" * 64
KINDS = {
    "bytes": torch.arange(300, dtype=torch.uint8).reshape(3, 100),
    "floats": torch.linspace(-1, 1, 50).reshape(2, 5, 5),
    "brain": torch.linspace(-3, 3, 33).to(torch.bfloat16),
    "numbers": torch.tensor([[1, 24, 36]]),
    "one": torch.tensor(2.5, dtype=torch.float64),
    "none": torch.empty(0, 4),
    "flags": torch.tensor([True, False]),
    "turned": torch.arange(12).reshape(3, 4).T,
}


def put_and_end(folder: Path, keys: list[str]) -> None:
    """Put entries in a process of its own."""
    store = TensorStore(folder)
    for number, key in enumerate(keys):
        store.put(key, {"x": torch.full((1000,), number)})


def put_until_killed(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    """Put one entry; then be killed while the bytes of the next one are on their way to the file."""
    store = TensorStore(folder)
    store.put(KEY, {"x": torch.arange(1000)})
    append = _Writer.append

    def half(self: _Writer, piece: Any) -> None:
        append(self, memoryview(piece)[: len(piece) // 2])
        ready.set()
        signal.pause()

    _Writer.append = half  # type: ignore[method-assign]
    store.put(OTHER, {"x": torch.arange(100_000)})


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    TensorStore(tmp_path / "new").put(KEY, KINDS)

    store = TensorStore(tmp_path / "new")
    found = store.get(KEY)

    assert found is not None
    assert list(found) == list(KINDS)
    for name, tensor in KINDS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)
    assert store.get(OTHER) is None
    assert (store.statistics.hits, store.statistics.misses) == (1, 1)
    assert KEY in store
    assert OTHER not in store


def test_an_entry_is_written_once_and_read_as_soon_as_it_is_put(tmp_path: Path) -> None:
    writer, reader = TensorStore(tmp_path), TensorStore(tmp_path)
    assert reader.get(KEY) is None
    assert writer.put(KEY, {"x": torch.arange(5)})
    found = reader.get(KEY)  # which the index grew by
    assert found is not None
    assert torch.equal(found["x"], torch.arange(5))
    size = writer.bytes_on_disk()
    assert writer.put(KEY, {"x": torch.arange(5)})
    assert reader.put(KEY, {"x": torch.arange(5)})
    assert writer.bytes_on_disk() == size
    writer.put(OTHER, {"x": torch.arange(9)})
    grown = reader.get(OTHER)  # which the mapping has to grow for
    assert grown is not None
    assert torch.equal(grown["x"], torch.arange(9))
    assert torch.equal(found["x"], torch.arange(5))


def test_what_is_written_into_a_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    TensorStore(tmp_path).put(KEY, {"x": torch.arange(5)})
    found = TensorStore(tmp_path).get(KEY)
    assert found is not None
    found["x"].zero_()
    again = TensorStore(tmp_path).get(KEY)
    assert again is not None
    assert torch.equal(again["x"], torch.arange(5))


def test_two_processes_write_at_once_into_segments_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    keys = [[f"{number:064x}" for number in range(start, start + 40)] for start in (0, 20)]
    writers = [context.Process(target=put_and_end, args=(tmp_path, mine)) for mine in keys]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    store = TensorStore(tmp_path)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(files(tmp_path, ".tensors")) == 2
    for number in range(60):
        found = store.get(f"{number:064x}")
        assert found is not None
        assert found["x"][0] in (number, number - 20)


def test_a_forked_process_does_not_write_into_its_parents_segment(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.put(KEY, {"x": torch.arange(5)})
    child = os.fork()
    if child == 0:
        os._exit(0 if store.put(OTHER, {"x": torch.arange(6)}) and store.get(KEY) is not None else 1)
    assert os.waitpid(child, 0)[1] == 0
    store.put("c" * 64, {"x": torch.arange(7)})

    assert len(files(tmp_path, ".tensors")) == 2
    fresh = TensorStore(tmp_path)
    for key, length in ((KEY, 5), (OTHER, 6), ("c" * 64, 7)):
        found = fresh.get(key)
        assert found is not None
        assert torch.equal(found["x"], torch.arange(length))


def test_a_writer_that_is_killed_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    writer = context.Process(target=put_until_killed, args=(tmp_path, ready))
    writer.start()
    assert ready.wait(60)
    writer.kill()
    writer.join()
    (segment,) = files(tmp_path, ".tensors")
    assert segment.stat().st_size > 8000 + 300_000  # half of the second entry is there

    store = TensorStore(tmp_path)
    whole = store.get(KEY)
    assert whole is not None
    assert torch.equal(whole["x"], torch.arange(1000))
    assert store.get(OTHER) is None
    assert store.put(OTHER, {"x": torch.arange(100_000)})
    made_again = TensorStore(tmp_path).get(OTHER)
    assert made_again is not None
    assert torch.equal(made_again["x"], torch.arange(100_000))


@pytest.mark.parametrize("cut", [1, 20, -1], ids=["newline", "middle", "all-but-one"])
def test_a_line_that_is_not_whole_is_no_entry(tmp_path: Path, cut: int) -> None:
    TensorStore(tmp_path).put(KEY, {"x": torch.arange(5)})
    (index,) = files(tmp_path, ".index")
    content = index.read_bytes()
    index.write_bytes(content[:-cut])
    reader = TensorStore(tmp_path)
    assert reader.get(KEY) is None
    index.write_bytes(content)  # control: its rest arrives
    assert reader.get(KEY) is not None


def test_a_segment_that_was_cut_holds_what_lies_before_the_cut(tmp_path: Path) -> None:
    writer = TensorStore(tmp_path)
    for key in (KEY, OTHER):
        writer.put(key, {"x": torch.arange(100)})
    (segment,) = files(tmp_path, ".tensors")
    os.truncate(segment, segment.stat().st_size - 1)
    store = TensorStore(tmp_path)
    assert store.get(KEY) is not None
    assert store.get(OTHER) is None


CUT = [({"cut": ".tensors"}, 5), ({"cut": ".tensors", "forked": True}, 5), ({"cut": ".index"}, 0)]


@pytest.mark.parametrize(("how", "damaged"), CUT, ids=["tensors", "tensors, in a worker", "index"])
def test_a_file_that_is_cut_while_it_is_read_makes_misses_and_no_signal(
    how: dict[str, Any], damaged: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [f"{number:064x}" for number in range(5)]
    store = TensorStore(tmp_path)
    for key in keys:
        store.put(key, {"x": torch.full((5000,), 7)})
        assert store.get(key) is not None  # opened, and its checksum was looked at
    (segment,) = files(tmp_path, how["cut"])

    def read_cut() -> list[bool]:
        os.truncate(segment, 0)
        return [store.get(key) is None for key in keys]

    if how.get("forked"):
        child = os.fork()
        if child == 0:
            os._exit(0 if all(read_cut()) else 1)
        assert os.waitpid(child, 0)[1] == 0  # not the signal of a mapped file that was cut
    missing = read_cut()
    assert missing == [damaged > 0] * 5
    # What is put next leaves no hole of zeros where entries were.
    assert store.put(OTHER, {"x": torch.arange(9)})
    assert [store.get(key) is None for key in keys] == missing
    for reader in (store, TensorStore(tmp_path)):
        found = reader.get(OTHER)
        assert found is not None
        assert torch.equal(found["x"], torch.arange(9))
    with caplog.at_level(logging.WARNING):
        store.say_damage()
    assert caplog.text.count("damaged") == (1 if damaged else 0)
    assert not damaged or f"{damaged} damaged entries (" in caplog.text


def test_a_flipped_bit_makes_a_miss_and_another_copy_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    TensorStore(tmp_path).put(KEY, {"x": torch.arange(100), "y": torch.arange(3)})
    (segment,) = files(tmp_path, ".tensors")
    flip(segment, 400)

    store = TensorStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert store.get(KEY) is None
        assert pickle.loads(pickle.dumps(store)).get(KEY) is None  # as a worker finds it
        store.say_damage()
        store.say_damage()
    assert caplog.text.count(f"{tmp_path}: 1 damaged entry (") == 1
    assert store.statistics.damaged == 1
    assert not files(tmp_path, ".damaged")
    assert store.put(KEY, {"x": torch.arange(100), "y": torch.arange(3)})
    found = TensorStore(tmp_path).get(KEY)
    assert found is not None
    assert torch.equal(found["x"], torch.arange(100))

    (index, *_) = files(tmp_path, ".index")
    flip(index, 30)  # a bit of the index: that line is none
    flip(segment, 400)
    again = TensorStore(tmp_path).get(KEY)
    assert again is not None
    assert torch.equal(again["x"], torch.arange(100))


def test_a_full_store_takes_no_more_and_what_nobody_used_makes_room(tmp_path: Path) -> None:
    content = {"x": torch.zeros(10_000, dtype=torch.uint8)}
    for key in (KEY, OTHER):
        TensorStore(tmp_path).put(key, content)
    for index in files(tmp_path, ".index"):
        os.utime(index, (1, 1))
    store = TensorStore(tmp_path, limit=25_000)
    held = store.get(OTHER)
    assert held is not None

    assert store.put("c" * 64, content)  # the other one was not used: it makes room
    assert store.get(KEY) is None
    assert store.get(OTHER) is not None
    assert not store.put("d" * 64, content)
    assert store.statistics.refused == 1

    later = TensorStore(tmp_path, limit=15_000)
    for index in files(tmp_path, ".index"):
        os.utime(index, (1, 1))
    assert later.put("d" * 64, content)
    assert torch.equal(held["x"], content["x"])  # who has it mapped goes on reading
    assert store.get("d" * 64) is not None
    assert TensorStore(tmp_path).get(OTHER) is None


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file")
    store = TensorStore(tmp_path / "taken" / "store")
    with caplog.at_level(logging.WARNING):
        assert not store.put(KEY, KINDS)
        assert not store.put(OTHER, KINDS)
    assert caplog.text.count("cannot be written (") == 1
    assert store.get(KEY) is None


def test_a_full_disk_is_said_once_on_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the first rank's first process: loader workers have copies of its store, other ranks have stores of theirs."""

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vlm_lora.batching.prepared.store._write_whole", full)
    store = TensorStore(tmp_path)
    workers = [pickle.loads(pickle.dumps(store)) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        assert not any(one.put(KEY, KINDS) for one in (*workers, store))
        with monkeypatch.context() as patch:
            patch.setenv("LOCAL_RANK", "1")
            assert not TensorStore(tmp_path).put(KEY, KINDS)
    assert caplog.text.count("(No space left on device): what is made from now on is not kept.") == 1
    store.say_damage()
    assert {path.suffix for path in tmp_path.iterdir()} == {".tensors", ".index"}, "no mark is left"
    with caplog.at_level(logging.WARNING):
        assert not TensorStore(tmp_path).put(KEY, KINDS)
    assert caplog.text.count("No space left on device") == 2, "the control: another run says it again"


def test_it_can_be_handed_to_another_process(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, limit=10**6)
    store.put(KEY, {"x": torch.arange(5)})
    other = pickle.loads(pickle.dumps(store))
    assert (other.folder, other.limit) == (tmp_path, 10**6)
    assert other.get(KEY) is not None
