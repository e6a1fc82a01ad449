"""Measures how well a model reads rendered words and numbers it was not trained on.

This is the demo's answer to "does the base model see anything?": one word (from the tenth of the
vocabulary that pre-training never shows) or one random number per image, exact match.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora.demo.arrangements import random_scene
from vlm_lora.demo.scenes import Scene, draw_scene
from vlm_lora.demo.words import load_vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class ReadingScore:
    """How many answers were exactly right."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of right answers in [0, 1]."""
        return self.correct / self.total if self.total else 0.0


def held_out_scenes(*, samples: int, seed: int, layout: str | None = "single") -> list[Scene]:
    """Scenes whose words are all held out; ``layout`` None draws every layout."""
    # The prefix keeps this stream of random numbers apart from the one of pre-training.
    rng = random.Random(f"reading-{seed}")
    words = load_vocabulary().held_out
    scenes: list[Scene] = []
    while len(scenes) < samples:
        scene = random_scene(rng, words, layout=layout)
        if scene.exchanges:
            scenes.append(scene)
    return scenes


def answer_questions(
    model: Any,
    processor: Any,
    *,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    device: torch.device | str,
    batch_size: int = 64,
    max_new_tokens: int = 32,
) -> list[str]:
    """Greedy answers of a chat model to one question per image, in batches."""
    import torch

    answers: list[str] = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image},
                        {"type": "text", "text": question},
                    ],
                }
            ]
            for image, question in zip(images[part], questions[part], strict=True)
        ]
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            generated = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new_tokens = generated[:, inputs["input_ids"].shape[1] :]
        answers.extend(text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True))
    return answers


def score_scenes(model: Any, processor: Any, scenes: Sequence[Scene], *, device: torch.device | str) -> ReadingScore:
    """Exact match on the first question of every scene; the model is put in evaluation mode."""
    was_training = model.training
    model.eval()
    answers = answer_questions(
        model,
        processor,
        images=[draw_scene(scene) for scene in scenes],
        questions=[scene.exchanges[0].question for scene in scenes],
        device=device,
    )
    model.train(was_training)
    correct = sum(answer == scene.exchanges[0].answer for answer, scene in zip(answers, scenes, strict=True))
    return ReadingScore(correct=correct, total=len(scenes))


def reading_accuracy(
    model: Any, processor: Any, *, samples: int, seed: int, device: torch.device | str
) -> ReadingScore:
    """Exact match on ``samples`` images of one unseen word or random number each."""
    scenes = held_out_scenes(samples=samples, seed=seed)
    return score_scenes(model, processor, scenes, device=device)
