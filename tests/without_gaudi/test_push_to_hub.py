"""Push: what is refused is one message before anything is read, nothing is lost at the end, and which files arrive."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._paths import filter_repo_objects
from transformers.utils import hub as transformers_hub

import vlm_lora
from support.hub import TOKEN, StandInHub, stand_in_hub
from support.rows import write_uneven_rows
from support.runs import TORCHRUN, run, script_flags
from support.warm import warmed
from vlm_lora.backend import installed
from vlm_lora.cli.main import main
from vlm_lora.training.hub import KEPT_HERE, ROWS

LAUNCHED = Path(__file__).parents[1] / "support" / "launched"
COMMIT = "/api/models/me/x/commit/"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandInHub], None]:
    def use(hub: StandInHub) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.address)
        # transformers keeps the client that its first call has made, whatever test that was in.
        monkeypatch.setattr(transformers_hub, "_hf_api", None)

    return use


@pytest.fixture(scope="module")
def trained(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint and predictions, pushed nowhere."""
    root = tmp_path_factory.mktemp("pushed")
    data = write_uneven_rows(root / "data", rows=2, validation=1)
    flags = {"do_train": True, "do_eval": True, "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run(model_folder("llava"), data, root / "out", **flags, metrics="anls")
    return root / "out"


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "401": ({"refuses": {"/api/whoami": 401}}, r"the Hub does not know the token \(401, .*Type another {token}"),
    "reads": ({"role": "read"}, r"the token may only read\. Type another {token}"),
    "403": ({"refuses": {"/api/repos": 403}}, r"the token may not write to me/x \(403, .*, or another {name}\."),
    "503": ({"refuses": {"/api/whoami": 503}}, r"the Hub fails \(503, .*\. Try again later \("),
    "400": ({"refuses": {"/api/repos": 400}}, r"the Hub refuses to take me/x \(400, .*Another name: {name}\."),
}
PLACES = {
    "push": ("vlm-lora push: ", {"token": "--token", "name": "REPO"}),
    "train": ("--push_to_hub: ", {"token": "--hub_token", "name": "--hub_model_id"}),
}


def refused(verb: str, folder: Path, capsys: pytest.CaptureFixture[str], name: str = "me/x") -> str:
    """Push by a verb; return its one message, behind how it begins."""
    words = ["push", str(folder), name]
    if verb == "train":
        flags: dict[str, object] = {"push_to_hub": True, "hub_model_id": name, "do_train": True, "max_steps": 1}
        words = ["train", *script_flags(Path("no/model"), Path("no-data"), folder / "new", **flags)]
        words[words.index("no/model")] = str(folder)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not (folder / "new").exists()
    begin = f"error: {PLACES[verb][0]}"
    assert said.startswith(begin), said
    assert said.count("error:") == 1
    return said.removeprefix(begin)


