"""Whatever the row and the policy: features match image tokens, the last answer is whole, or the row is reported.

What a policy must give is found here by another way: every smaller version of a row is made by hand, largest first,
and encoded without any limit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image

from support.mask_cases import encoder_of, new_encoder, processor_of, style_of
from support.tiny.folders import build_model
from vlm_lora.batching.collator import Collator
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.overflow import LEAST_SIDE, SIDES
from vlm_lora.config.run_config import OVERFLOW_POLICIES
from vlm_lora.data.conversation import Conversation, ImageRef, Part, RowSource, Text, Turn
from vlm_lora.errors import TooLongError

FAMILIES = ("gemma3", "qwen2_5_vl", "llava")
ROWS = 40
WORDS = ("red", "bus", "what", "how many", "3.5 %", "left", "é中", "\n", "a b c")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One random row in its pieces."""

    system: tuple[Turn, ...]
    exchanges: tuple[tuple[Turn, Turn], ...]
    share: float
    """The limit as a share of the row's length."""

    def without(self, count: int) -> Conversation:
        turns = (*self.system, *(turn for pair in self.exchanges[count:] for turn in pair))
        return Conversation(turns=turns, source=RowSource(file="fuzz.jsonl", row=5))

    def with_images_at(self, side: float) -> Conversation:
        def resized(part: Part) -> Part:
            if not isinstance(part, ImageRef):
                return part
            assert isinstance(part.source, Image.Image)
            width, height = part.source.size
            share = min(1.0, max(side, LEAST_SIDE / min(width, height)))
            size = (max(1, round(width * share)), max(1, round(height * share)))
            return ImageRef(source=part.source.resize(size, Image.Resampling.BICUBIC) if share < 1 else part.source)

        row = self.without(0)
        turns = tuple(replace(turn, parts=tuple(map(resized, turn.parts))) for turn in row.turns)
        return replace(row, turns=turns)


def cases(seed: int) -> Iterator[Case]:
    generator = random.Random(seed)

    def text(most: int) -> Text:
        return Text(text=" ".join(generator.choices(WORDS, k=generator.randint(1, most))))

    for _ in range(ROWS):
        pictures = generator.randint(0, 4)
        count = generator.randint(1, 5)
        owners = Counter(generator.randrange(count) for _ in range(pictures))
        pairs = []
        for number in range(count):
            parts: list[Part] = [text(12), *(ImageRef(source=_image(generator)) for _ in range(owners[number]))]
            generator.shuffle(parts)
            pairs.append((Turn(role="user", parts=tuple(parts)), Turn(role="assistant", parts=(text(12),))))
        system = (Turn(role="system", parts=(text(5),)),) if generator.random() < 0.3 else ()
        yield Case(system=system, exchanges=tuple(pairs), share=generator.uniform(0.2, 1.05))


def _image(generator: random.Random) -> Image.Image:
    size = (generator.randint(20, 120), generator.randint(20, 120))
    return Image.linear_gradient("L").resize(size).convert("RGB")


def image_tokens(family: str, row: EncodedRow) -> int:
    names = {"gemma3": "<image_soft_token>", "qwen2_5_vl": "<|image_pad|>", "llava": "<image>"}
    return int(row.input_ids.eq(processor_of(family).tokenizer.convert_tokens_to_ids(names[family])).sum())


