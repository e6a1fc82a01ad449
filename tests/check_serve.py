"""A merged model behind `transformers serve`: an OpenAI client reads what `vlm-lora ask` says.

`make check-serve ADAPTER=runs/demo/adapter DATA=runs/demo/charts`, by hand: the server needs packages that no test has.
In addition to equal answers it shows two controls: another image gives other answers, and the server that loads the
merged model does not load the bare adapter, for which `vlm-lora servable` prints the command that merges it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}
LONGEST = 12
"""Tokens of an answer."""
PATIENCE = 300
"""Seconds until a server must have begun to answer."""


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")


def vlm_lora(*words: object) -> str:
    """Run the command line; return what it printed."""
    line = [sys.executable, "-m", "vlm_lora", *map(str, words)]
    return subprocess.run(line, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True).stdout


def served_by_transformers(folder: Path) -> dict[str, Any]:
    """Return the verdict on a folder."""
    verdicts = json.loads(vlm_lora("servable", folder, "--json"))
    found: dict[str, Any] = next(one for one in verdicts if one["server"] == "transformers serve")
    return found


def merged(adapter: Path, output: Path) -> Path:
    """Merge by the command that `servable` prints, into another folder."""
    verdict = served_by_transformers(adapter)
    words = shlex.split(verdict["command"])
    assert words[:2] == ["vlm-lora", "merge"], f"a bare adapter gets no command that serves it: {verdict}"
    say(verdict["command"])
    say(vlm_lora(*words[1:-1], output, "--use_cpu", "true"))
    return output


PILLOW = "import sys; sys.modules['torchvision'] = None; from transformers.cli.transformers import main; main()"
"""`transformers`, with images read by Pillow: torchvision's build for CUDA beside a torch for CPUs decodes none."""


def serving(folder: Path, port: int) -> list[str]:
    """Return the command that serves a folder on this machine's CPU."""
    command = [sys.executable, "-c", PILLOW, "serve", str(folder)]
    return [*command, "--device", "cpu", "--dtype", "float32", "--port", str(port)]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serve a folder; give the address once it answers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(serving(folder, port), env=ENVIRONMENT)
    try:
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    yield f"http://localhost:{port}/v1"
                    return
            time.sleep(0.5)
        raise SystemExit(f"`transformers serve {folder}` never answered (exit code {process.poll()}).")
    finally:
        process.terminate()
        process.wait()


def asked(address: str, model: Path, questions: Sequence[str], images: Sequence[Path]) -> list[str]:
    """Return what the server says to each question about an image, as an OpenAI client reads it."""
    from openai import OpenAI

    client = OpenAI(base_url=address, api_key="none", timeout=PATIENCE)
    answers = []
    for question, image in zip(questions, images, strict=True):
        uri = f"data:image/{image.suffix[1:]};base64,{base64.b64encode(image.read_bytes()).decode()}"
        content: Any = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
        completion = client.chat.completions.create(
            model=str(model), messages=[{"role": "user", "content": content}], temperature=0, max_tokens=LONGEST
        )
        answers.append(completion.choices[0].message.content or "")
    return answers


def refused(adapter: Path) -> str:
    """Make sure that the server takes no bare adapter, as the verdict says; return what it says last."""
    done = subprocess.run(serving(adapter, 0), env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0, "the bare adapter was served: the verdict is wrong"
    return done.stderr.strip().splitlines()[-1]


def main() -> None:
    """Merge, serve, ask both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("data", type=Path, help="with validation.jsonl, whose rows have one image each")
    parser.add_argument("--rows", type=int, default=12)
    own = parser.parse_args()
    lines = (own.data / "validation.jsonl").read_text(encoding="utf-8").splitlines()[: own.rows]
    images = [own.data / json.loads(line)["image"] for line in lines]
    with tempfile.TemporaryDirectory() as place:
        model = merged(own.adapter, Path(place) / "merged")
        verdict = served_by_transformers(model)
        assert (verdict["answer"], verdict["command"]) == ("as it is", f"transformers serve {model}"), verdict
        file = Path(place) / "questions.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        words = ["--image_root", own.data, "--max_new_tokens", LONGEST, "--use_cpu", "true"]
        said = vlm_lora("ask", "--model_name_or_path", model, "--file", file, *words)
        expected = [json.loads(line) for line in said.splitlines()]
        questions = [row["prompt"] for row in expected]
        with server(model) as address:
            found = asked(address, model, questions, images)
            others = asked(address, model, questions, [*images[1:], images[0]])
    for row, answer in zip(expected, found, strict=True):
        say(f"{row['prompt']!r}: ask {row['generated']!r}, served {answer!r}")
    equal = sum(row["generated"] == answer for row, answer in zip(expected, found, strict=True))
    changed = sum(one != other for one, other in zip(found, others, strict=True))
    say(f"{equal} of {len(lines)} answers equal; about the next row's image {changed} are others.")
    say(f"The bare adapter is not served: {refused(own.adapter)[:200]}")
    if equal < len(lines) or not changed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
