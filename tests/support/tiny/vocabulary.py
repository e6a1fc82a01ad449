"""Two kinds of small but real fast tokenizers, trained in code: byte-level BPE, and SentencePiece-like BPE.

The second follows the two published layouts: Llama's (a space is put before the text) and Gemma's
(none is); both write a space as `▁` and fall back to bytes for what they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from support.tiny.corpus import SENTENCES, TEXT

SPACE = "▁"
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a family's tokenizer is made of."""

    kind: Literal["bytes", "llama", "gemma"]
    special: Sequence[str]
    """Control tokens, named as published; those of `llama` and `gemma` take the first ids, as published."""
    plain: Sequence[str] = ()
    """Added tokens that are not control tokens."""
    bos: str | None = None
    eos: str
    pad: str
    unk: str | None = None
    adds_bos: bool = False
    """Whether the tokenizer itself puts `bos` before a text."""
    old_class: str = "PreTrainedTokenizerFast"
    """Class that transformers 4.55's processor insists on; 5.x takes the general one for all."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Attributes that the family's processor reads from its tokenizer, such as `image_token`."""


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=440, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def _learned(lines: Iterator[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the pieces and merges that BPE learns from lines whose spaces are written as `▁`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, behavior="merged_with_next")
    tokenizer.train_from_iterator(lines, BpeTrainer(vocab_size=230, show_progress=False))
    state = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    return pieces, [(left, right) for left, right in state["merges"]]


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    llama = vocabulary.kind == "llama"
    pieces, merges = _learned(SPACE + line.replace(" ", SPACE) for line in SENTENCES)
    if not llama:
        pieces += ["\n", "\n\n"]
        merges.append(("\n", "\n"))
    names = [*vocabulary.special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=merges,
            unk_token=vocabulary.unk,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if llama else replace
    if not llama:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tail = [decoders.Strip(content=" ", left=1)] if llama else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    return tokenizer


def build_tokenizer(vocabulary: Vocabulary) -> Any:
    """Train the tokenizer (the same each time) and give it the family's control tokens."""
    tokenizer = _byte_level(vocabulary) if vocabulary.kind == "bytes" else _sentencepiece(vocabulary)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in vocabulary.special])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in vocabulary.plain])
    if vocabulary.adds_bos and vocabulary.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{vocabulary.bos} $A",
            pair=f"{vocabulary.bos} $A {vocabulary.bos}:1 $B:1",
            special_tokens=[(vocabulary.bos, tokenizer.token_to_id(vocabulary.bos))],
        )
    old = transformers.__version__.startswith("4.")
    kind = getattr(transformers, vocabulary.old_class if old else "PreTrainedTokenizerFast")
    return kind(
        tokenizer_object=tokenizer,
        bos_token=vocabulary.bos,
        eos_token=vocabulary.eos,
        pad_token=vocabulary.pad,
        unk_token=vocabulary.unk,
        extra_special_tokens=dict(vocabulary.named),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
