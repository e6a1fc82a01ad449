"""Streamed rows: order, bounded buffer, passes, shares of processes, and what is refused."""

from __future__ import annotations

import gc
import logging
import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.datasets import write_chartqa_folder, write_image, write_jsonl
from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.ordering.rows import FillableRows
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.search import SAMPLE
from vlm_lora.data.conversation import Conversation, RowSource
from vlm_lora.data.dataset import ConversationDataset, Splits, load_splits
from vlm_lora.data.sources.streamed import StreamedConversations, shuffled
from vlm_lora.data.sources.streams import RowStream, StreamedRow
from vlm_lora.errors import ConfigError, DataError


def load(name: object, **settings: object) -> Splits:
    config = DataConfig(dataset_name=str(name), streaming=True, **settings)  # type: ignore[arg-type]
    return load_splits(config, need_train=True, need_validation=False)


def streamed(splits: Splits, *, length: int = 24, buffer: int = 4, seed: int = 3) -> StreamedConversations:
    assert splits.stream is not None
    assert isinstance(splits.train, ConversationDataset)
    return StreamedConversations(splits.stream, splits.train, length=length, buffer=buffer, seed=seed)


def said(conversation: Conversation) -> str:
    return conversation.turns[0].text


@pytest.fixture
def ten(tmp_path: Path) -> Splits:
    """Ten rows of text in two files."""
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(10)]
    write_jsonl(tmp_path / "data" / "train-00000-of-00002.jsonl", rows[:6])
    write_jsonl(tmp_path / "data" / "train-00001-of-00002.jsonl", rows[6:])
    return load(tmp_path / "data")


def test_a_buffer_of_one_keeps_the_order_and_a_larger_one_does_not() -> None:
    assert list(shuffled(range(20), size=1, seed="1")) == list(range(20))
    drawn = list(shuffled(range(20), size=5, seed="1"))
    assert sorted(drawn) == list(range(20))
    assert drawn != list(range(20))
    assert drawn == list(shuffled(range(20), size=5, seed="1"))
    assert drawn != list(shuffled(range(20), size=5, seed="2"))
    # A row comes at most as much too early as the buffer is large.
    assert all(value - place <= 5 for place, value in enumerate(drawn))


def test_each_pass_has_every_row_once_in_an_order_of_its_own(ten: Splits) -> None:
    rows = streamed(ten, length=30)
    passes = [[said(rows[10 * n + place]) for place in range(10)] for n in range(3)]
    assert all(sorted(one) == [f"q{n}" for n in range(10)] for one in passes)
    assert passes[0] != passes[1] != passes[2]
    again = streamed(ten, length=30)
    assert [said(again[place]) for place in range(30)] == [text for one in passes for text in one]
    other = streamed(ten, length=30, seed=4)
    assert [said(other[place]) for place in range(30)] != [text for one in passes for text in one]


def test_files_and_rows_are_named(ten: Splits) -> None:
    rows = streamed(ten, buffer=1)
    assert (rows[7].source.row, Path(rows[7].source.file).name) == (1, "train-00001-of-00002.jsonl")
    assert isinstance(ten.train, ConversationDataset)
    assert ten.train.source(7) == rows[7].source


TEXTS = [{"question": f"q{n}", "answer": "a", "scan": None} for n in range(SAMPLE)]


@pytest.mark.parametrize(
    ("late", "settings", "role"),
    [
        ({"images": ["a.png"]}, {}, "image"),
        ({"Messages": [{"role": "user", "content": "q"}]}, {}, "messages"),
        ({"images": ["a.png"]}, {"prompt_column": "question", "response_column": "answer"}, "image"),
        # Controls: nothing that the same rows without streaming would use.
        ({"images": None}, {}, None),
        ({"images": []}, {}, None),
        ({"id": 7}, {}, None),
        ({"messages": "m", "caption": "c"}, {"prompt_column": "question", "response_column": "answer"}, None),
        ({"image_path": "a.png"}, {"image_column": "scan"}, None),
    ],
)
def test_a_column_of_a_known_name_that_comes_too_late_stops_the_run(
    tmp_path: Path, late: dict[str, object], settings: dict[str, object], role: str | None
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*TEXTS, {**TEXTS[0], **late}])
    rows = streamed(load(path, **settings), length=SAMPLE + 1, buffer=1)
    assert rows[SAMPLE - 1].turns
    if role is None:
        assert rows[SAMPLE].turns
        return
    named = f"the column '{next(iter(late))}' may be the {role}"
    with pytest.raises(DataError, match=rf"rows\.jsonl row 100: {named}, .*first 100 rows.*--streaming false"):
        rows[SAMPLE]
    # Among the first rows it is no surprise.
    write_jsonl(path, [{**TEXTS[0], **dict.fromkeys(late)}, *TEXTS])
    assert streamed(load(path, **settings), length=2, buffer=1)[1].turns


CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAGE = {"lines": [{"text": "l", "bbox": [0, 0, 1, 1]}]}


@pytest.mark.parametrize(
    ("first", "late", "said"),
    [
        (
            {"question": "q", "answer": "a"},
            {"images": ["0.png"]},
            "If it is not meant, type --ignore_columns images",
        ),
        ({"image": "0.png", "query": "q", "label": "a"}, {"img": "0.png"}, "type --ignore_columns img"),
        (
            {"image": "0.png", "query": "q", "label": "a"},
            {"image_2": "0.png"},
            "'image_2' may hold a further image.*type --ignore_columns image_2",
        ),
        ({"image": "0.png", "query": "q", "label": "a"}, {"question": "r"}, "type --ignore_columns question"),
        (
            {"image": "0.png", "input": "q", "label": "a"},
            {"question": "r"},
            "may be the prompt.*--ignore_columns question",
        ),
        ({"image": "0.png", "query": "q", "label": "a"}, {"text": PAGE}, "be the page.*type --ignore_columns text"),
        ({"shot": "0.png", "query": "q", "label": "a"}, {"filename": "0.png"}, "type --ignore_columns filename"),
        ({"image": "0.png", **CHAT}, {"chat": CHAT["messages"]}, "be the messages.*type --ignore_columns chat"),
        (CHAT, {"images": ["0.png"]}, "If it is not meant, type --ignore_columns images"),
        (
            {"instruction": "q", "output": "a"},
            {"input": "more"},
            "'input' may continue the prompt 'instruction'.*not meant, type --ignore_columns input",
        ),
        (
            {"image": "0.png", "question": "q", "answer": "a"},
            {"hint": "h"},
            "'hint' may continue the prompt 'question'.*not meant, type --ignore_columns hint",
        ),
        ({"image": "0.png", "query": "q", "label": "a"}, {"hint": "h"}, "'hint' .'h'. would not be read"),
        ({"image": "0.png", "caption": "a"}, {"question": "q"}, "If it is not meant, type --ignore_columns question"),
        # What the same rows without streaming do not read either.
        (
            {"image": "0.png", "query": "q", "label": "a"},
            {"filename": "x.png", "caption": "c", "input": "i"},
            "'caption' .'c'., 'input' .'i'. would not be read .*type --ignore_columns caption input to",
        ),
        (
            {"image": "0.png", "query": "q", "label": "a"},
            {"text": "plain", "objects": 5, "chat": "c"},
            "would not be read .*type --ignore_columns text objects chat to",
        ),
        ({"image": "0.png", **CHAT}, {"answer": "a"}, "'answer' .'a'. would not be read .*--ignore_columns answer"),
        # Controls: what holds nothing to learn.
        ({"image": "0.png", "query": "q", "label": "a"}, {"filename": "x.png", "width": 5, "caption": None}, None),
        ({"image": "0.png", "text": PAGE}, {"page_id": "a", "ocr": ""}, None),
    ],
)
def test_late_columns_stop_the_run_only_where_they_would_change_the_reading_and_the_cure_helps(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    first: dict[str, object],
    late: dict[str, object],
    said: str | None,
) -> None:
    write_image(tmp_path / "0.png", seed=0)
    path = write_jsonl(tmp_path / "rows.jsonl", [*[first] * SAMPLE, {**first, **late}, {**first, **late}])
    splits = load(path)
    warned = len(caplog.records)
    rows = streamed(splits, length=SAMPLE + 2, buffer=1)
    if said is None:
        assert rows[SAMPLE].turns[-1] == rows[SAMPLE - 1].turns[-1] == rows[SAMPLE + 1].turns[-1]
        assert len(caplog.records) == warned, "nothing is warned of twice"
    else:
        with pytest.raises(DataError, match=said) as caught:
            rows[SAMPLE]
        assert len(caplog.records) == warned
        typed = re.search(r"--ignore_columns ([\w ]+?)(?: to|[.])", str(caught.value))
        assert typed
        again = streamed(load(path, ignore_columns=tuple(typed[1].split())), length=SAMPLE + 1, buffer=1)
        assert again[SAMPLE].turns == rows[SAMPLE - 1].turns


