"""Trains the base model's tokenizer: byte-pair merges in the style of Gemma's, but ~800 tokens.

Two choices make a tiny model read better. No merge contains a digit, so numbers are spelt digit
by digit. And words of the images never start with a merged space, so that a name is the same
tokens in a question (after a space) and in an answer (after a line break).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer

SPACE = "\u2581"
SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
_PROMPT_TEXT = (
    "What is the number? What is the word? What is the largest number? What is the smallest "
    "number? Read the text. Read the words. Which word is at the top? Which number is at the "
    "bottom? Which word is on the left? Which number is on the right? Which number is above? "
    "Which word is below? Which number is next to? What number goes with? What is the value of? "
    "Which bar is the highest? Which is the lowest? What is the highest value? What is the lowest "
    "value? How many bars are there? What is shown in the chart? of the picture image user model"
)


def train_tokenizer(words: Sequence[str], *, vocabulary_size: int = 768) -> GemmaTokenizer:
    """Train merges on the question templates and on words; deterministic."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    # One piece is a run of letters with the space before it, a digit, or one other character.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}?[A-Za-z]+|."), behavior="isolated")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    printable = [chr(code) for code in range(33, 127)] + [SPACE, "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        special_tokens=[*SPECIAL_TOKENS, *bytes_],
        initial_alphabet=printable,
        show_progress=False,
    )
    templates = [_PROMPT_TEXT] * len(words)
    tokenizer.train_from_iterator([*templates, *words], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = dict(state["vocab"])
    merges = [(str(left), str(right)) for left, right in state["merges"]]
    vocabulary["\n\n"] = len(vocabulary)
    merges.append(("\n", "\n"))
    return GemmaTokenizer(
        vocab=vocabulary,
        merges=merges,
        padding_side="left",
        model_max_length=512,
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
            "sot_token": "<start_of_turn>",
            "eot_token": "<end_of_turn>",
        },
    )