def features(family: str, row: EncodedRow) -> int:
    """How many embeddings the model makes of a row's images, from the tensors' shapes."""
    if not row.media:
        return 0
    if family == "qwen2_5_vl":
        return int(row.media["image_grid_thw"].prod(dim=1).sum()) // 4
    pixels = row.media["pixel_values"]
    return len(pixels) * (16 if family == "gemma3" else (pixels.shape[-1] // 8) ** 2)


def last_answer(row: EncodedRow) -> list[int]:
    """The last stretch of supervised tokens."""
    labels = row.labels.tolist()
    while labels and labels[-1] == IGNORE_INDEX:  # line breaks that a template writes behind the end
        labels.pop()
    start = max((place for place, label in enumerate(labels) if label == IGNORE_INDEX), default=-1)
    return labels[start + 1 :]


def differences(one: EncodedRow, other: EncodedRow) -> list[str]:
    left, right = ({**r.token_tensors, **r.media, "ids": r.input_ids, "labels": r.labels} for r in (one, other))
    return [name for name in left.keys() | right.keys() if name not in left or name not in right] or [
        name for name in left if not torch.equal(left[name], right[name])
    ]


def faults(family: str, row: EncodedRow, whole: EncodedRow, expected: EncodedRow, limit: int) -> list[str]:
    """Return what is wrong with a row that was to fit."""
    found = [f"differs in {name}" for name in differences(row, expected)]
    if len(row.input_ids) > limit:
        found.append("longer than the limit")
    if image_tokens(family, row) != features(family, row):
        found.append("features do not match")
    if last_answer(row) != last_answer(whole) or not last_answer(whole):
        found.append("the last answer is not whole")
    return found


def versions(case: Case, policy: str, *, fixed: bool) -> list[Conversation]:
    """All smaller versions of a row, largest first, the row itself included.

    `fixed`: every image takes the same tokens, so the smallest stands for all.
    """
    row = case.without(0)
    if policy == "shrink_images" and row.images:
        return [row, *(case.with_images_at(side) for side in (SIDES[-1:] if fixed else SIDES))]
    if policy == "trim_turns":
        return [case.without(count) for count in range(len(case.exchanges))]
    return [row]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_fits_whole_or_is_reported(family: str) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    fixed = family != "qwen2_5_vl"
    for number, case in enumerate(cases(seed=7)):
        whole = encoder_of(family).encode(case.without(0))
        limit = max(1, int(len(whole.input_ids) * case.share))
        for policy in OVERFLOW_POLICIES:
            made = [whole, *map(encoder_of(family).encode, versions(case, policy, fixed=fixed)[1:])]
            lengths = [len(row.input_ids) for row in made]
            encoder = new_encoder(family, max_length=limit, on_overflow=policy)
            if lengths[0] > limit and lengths[-1] > limit:
                with pytest.raises(TooLongError, match=r"^fuzz\.jsonl row 5: ") as refused:
                    encoder.encode(case.without(0))
                assert (refused.value.tokens, refused.value.limit) == (lengths[0], limit)
                seen[policy, "reported"] += 1
                continue
            row = encoder.encode(case.without(0))
            place = next(place for place, length in enumerate(lengths) if length <= limit)
            if policy == "shrink_images" and differences(row, made[place]):
                # Rounding to patches can make a smaller image take more tokens: then the search may stop at another
                # step, before which the row does not fit either.
                place = next(p for p in range(1, len(made)) if lengths[p - 1] > limit and not differences(row, made[p]))
            assert faults(family, row, whole, made[place], limit) == [], (number, policy)
            assert bool(row.overflow) == (place > 0)
            seen[policy, "changed" if place else "as it was"] += 1
    for policy in OVERFLOW_POLICIES:
        assert seen[policy, "as it was"] > 0
        assert seen[policy, "reported"] > 0
        changes = policy == "trim_turns" or (policy == "shrink_images" and not fixed)
        assert (seen[policy, "changed"] > 0) == changes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_of_features_is_the_models_own(family: str) -> None:
    """The model itself refuses a batch whose features do not match, and the arithmetic above agrees with it."""
    tokenizer = processor_of(family).tokenizer
    model = build_model(family, tokenizer).eval()
    collator = Collator(encoder_of(family), style_of(family), pad_token_id=tokenizer.pad_token_id)
    pictured = [case.without(0) for case in cases(seed=7) if case.without(0).images][:4]
    for conversation in pictured:
        row = encoder_of(family).encode(conversation)
        batch = collator.collate([row])
        batch = {name: tensor for name, tensor in batch.items() if name not in ("labels", "supervised_positions")}
        with torch.no_grad():
            model(**batch)
            spoilt = batch["input_ids"].clone()
            spoilt[spoilt == row.input_ids[image_places(family, row)[0]]] = tokenizer.pad_token_id
            spoilt[0, image_places(family, row)[1:]] = batch["input_ids"][0, image_places(family, row)[1:]]
            with pytest.raises(ValueError, match="do not match"):
                model(**{**batch, "input_ids": spoilt})
        assert image_tokens(family, row) == features(family, row) > 0


def image_places(family: str, row: EncodedRow) -> list[int]:
    one = {"gemma3": "<image_soft_token>", "qwen2_5_vl": "<|image_pad|>", "llava": "<image>"}[family]
    return row.input_ids.eq(processor_of(family).tokenizer.convert_tokens_to_ids(one)).nonzero().flatten().tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_is_cut_is_noticed(family: str) -> None:
    """What most tools do with a row that is too long, in front and behind."""
    case = next(case for case in cases(seed=7) if case.exchanges[0][0].parts[0].__class__ is ImageRef)
    whole = encoder_of(family).encode(case.without(0))
    first = image_places(family, whole)[0]
    head, tail = first + 3, len(whole.input_ids) - first - 3
    front = replace(whole, input_ids=whole.input_ids[:head], labels=whole.labels[:head])
    behind = replace(whole, input_ids=whole.input_ids[-tail:], labels=whole.labels[-tail:])
    assert faults(family, whole, whole, whole, len(whole.input_ids)) == []
    assert {"features do not match", "the last answer is not whole"} <= set(faults(family, front, whole, whole, head))
    assert "features do not match" in faults(family, behind, whole, whole, tail)
    assert faults(family, whole, whole, whole, head) == ["longer than the limit"]