def global_batches(splits: Splits, processes: int, *, batch: int = 4) -> list[list[str]]:
    """Return what the processes read of each step, together; each has a stream of its own."""
    size = batch // processes
    ranks = [FillableRows(streamed(splits)) for _ in range(processes)]
    assert all(rows.in_order for rows in ranks)
    order = list(BatchOrder([range(24)], batch_size=size, processes=processes, seed=None))
    steps = [order[start : start + batch] for start in range(0, len(order), batch)]
    found = []
    for step in steps:
        texts = []
        for rank, rows in enumerate(ranks):
            for index in step[rank * size : (rank + 1) * size]:
                row = rows[index]
                assert isinstance(row, Conversation)
                texts.append(said(row))
        found.append(texts)
    return found


def test_global_batches_are_the_same_on_any_number_of_processes(ten: Splits) -> None:
    one = global_batches(ten, 1)
    assert len(one) == 6
    assert len({text for step in one for text in step}) == 10
    assert global_batches(ten, 2) == one
    assert global_batches(ten, 4) == one
    # The control: two processes that read the same numbers would see other batches.
    assert global_batches(ten, 2, batch=2) != one


def test_a_later_number_is_what_it_would_have_been(ten: Splits) -> None:
    whole = streamed(ten)
    texts = [said(whole[place]) for place in range(24)]
    resumed = streamed(ten)
    assert [said(resumed[place]) for place in range(13, 24)] == texts[13:]
    assert said(resumed[2]) == texts[2], "going back begins anew"
    copied = pickle.loads(pickle.dumps(resumed))
    assert said(copied[3]) == texts[3]


class Endless:
    """A stream without end that knows which of its rows are alive."""

    name = "endless"
    config = DataConfig()

    def __init__(self) -> None:
        self.made = 0
        self.alive: weakref.WeakSet[StreamedRow] = weakref.WeakSet()
        self.most = 0

    def __iter__(self) -> Iterator[StreamedRow]:
        while True:
            row = _Row(number=self.made)
            self.made += 1
            self.alive.add(row)
            self.most = max(self.most, len(self.alive))
            yield row
            del row


class _Row(StreamedRow):
    """Compared by identity, so that the set can hold it."""

    __hash__ = object.__hash__

    def __init__(self, *, number: int) -> None:
        values = {"question": f"q{number}", "answer": "a"}
        super().__init__(values=values, source=RowSource(file="endless", row=number), folder=None, number=number)


def test_no_more_rows_are_alive_than_the_buffer_holds(ten: Splits) -> None:
    assert isinstance(ten.train, ConversationDataset)
    endless = Endless()
    rows = StreamedConversations(endless, ten.train, length=10_000, buffer=50, seed=0)  # type: ignore[arg-type]
    gc.collect()
    for place in range(0, 2000, 3):
        rows[place]
    assert endless.made == pytest.approx(2000, abs=60)
    assert 50 <= endless.most <= 52, "the buffer, the row that was read and the row that was handed on"
    # The control: whoever keeps rows is found out.
    kept = Endless()
    held = list(islice(kept, 200))
    assert kept.most == len(held) == 200


def test_parquet_is_read_undecoded_and_images_are_bytes(tmp_path: Path) -> None:
    folder = write_chartqa_folder(tmp_path / "charts", train=5, val=2, test=0, seed=1)
    splits = load(folder)
    streamed_rows = streamed(splits, length=5, buffer=1)
    plain = load_splits(
        DataConfig(dataset_name=str(folder), validation_fraction=0), need_train=True, need_validation=False
    )
    assert isinstance(plain.train, ConversationDataset)
    for place in range(5):
        assert streamed_rows[place] == plain.train[place]
    assert isinstance(streamed_rows[0].images[0].source, bytes)


