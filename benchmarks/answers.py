"""CPU time of an answer during an evaluation, against a plain loop of `generate` over batches of the same size.

    python -m benchmarks.answers [--rows 96] [--batch_size 16] [--rounds 5]

The demo's base model reads rendered words and numbers, in float32, on one thread. Ours sorts the rows, encodes,
generates, puts the model back as it was and scores. Two plain loops stand beside it: of `generate` over batches of the
same encoded prompts, and over what the model's own processor makes of whole batches, as documentation shows it. All
read the images from files and take turns in one process, and their answers are compared before anything is timed.

The model is tiny: an answer takes it a hundredth of a second, of which preparing the prompt row by row is a fifth. Of a
model of any use it is a thousandth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor

from benchmarks.figures import Figure, spread
from vlm_lora.config.sources import from_settings
from vlm_lora.demo.reading import answer_questions, held_out_scenes
from vlm_lora.demo.run import BASE
from vlm_lora.demo.scenes import draw_scene

GOAL = 1.05
"""CPU time over that of the plain loop: at least 0.95 of its answers a second."""
TOKENS = 12


class UnequalAnswersError(Exception):
    """The two ways answer differently."""


def write_rows(folder: Path, rows: int) -> Path:
    """Write validation.jsonl with its images."""
    lines = []
    for number, scene in enumerate(held_out_scenes(samples=rows, seed=3, layout=None)):
        draw_scene(scene).save(folder / f"{number}.png")
        exchange = scene.exchanges[0]
        lines.append({"image": f"{number}.png", "question": exchange.question, "answer": exchange.answer})
    file = folder / "validation.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


Way = Callable[[], list[str]]


def ways(folder: Path, rows: int, batch_size: int) -> tuple[Way, Way, Way]:
    """Return the ways to answer all rows: ours, the loop over encoded prompts, that over the processor's batches."""
    from vlm_lora.assembly import answerer_of, load_for_answers
    from vlm_lora.data.dataset import load_splits
    from vlm_lora.evaluation.answering import ValidationAnswers
    from vlm_lora.metrics.choice import choose
    from vlm_lora.metrics.facts import facts_of
    from vlm_lora.session import open_preprocessing, open_session

    file = write_rows(folder, rows)
    settings = {"model_name_or_path": str(BASE), "dataset_name": str(file), "output_dir": str(folder / "out")}
    asked = {"use_cpu": True, "do_eval": True, "max_new_tokens": TOKENS, "image_backend": "pil"}
    session = open_session(from_settings({**settings, **asked}, environ={}))
    validation = load_splits(session.run.data, need_train=False, need_validation=True).validation
    assert validation is not None  # the file is one
    preprocessing = open_preprocessing(session.run)
    model = load_for_answers(session, preprocessing)
    answering = ValidationAnswers(
        answerer=answerer_of(session, preprocessing, model),
        rows=validation,
        scorer=choose((), facts_of(validation)),
        batch_size=batch_size,
        shows_progress=False,
    )

    processor = AutoProcessor.from_pretrained(BASE)  # with its own side of padding

    def ours() -> list[str]:
        answering(model, everything=True)
        return [answer.said for answer in answering.answers]

    @torch.no_grad()
    def encoded() -> list[str]:
        found: list[str] = []
        for start in range(0, len(validation), batch_size):
            chunk = [validation[number] for number in range(start, min(start + batch_size, len(validation)))]
            batch = preprocessing.collator.prompt_batch(chunk)
            generated = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False)
            ids = generated[:, batch["input_ids"].shape[1] :]
            found += [text.strip() for text in preprocessing.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return found

    def plain() -> list[str]:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return answer_questions(
            model,
            processor,
            images=[Image.open(folder / line["image"]).convert("RGB") for line in lines],
            questions=[line["question"] for line in lines],
            device="cpu",
            batch_size=batch_size,
            max_new_tokens=TOKENS,
        )

    return ours, encoded, plain


def ratios(folder: Path, *, rows: int, batch_size: int, rounds: int) -> list[tuple[float, float]]:
    """Return our CPU time over that of each plain loop, for each round.

    Raises:
        UnequalAnswersError: the answers differ.
    """
    ours, encoded, plain = ways(folder, rows, batch_size)
    if not ours() == encoded() == plain():
        raise UnequalAnswersError("The ways answer differently.")
    found = []
    for _ in range(rounds):
        seconds = [_seconds(way) for way in (ours, encoded, plain)]
        found.append((seconds[0] / seconds[1], seconds[0] / seconds[2]))
    return found


def _seconds(way: Way) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


def figures(place: Path, rounds: int, *, rows: int = 96, batch_size: int = 16) -> list[Figure]:
    """Return the figures as `python -m benchmarks` wants them; `place` is not needed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = ratios(Path(folder), rows=rows, batch_size=batch_size, rounds=min(rounds, 5))
    torch.set_num_threads(threads)
    same, own = zip(*found, strict=True)
    return [
        spread(f"answers, {batch_size} rows at once: ours / `generate` over the same prompts", same, goal=GOAL),
        spread("answers: ours / `generate` over batches of the model's own processor", own),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults: dict[str, Any] = {"rows": 96, "batch_size": 16, "rounds": 5}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    for figure in figures(Path(), asked.rounds, rows=asked.rows, batch_size=asked.batch_size):
        print(figure.line())


if __name__ == "__main__":
    main()
