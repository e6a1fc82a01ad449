"""Pre-trains the demo's base model on reading rendered words and numbers.

    python -m vlm_lora.demo.pretrain --output DIR --minutes 40 --seed 0

One CPU thread and a fixed time, not a fixed number of steps: the learning rate follows the clock.
The data depends on the seed alone. Besides the answers, an auxiliary head (thrown away at the
end) names the characters in each cell of the image; it teaches the vision tower its letters
within minutes, where answers alone would take hours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma3ForConditionalGeneration, GemmaTokenizer

from vlm_lora.demo.architecture import IMAGE_TOKENS, build_model, build_processor, save_base
from vlm_lora.demo.arrangements import random_scene
from vlm_lora.demo.muon import Muon
from vlm_lora.demo.packing import CHARACTERS, SLOTS, PackedBatch, Packer
from vlm_lora.demo.reading import held_out_scenes, reading_accuracy, score_scenes
from vlm_lora.demo.scenes import Scene
from vlm_lora.demo.tokenizer import train_tokenizer
from vlm_lora.demo.words import load_vocabulary


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions:
    """Everything that decides a run, except the speed of the machine."""

    minutes: float = 40.0
    seed: int = 0
    batch_size: int = 24
    letters_batch_size: int = 16
    letters_share: float = 0.16
    """Share of the time in which only the vision tower learns, from pages full of text."""
    length: int = 128
    """Tokens per image with its questions."""
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    easy_batches: int = 240
    """Batches over which plain single texts and lists give way to every layout."""
    character_weight: float = 0.4
    """Weight of the auxiliary character loss in addition to the answers' loss."""
    checkpoint_minutes: float = 4.0


class CharacterHead(nn.Module):
    """Names the characters in each 16 x 16 pixel cell from that cell's image token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = len(CHARACTERS) + 1
        self.linear = nn.Linear(width, SLOTS * self.classes)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Mean loss; features (b, 36, width), targets (b, 36, 8) with 0 for no character."""
        logits = self.linear(features).reshape(-1, self.classes)
        losses = functional.cross_entropy(logits, targets.reshape(-1), reduction="none")
        # Most slots are empty; without this the head first learns to say "nothing" for long.
        weights = torch.where(targets.reshape(-1) == 0, 0.15, 1.0)
        return (losses * weights).sum() / weights.sum()


class Clock:
    """Time since it was made, in seconds and as a share of what was planned."""

    def __init__(self, *, seconds: float) -> None:
        self._planned = seconds
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._began

    def share(self) -> float:
        """Share of the planned time; above one when it is over."""
        return self.elapsed() / self._planned


def image_features(model: Gemma3ForConditionalGeneration, batch: PackedBatch) -> Tensor:
    """What the language model sees of the images: shape (b, 36, width)."""
    seen = model.model.vision_tower(batch.pixel_values).last_hidden_state
    features: Tensor = model.model.multi_modal_projector(seen)
    return features


def answer_logits(
    model: Gemma3ForConditionalGeneration,
    batch: PackedBatch,
    features: Tensor,
    *,
    image_start: int,
) -> Tensor:
    """Logits (m, vocabulary) of the m places that have a label, row by row."""
    language = model.model.language_model
    embedded = language.embed_tokens(batch.input_ids)
    image_end = image_start + IMAGE_TOKENS
    embedded = torch.cat([embedded[:, :image_start], features, embedded[:, image_end:]], dim=1)
    hidden = language(
        inputs_embeds=embedded,
        attention_mask={"full_attention": batch.mask, "sliding_attention": batch.mask},
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[batch.labels >= 0])
    return logits


def losses(
    model: Gemma3ForConditionalGeneration,
    head: CharacterHead,
    batch: PackedBatch,
    packer: Packer,
    *,
    reading: bool,
) -> tuple[Tensor, Tensor]:
    """Loss of the answers (zero while only letters are learnt) and of the characters."""
    features = image_features(model, batch)
    character_loss: Tensor = head(features, batch.cell_characters)
    if not reading:
        return torch.zeros(()), character_loss
    logits = answer_logits(model, batch, features, image_start=packer.image_start)
    answer_loss = functional.cross_entropy(logits, batch.labels[batch.labels >= 0])
    return answer_loss, character_loss


def letter_batches(packer: Packer, options: PretrainingOptions) -> Iterator[PackedBatch]:
    """Endless batches for the vision tower alone: mostly pages full of text, no questions."""
    rng = random.Random(f"letters-{options.seed}")
    words = load_vocabulary().training
    while True:
        layouts = ["page" if rng.random() < 0.8 else None for _ in range(options.letters_batch_size)]
        scenes = [random_scene(rng, words, layout=layout) for layout in layouts]
        yield packer.pack(scenes, length=len(packer.prefix))


def question_batches(packer: Packer, options: PretrainingOptions) -> Iterator[PackedBatch]:
    """Endless batches of images with questions; single texts and lists dominate the start."""
    rng = random.Random(f"questions-{options.seed}")
    words = load_vocabulary().training
    for number in itertools.count():
        easy = 0.6 * max(0.0, 1 - number / max(1, options.easy_batches))
        scenes: list[Scene] = []
        while len(scenes) < options.batch_size:
            scene = random_scene(rng, words, easy=easy)
            if scene.exchanges:
                scenes.append(scene)
        yield packer.pack(scenes, length=options.length)