@pytest.mark.parametrize("verb", PLACES)
@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_hub_refuses_is_said_before_anything_is_read(
    kind: str, verb: str, trained: Path, at: Callable[[StandInHub], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The training's data are not there, which would be said next."""
    settings, expected = REFUSALS[kind]
    with stand_in_hub(**settings) as hub:
        at(hub)
        assert re.match(expected.format(**PLACES[verb][1]), refused(verb, trained, capsys))
        assert hub.asked
        assert not hub.commits


@pytest.mark.parametrize("verb", PLACES)
def test_no_network_no_token_and_no_name(
    verb: str,
    trained: Path,
    at: Callable[[StandInHub], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stand_in_hub() as hub:
        at(hub)
        said = refused(verb, trained, capsys, "a b/x")
        assert said.startswith("a b/x is no name of a repository (")
        assert f"Type {PLACES[verb][1]['name']} as OWNER/NAME" in said
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
        said = refused(verb, trained, capsys)
        assert said.startswith(f"there is no token to push me/x with. Type {PLACES[verb][1]['token']} with one")
        assert not hub.asked
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = refused(verb, trained, capsys)  # nobody listens there any more
    assert said.startswith(f"the Hub is not reached at {hub.address} (")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(verb, trained, capsys).startswith("me/x cannot be pushed, because HF_HUB_OFFLINE is set.")


def test_what_is_pushed(trained: Path, at: Callable[[StandInHub], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Every file of the model, as it is here; no trainer's state, no rows, no token; rows where they are asked for."""
    with stand_in_hub() as hub:
        at(hub)
        assert main(["push", str(trained), "x", "--hub_token", TOKEN, "--private"]) == 0
        said = capsys.readouterr().out
        size = sum((trained / name).stat().st_size for name in hub.files)
        assert f"files ({size:,} bytes) of {trained} to {hub.address}/me/x\n" in said
        assert "Left here, for they hold rows of the data: predictions.jsonl (--with_rows)" in said
        assert "Its base is a folder here" in said
        assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "run.json"} < set(hub.files)
        assert {"tokenizer.json", "all_results.json", "chat_template.jinja"} < set(hub.files)
        for name, content in hub.files.items():
            assert "/" not in name
            assert content == (trained / name).read_bytes() or name == "README.md"
            assert TOKEN.encode() not in content
        card = hub.files["README.md"].decode()
        assert card.count('from_pretrained(base, "me/x")') == card.count('AutoProcessor.from_pretrained("me/x")') == 1
        assert "--model_name_or_path me/x " in card
        assert card.replace('"me/x"', '"out"').replace(" me/x ", " out ") == (trained / "README.md").read_text()
        left = {path.name for path in trained.iterdir()} - set(hub.files)
        assert left == {"checkpoint-1", "predictions.jsonl", *ALWAYS_LEFT}
        assert hub.tokens >= {f"Bearer {TOKEN}"}

        hub.files.clear()
        assert main(["push", str(trained / "checkpoint-1"), "me/x", "--revision", "step-1"]) == 0
        assert "adapter_model.safetensors" in hub.files
        states = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "MANIFEST.json"}
        assert states <= {path.name for path in (trained / "checkpoint-1").iterdir()}
        assert not states & set(hub.files)
        assert "/api/models/me/x/branch/step-1" in hub.asked
        assert hub.asked[-1] == "/api/models/me/x/commit/step-1"

        hub.files.clear()
        assert main(["push", str(trained), "me/x", "--with_rows", "--commit_message", "All of it"]) == 0
        assert "predictions.jsonl" in hub.files
        assert hub.commits[-1] == "All of it"


ALWAYS_LEFT = ("RUN_STATE.json", "MANIFEST.json", "run_files.json", "training_args.bin")


def test_a_folder_without_a_model_or_with_a_damaged_one_is_no_model_to_push(
    trained: Path, tmp_path: Path, at: Callable[[StandInHub], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_in_hub() as hub:
        at(hub)
        for folder, said in ((tmp_path / "none", "no such folder. The"), (tmp_path, "holds no model: there are no")):
            assert main(["push", str(folder), "me/x"]) == 1
            assert said in capsys.readouterr().err
        assert not hub.asked
        damaged = shutil.copytree(trained, tmp_path / "damaged")
        (damaged / "run_config.yaml").write_text("seed: 1\n")
        assert main(["push", str(damaged), "me/x"]) == 1
        assert "not as its run wrote it (MANIFEST.json): run_config.yaml: " in capsys.readouterr().err
        assert not hub.commits


def test_from_python(trained: Path, at: Callable[[StandInHub], None]) -> None:
    with stand_in_hub() as hub:
        at(hub)
        found = vlm_lora.push(trained, "me/x", token=TOKEN, private=True)
        assert (found.repository, found.commit) == ("me/x", "0123abcd")
        assert set(found.files) == set(hub.files)
        hub.refuses = {"/api/whoami": 401}
        with pytest.raises(
            vlm_lora.UserError, match=r"vlm_lora.push: the Hub does not know the token .* another token="
        ):
            vlm_lora.push(trained, "me/x", token=TOKEN)


def test_of_two_processes_the_first_one_pushes(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """It alone speaks to the Hub, at the start and at the end; what is refused there is said once, and both end."""
    data = write_uneven_rows(tmp_path / "data", rows=2, validation=1)
    flags: dict[str, object] = {"do_train": True, "max_steps": 1, "push_to_hub": True, "hub_model_id": "x"}
    with stand_in_hub({COMMIT: 503}) as hub:
        words = script_flags(model_folder("llava"), data, tmp_path / "out", **flags, ddp_backend="gloo")
        command = warmed([*TORCHRUN[:-1], str(LAUNCHED / "pushes.py"), hub.address, *words])
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert hub.asked.count("/api/whoami-v2") == hub.asked.count(f"{COMMIT}main") == 1
    assert done.stderr.count("error: --push_to_hub: the Hub fails (503, ") == 1
    assert done.stderr.count("Nothing is lost: all of it is in ") == 1
    assert '"state": "done"' in (tmp_path / "out" / "RUN_STATE.json").read_text()


def test_a_push_that_fails_at_the_end_loses_nothing(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    at: Callable[[StandInHub], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was trained is there, and the command of the message brings it; so does the run where the Hub takes it."""
    data, out = write_uneven_rows(tmp_path / "data", rows=2, validation=1), tmp_path / "out"
    flags: dict[str, object] = {"do_train": True, "do_eval": True, "max_steps": 1, "push_to_hub": True}
    words = script_flags(model_folder("llava"), data, out, **flags, hub_model_id="x")
    with stand_in_hub({COMMIT: 403}) as hub:
        at(hub)
        assert main(["train", *words]) == 1
        out_said, said = capsys.readouterr()
        assert '"eval_loss"' in out_said, "the figures are printed all the same"
        assert "error: --push_to_hub: the token may not write to x (403, " in said
        again = re.search(r"Nothing is lost: all of it is in (\S+)\. To push it again: vlm-lora (.*)$", said, re.M)
        assert again is not None
        assert again[1] == str(out)
        assert '"state": "done"' in (out / "RUN_STATE.json").read_text()
        hub.refuses = {}
        assert main(shlex.split(again[2])) == 0
        first = dict(hub.files)
        assert "eval_loss" in first["README.md"].decode(), "the card has the scores of the run's end"
        hub.files.clear()
        words = [word if word != "error" else "warning" for word in words]
        assert main(["train", *words, "--overwrite_output_dir", "true"]) == 0
        assert f"Pushed {len(first)} files (" in capsys.readouterr().err
        assert set(hub.files) == set(first)


HERE = ("RUN_STATE.json", "_run.lock", "training_args.bin", "runs/events.out.tfevents.1.host.7.0", "predictions.jsonl")


@pytest.mark.parametrize(
    ("strategy", "uploads"),
    [
        ("every_save", ["."]),
        ("checkpoint", [".", "last-checkpoint"]),
        ("all_checkpoints", [".", "checkpoint-1"]),
    ],
)
def test_what_names_this_machine_is_never_uploaded(
    strategy: str,
    uploads: list[str],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By each way in which a training under way uploads, on both stacks' trainers; the control is transformers' own."""
    data = write_uneven_rows(tmp_path / "data", rows=2, validation=0)
    out = tmp_path / "out"
    given: list[tuple[str, set[str], set[str]]] = []

    def taken(**keywords: Any) -> Any:
        folder = Path(keywords["folder_path"])
        for name in HERE if folder == out else ():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        assert keywords["token"] == TOKEN
        ours = keywords["ignore_patterns"]
        theirs = [pattern for pattern in ours if pattern not in (*KEPT_HERE, *ROWS)]
        left, unchosen = (set(filter_repo_objects(names, ignore_patterns=one)) for one in (ours, theirs))
        given.append((keywords.get("path_in_repo") or ".", left, unchosen))
        return SimpleNamespace(done=lambda: True, is_done=lambda: True, result=lambda: None)

    for kind in installed()["cpu"].trainer_class().__mro__:
        module = sys.modules[kind.__module__]
        if hasattr(module, "upload_folder"):
            monkeypatch.setattr(module, "upload_folder", taken)
        if hasattr(module, "hf_api"):
            monkeypatch.setattr(module, "hf_api", lambda: SimpleNamespace(upload_folder=taken))

    def no_repository(trainer: Any, **_: Any) -> None:
        trainer.hub_model_id, trainer.push_in_progress = "me/x", None

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", no_repository)
    monkeypatch.setattr("vlm_lora.deploy.handover.check_push", lambda arguments: None)
    flags = {"do_train": True, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "push_to_hub": True}
    run(model_folder("gemma3"), data, out, **flags, hub_model_id="me/x", hub_strategy=strategy, hub_token=TOKEN)
    assert not [path for path in out.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert [place for place, _, _ in given] == uploads
    for place, names, unchosen in given:
        assert "adapter_model.safetensors" in names
        assert not [name for name in names if any(word in name for word in HERE)], place
        assert "training_args.bin" in unchosen
        assert ("RUN_STATE.json" in unchosen) == (place == "."), "the control: transformers alone would upload it"


def test_the_token_is_written_nowhere(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=2, validation=1)
    saving = {"do_train": True, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "hub_token": "hf_secretword"}

    def holding(output: Path) -> list[str]:
        files = [path for path in output.rglob("*") if path.is_file()]
        return sorted({path.name for path in files if b"hf_secretword" in path.read_bytes()})

    run(model_folder("llava"), data, tmp_path / "out", **saving)
    assert (tmp_path / "out" / "training_args.bin").is_file()
    assert holding(tmp_path / "out") == []
    monkeypatch.setattr("vlm_lora.training.trainer.without_token", nullcontext)
    run(model_folder("llava"), data, tmp_path / "control", **saving)
    assert holding(tmp_path / "control") == ["training_args.bin"]