def test_a_hub_data_set_is_read_through_the_streaming_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's layout in a folder, which `datasets` opens by the same call."""
    import datasets

    folder = write_chartqa_folder(tmp_path / "charts", train=5, val=2, test=0, seed=1)
    load_dataset = datasets.load_dataset
    asked: list[tuple[str, bool]] = []

    def local(name: str, config: str | None, *, streaming: bool) -> object:
        asked.append((name, streaming))
        return load_dataset(str(folder), config, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    rows = streamed(load("someone/charts"), length=10, buffer=1)
    assert asked == [("someone/charts", True)]
    assert str(rows[7].source) == "someone/charts [train] row 2"
    assert rows[7].turns == rows[2].turns
    assert rows[7].turns != rows[3].turns


def test_dates_stay_text(tmp_path: Path) -> None:
    """`datasets` would make dates of them."""
    rows = [{"question": "When?", "answer": "2024-01-01"}]
    data = streamed(load(write_jsonl(tmp_path / "train.jsonl", rows)), length=1)
    assert data[0].turns[1].text == "2024-01-01"


def test_only_the_first_rows_are_read_before_training(tmp_path: Path) -> None:
    """A line that is no JSON is found where the stream comes to it, by file and line."""
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": f"q{n}", "answer": "a"} for n in range(150)])
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    splits = load(path)
    assert splits.train is not None
    assert len(splits.train) == 100
    rows = streamed(splits, length=151, buffer=1)
    assert said(rows[140]) == "q140"
    with pytest.raises(DataError, match=r"train\.jsonl line 151: not JSON"):
        rows[150]


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "a" if n != 120 else None} for n in range(130)]
    data = streamed(load(write_jsonl(tmp_path / "train.jsonl", rows)), length=130, buffer=1)
    with pytest.raises(DataError, match=r"train\.jsonl row 120"):
        data[120]


def test_the_first_rows_alone_where_so_many_were_asked_for(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": f"q{n}", "answer": "a"} for n in range(9)])
    rows = streamed(load(path, max_train_samples=3), length=6, buffer=1)
    assert [said(rows[place]) for place in range(6)] == ["q0", "q1", "q2"] * 2


def test_images_lie_beside_each_file(tmp_path: Path) -> None:
    write_image(tmp_path / "data" / "a.png", seed=1)
    path = write_jsonl(tmp_path / "data" / "train.jsonl", [{"image": "a.png", "question": "q", "answer": "a"}])
    data = streamed(load(path), length=1)
    assert data[0].images[0].source == (tmp_path / "data" / "a.png").resolve()


def test_a_saved_folder_and_csv_are_read_as_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "train.csv"
    path.write_text("question,answer\nq,a\nr,b\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        splits = load(path, validation_fraction=0)
    assert splits.stream is None
    assert splits.train is not None
    assert len(splits.train) == 2
    assert "--streaming true has no effect on" in caplog.text


def test_what_does_not_go_with_a_stream_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": "q", "answer": "a"}] * 3)
    config = DataConfig(dataset_name=str(path), streaming=True)
    with pytest.raises(ConfigError, match="--validation_name with other data, or --do_eval false"):
        load_splits(config, need_train=True, need_validation=True)
    with pytest.raises(ConfigError, match="one data set"):
        load(path, dataset_weights=(2.0,))
    with pytest.raises(ConfigError, match="--on_bad_sample skip does not go with --streaming"):
        DataConfig(streaming=True, on_bad_sample="skip")
    with pytest.raises(ConfigError, match="--shuffle_buffer 0"):
        DataConfig(shuffle_buffer=0)
    write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="no rows"):
        load(tmp_path / "empty.jsonl")


def test_a_stream_that_loses_its_rows_says_so(ten: Splits) -> None:
    assert isinstance(ten.train, ConversationDataset)
    nothing = RowStream(name="gone", stretches=())
    with pytest.raises(DataError, match="gone: the stream has no rows"):
        StreamedConversations(nothing, ten.train, length=4, buffer=2, seed=0)[0]


ENDING = """
import sys, datasets
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.sources import streams
from vlm_lora.data.dataset import load_splits
load = datasets.load_dataset
datasets.load_dataset = lambda name, config, streaming: load(sys.argv[1], config, streaming=streaming)
load_splits(DataConfig(dataset_name="o/x", streaming=True), need_train=True, need_validation=False)
print("read", streams._settle_at_exit.cache_info().currsize)
"""


def test_a_process_that_left_a_hub_stream_early_ends(tmp_path: Path) -> None:
    """Arrow still reads ahead then; without the wait at exit the process hung in five runs of six."""
    rows = [{"question": "q" * 50_000 + str(n), "answer": "a"} for n in range(2000)]
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "data" / "train.parquet", row_group_size=100, compression="none")
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(tmp_path / "data")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["read", "1"]