def make_optimizers(
    model: Gemma3ForConditionalGeneration, head: CharacterHead, options: PretrainingOptions
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the two towers, AdamW for everything else."""
    matrices: list[Tensor] = []
    others: list[Tensor] = list(head.parameters())
    for name, parameter in model.named_parameters():
        inside = ".layers." in name and parameter.ndim == 2
        (matrices if inside or "mm_input_projection" in name else others).append(parameter)
    return [
        Muon(matrices, lr=options.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=options.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def apply_gradients(model: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Clip the gradients, take one step, and forget them."""
    nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def rate_factor(done: float) -> float:
    """Share of the full learning rate at a share ``done`` of the time: up, level, down."""
    if done < 0.01:
        return 0.1 + 90.0 * done
    return min(1.0, max(0.02, (1.0 - done) / 0.5))


def set_rates(optimizers: list[torch.optim.Optimizer], done: float) -> None:
    """Scale the learning rate of every group to the time that has passed."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_lr", group["lr"])
            group["lr"] = group["full_lr"] * rate_factor(done)


def pretrain(output: Path, options: PretrainingOptions, *, start: Path | None = None) -> dict[str, object]:
    """Train for the given time, write the model folder, and return what was recorded.

    ``start`` is the folder of an earlier run to go on from; its tokenizer is the same.
    """
    torch.manual_seed(options.seed)
    tokenizer: GemmaTokenizer = train_tokenizer(load_vocabulary().training)
    processor = build_processor(tokenizer)
    model = build_model(tokenizer).train()
    if start is not None:
        model.load_state_dict(load_weights(start))
    head = CharacterHead(model.config.get_text_config().hidden_size)
    packer = Packer(tokenizer)
    optimizers = make_optimizers(model, head, options)
    clock = Clock(seconds=options.minutes * 60)
    history: list[dict[str, float]] = []
    letters = letter_batches(packer, options)
    questions = question_batches(packer, options)
    step, pictures, answer_tokens, loss_average, saved_at = 0, 0, 0, 0.0, 0.0
    while clock.share() < 1:
        set_rates(optimizers, clock.share())
        reading = clock.share() >= options.letters_share
        batch = next(questions) if reading else next(letters)
        answer_loss, character_loss = losses(model, head, batch, packer, reading=reading)
        loss = answer_loss + (options.character_weight if reading else 1.0) * character_loss
        loss.backward()
        apply_gradients(model, head, optimizers)
        step += 1
        pictures += len(batch.input_ids)
        answer_tokens += int((batch.labels >= 0).sum()) if reading else 0
        loss_average = answer_loss.item() * 0.02 + loss_average * 0.98
        if step % 50 == 0:
            history.append(
                {
                    "step": step,
                    "seconds": round(clock.elapsed()),
                    "answer_loss": round(loss_average, 4),
                    "character_loss": round(character_loss.item(), 4),
                }
            )
            _say(json.dumps(history[-1]))
        if clock.elapsed() - saved_at > options.checkpoint_minutes * 60:
            saved_at = clock.elapsed()
            save_base(model, processor, output)
            score = reading_accuracy(model, processor, samples=100, seed=1, device="cpu")
            _say(f"checkpoint: reads {score.correct} of {score.total}")
    trained_seconds = clock.elapsed()
    save_base(model, processor, output)
    return {
        "arguments": asdict(options),
        "steps": step,
        "pictures": pictures,
        "answer_tokens": answer_tokens,
        "seconds": round(trained_seconds, 1),
        "answer_loss": round(loss_average, 4),
        **measure_reading(model, processor),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
        "history": history[:: max(1, len(history) // 40)],
    }


def measure_reading(model: Gemma3ForConditionalGeneration, processor: Any) -> dict[str, object]:
    """What the finished model reads of 500 held-out single texts and of 500 scenes of every layout."""
    single = reading_accuracy(model, processor, samples=500, seed=0, device="cpu")
    mixed = score_scenes(model, processor, held_out_scenes(samples=500, seed=0, layout=None), device="cpu")
    return {
        "held_out_reading": asdict(single) | {"accuracy": round(single.accuracy, 4)},
        "held_out_questions_all_layouts": asdict(mixed) | {"accuracy": round(mixed.accuracy, 4)},
    }


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved base in float32."""
    saved = Gemma3ForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32)
    weights: dict[str, Tensor] = saved.state_dict()
    return weights


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="vlm_lora.demo.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start-from", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads)
    options = PretrainingOptions(
        minutes=parsed.minutes, seed=parsed.seed, muon_lr=parsed.muon_lr, adam_lr=parsed.adam_lr
    )
    if parsed.start_from is not None:
        # The letters are known by then, and a fresh character head would only disturb them.
        options = replace(options, letters_share=0.0, easy_batches=0, character_weight=0.0)
    record = pretrain(parsed.output, options, start=parsed.start_from)
    if parsed.start_from is not None:
        earlier = (parsed.start_from / "PRETRAINING.json").read_text(encoding="utf-8")
        record["started_from"] = json.loads(earlier)
    text = json.dumps(record, indent=1) + "\n"
    (parsed.output / "PRETRAINING.json").write_text(text, encoding="utf-8")
    _say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
