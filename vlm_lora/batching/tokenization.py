"""Tokenizing a rendering in which users may have typed control tokens.

A processor expands image placeholders and hands the result to its tokenizer. `SubstitutingTokenizer` stands
in that place: it receives the expanded rendering with a sentinel for every text, puts the texts back, and
tokenizes so that only the template's own control tokens become control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import BatchEncoding

from vlm_lora.batching.chat.layouts import split_at
from vlm_lora.errors import ModelError, RenderingError


@dataclass(frozen=True, kw_only=True)
class Control:
    """One control token of a tokenizer."""

    id: int
    lstrip: bool
    """Whether it swallows white space before it."""
    rstrip: bool
    """Whether it swallows white space behind it."""


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """The expanded rendering and its tokens."""

    text: str
    """With a pair (PaliGemma): prefix and suffix joined."""
    input_ids: torch.Tensor
    """`(T,)` int64."""
    offsets: torch.Tensor
    """`(T, 2)` int64: the characters of `text` that each token stands for."""
    places: Mapping[int, tuple[int, int]]
    """Where each text of the conversation stands in `text`."""


@dataclass(frozen=True)
class _Cut:
    start: int
    end: int
    id: int


@dataclass(frozen=True)
class _Filled:
    """One string with its texts put back, and which stretches the template wrote."""

    text: str
    owned: tuple[tuple[int, int], ...]
    places: Mapping[int, tuple[int, int]]
    marks: tuple[tuple[int, int], ...] = ()
    """Stretches inside texts that the encoder wrote: marks of boxes, which are control tokens like the template's."""

    def position(self, aided: int) -> int:
        """Return where character `aided` of the string with sentinels stands in `text`."""
        for start, end in self.owned:
            if aided < end - start:
                return start + aided
            aided -= end - start + 1  # the stretch and the sentinel behind it
        raise IndexError("the position is a sentinel's or behind the end")


class _Encoding(BatchEncoding):
    """One row's tokens, for processors that ask where a placeholder's characters went (Idefics 3)."""

    filled: _Filled
    offsets: Sequence[tuple[int, int]]

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token at a character of the string that the processor handed over."""
        position = self.filled.position(batch_or_char_index if char_index is None else char_index)
        hits = (number for number, (start, end) in enumerate(self.offsets) if start <= position < end)
        return next(hits, None)


class ControlTokens:
    """The control tokens of a tokenizer, found in texts and kept out of what users typed.

    Args:
        tokenizer: a fast tokenizer.
        names: tokens that count as control tokens in addition to all special ones (eos, media placeholders).

    Raises:
        ModelError: the tokenizer has no offsets (a slow one).
    """

    def __init__(self, tokenizer: Any, names: frozenset[str]) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} gives no character offsets, so labels cannot be placed. Save "
                "the model with its fast tokenizer (a tokenizer.json file next to the model)."
            )
        self._tokenizer = tokenizer
        self._controls = {
            added.content: Control(id=token_id, lstrip=bool(added.lstrip), rstrip=bool(added.rstrip))
            for token_id, added in tokenizer.added_tokens_decoder.items()
            if added.special or added.content in names
        }
        longest_first = sorted(self._controls, key=len, reverse=True)
        # What a tokenizer cannot write becomes <unk>; that is no control token, unless it is the eos as well.
        roles = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        unknown = {tokenizer.unk_token_id} - roles
        self._ids = {control.id for control in self._controls.values()} - unknown
        self._longest = max(map(len, self._controls), default=0)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def typed(self, filled: _Filled) -> list[str]:
        """Return the control strings in `filled` that the template did not write alone."""
        return [match.group() for match in self._typed_in(filled)]

    def _typed(self, text: str, places: Mapping[int, tuple[int, int]]) -> list[re.Match[str]]:
        # Only the texts and their edges are searched: an expanded image can be thousands of control tokens.
        typed = []
        for start, end in places.values():
            window = max(0, start - self._longest), min(len(text), end + self._longest)
            matches = self._pattern.finditer(text, *window)
            typed += [match for match in matches if match.start() < end and match.end() > start]
        return typed

    def _typed_in(self, filled: _Filled) -> list[re.Match[str]]:
        def is_mark(match: re.Match[str]) -> bool:
            return any(start <= match.start() and match.end() <= end for start, end in filled.marks)

        return [match for match in self._typed(filled.text, filled.places) if not is_mark(match)]

    def encode(self, filled: _Filled) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize without special tokens added, typed control strings as plain text.

        The string is cut only at control tokens that the template wrote; the stretches between are encoded
        with control tokens switched off.

        Raises:
            RenderingError: this tokenizer tokenizes stretches differently from the whole, or takes a typed
                string for a control token all the same.
        """
        ids, offsets = self._in_stretches(filled.text, self._owned(filled, swallow=True))
        self._check_whole(filled)
        owned = [cut.id for cut in self._owned(filled, swallow=False) if cut.id in self._ids]
        if [token_id for token_id in ids if token_id in self._ids] != owned:
            raise RenderingError(self._refusal(filled))
        return ids, offsets

    def _owned(self, filled: _Filled, *, swallow: bool) -> list[_Cut]:
        cuts: list[_Cut] = []
        for start, end in sorted((*filled.owned, *filled.marks)):
            for match in self._pattern.finditer(filled.text, start, end):
                control = self._controls[match.group()]
                left, right = match.span()
                if swallow and control.lstrip:
                    left = len(filled.text[:left].rstrip())
                if swallow and control.rstrip:
                    right = len(filled.text) - len(filled.text[right:].lstrip())
                cuts.append(_Cut(left, right, control.id))
        return cuts

    def _in_stretches(self, text: str, cuts: Sequence[_Cut]) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for cut in [*cuts, None]:
            stretch = text[position : len(text) if cut is None else cut.start]
            if stretch:
                plain = self._tokenizer(
                    stretch, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
                )
                ids += plain["input_ids"]
                offsets += [(start + position, end + position) for start, end in plain["offset_mapping"]]
            if cut is not None:
                ids.append(cut.id)
                offsets.append((cut.start, cut.end))
                position = max(position, cut.end)
        return ids, offsets

    def _check_whole(self, filled: _Filled) -> None:
        """Check on the same string with its typed control strings broken that stretches equal the whole."""
        broken = _Filled(self._broken(filled), filled.owned, filled.places, filled.marks)
        whole = self._tokenizer(broken.text, add_special_tokens=False)["input_ids"]
        if self._in_stretches(broken.text, self._owned(broken, swallow=True))[0] != whole:
            raise RenderingError(self._refusal(filled))

    def _broken(self, filled: _Filled) -> str:
        """Return the text with one letter of each typed control string changed, its length unchanged."""
        text = filled.text
        while True:
            typed = self._typed_in(_Filled(text, filled.owned, filled.places, filled.marks))
            if not typed:
                return text
            for match in typed:
                middle = (match.start() + match.end()) // 2
                text = text[:middle] + ("x" if text[middle] != "x" else "y") + text[middle + 1 :]

    def _refusal(self, filled: _Filled) -> str:
        typed = ", ".join(repr(name) for name in dict.fromkeys(self.typed(filled)))
        return (
            f"the text contains {typed}, a control token of this model, and its tokenizer has no way to keep "
            "it as text. Write it differently in the data (for example with a space inside)."
        )


class SubstitutingTokenizer:
    """Takes a tokenizer's place inside a processor for one call at a time.

    Everything but a call goes to the real tokenizer. Between `expect` and `finish`, calls with one string are
    answered with the tokens of the substituted text and remembered; other calls go through.
    """

    def __init__(self, tokenizer: Any, controls: ControlTokens) -> None:
        self._tokenizer = tokenizer
        self._controls = controls
        self._sentinels: Sequence[str] | None = None
        self._texts: Sequence[str] = ()
        self._marks: Sequence[Sequence[tuple[int, int]]] = ()
        self._pieces: list[Tokenized] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_tokenizer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def expect(
        self, sentinels: Sequence[str], texts: Sequence[str], marks: Sequence[Sequence[tuple[int, int]]] = ()
    ) -> None:
        """Prepare for the call that carries `sentinels`, to be replaced by `texts`.

        Args:
            sentinels: one for each text.
            texts: what stands there.
            marks: by text, the stretches that are marks of boxes and no user's text.
        """
        self._sentinels, self._texts, self._marks, self._pieces = sentinels, texts, marks, []

    def finish(self) -> list[Tokenized]:
        """Return what was tokenized since `expect`, call by call; from now on only delegate."""
        self._sentinels = None
        return self._pieces

    def __call__(self, text: Any = None, text_pair: Any = None, **kwargs: Any) -> Any:
        """Tokenize as the real tokenizer does, texts put back."""
        if self._sentinels is None:
            return self._tokenizer(text, text_pair=text_pair, **kwargs)
        strings = [_only(text)] + ([] if text_pair is None else [_only(text_pair)])
        if any(string is None for string in strings):
            return self._tokenizer(text, text_pair=text_pair, **kwargs)
        filled = [fill(string, self._sentinels, self._texts, self._marks) for string in strings if string is not None]
        return self._encode(filled, batched=not isinstance(text, str), **kwargs)

    def _encode(self, filled: Sequence[_Filled], *, batched: bool, **kwargs: Any) -> Any:
        tensors = kwargs.pop("return_tensors", None)
        pair = {"text_pair": [filled[1].text]} if len(filled) == 2 else {}
        encoding = self._tokenizer([filled[0].text], **pair, **kwargs, return_offsets_mapping=True)
        data = {name: values[0] for name, values in encoding.items()}
        offsets = list(_joined(data.pop("offset_mapping"), encoding.sequence_ids(0), len(filled[0].text)))
        if any(self._controls.typed(one) for one in filled):
            data, offsets = self._encode_typed(filled, data, **kwargs)
        places: dict[int, tuple[int, int]] = {}
        for shift, one in zip((0, len(filled[0].text)), filled, strict=False):
            places |= {part: (start + shift, end + shift) for part, (start, end) in one.places.items()}
        tokenized = Tokenized(
            text="".join(one.text for one in filled),
            input_ids=torch.tensor(data["input_ids"], dtype=torch.int64),
            offsets=torch.tensor(offsets, dtype=torch.int64).reshape(-1, 2),
            places=places,
        )
        self._pieces.append(tokenized)
        if batched or tensors is not None:
            data = {name: [values] for name, values in data.items()}
        answer = _Encoding(data, tensor_type=tensors)
        answer.filled, answer.offsets = filled[0], offsets
        return answer

    def _encode_typed(
        self, filled: Sequence[_Filled], whole: Mapping[str, list[int]], **kwargs: Any
    ) -> tuple[dict[str, list[int]], list[tuple[int, int]]]:
        """Encode stretch by stretch, with the tensors that the whole call gave."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        types: list[int] = []
        shift = 0
        for number, one in enumerate(filled):
            some, places = self._controls.encode(one)
            ids += some
            offsets += [(start + shift, end + shift) for start, end in places]
            types += [number] * len(some)
            shift += len(one.text)
        if kwargs.get("add_special_tokens", True):
            before, after = self._added()
            ids = [*before, *ids, *after]
            offsets = [*([(0, 0)] * len(before)), *offsets, *([(shift, shift)] * len(after))]
            types = [*([0] * len(before)), *types, *([types[-1] if types else 0] * len(after))]
        known = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}
        return {name: known[name] for name in whole}, offsets

    def _added(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer itself puts before and behind a text."""
        inner = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        outer = self._tokenizer("a")["input_ids"]
        for start in range(len(outer) - len(inner) + 1):
            if outer[start : start + len(inner)] == inner:
                return outer[:start], outer[start + len(inner) :]
        raise RenderingError("the tokenizer changes a text when it adds its special tokens.")


def assemble(pieces: Sequence[Tokenized], input_ids: torch.Tensor, parts: int) -> Tokenized | None:
    """Return the tokens of the whole rendering, None where the pieces are not what the processor returned.

    Most processors tokenize the rendering in one call. Phi-3-Vision's tokenizes what stands between images and
    puts negative ids, its placeholders, there: those stand for no characters.

    Args:
        pieces: what was tokenized, call by call.
        input_ids: `(T,)` int64, what the processor returned.
        parts: how many texts the conversation has.
    """
    whole = [one for one in pieces if len(one.places) == parts and torch.equal(one.input_ids, input_ids)]
    if whole:
        return whole[0]
    ids = input_ids.tolist()
    text, position = "", 0
    offsets: list[tuple[int, int]] = []
    places: dict[int, tuple[int, int]] = {}
    for piece in [*pieces, None]:
        while position < len(ids) and ids[position] < 0:
            offsets.append((len(text), len(text)))
            position += 1
        if piece is None:
            break
        if ids[position : position + len(piece.input_ids)] != piece.input_ids.tolist():
            return None
        offsets += [(start + len(text), end + len(text)) for start, end in piece.offsets.tolist()]
        places |= {part: (start + len(text), end + len(text)) for part, (start, end) in piece.places.items()}
        text += piece.text
        position += len(piece.input_ids)
    if position != len(ids) or len(places) != parts:
        return None
    return Tokenized(text=text, input_ids=input_ids, offsets=torch.tensor(offsets, dtype=torch.int64), places=places)


def cut_at(tokenized: Tokenized, starts: Sequence[int], tokenizer: Any) -> tuple[Tokenized, torch.Tensor]:
    """Cut tokens of white space that hold the end of a prompt and the beginning of its answer.

    Qwen writes two line breaks as one token; a prompt that ends with `<think>` and one of them ends with another token.
    The model is to see the prompt's own, so such a token becomes two. One that holds anything else stays whole: ` red`
    behind `Assistant:` is one token at inference, too.

    Args:
        tokenized: as the processor has it.
        starts: the characters at which answers begin.
        tokenizer: encodes the two parts.

    Returns:
        What the model sees, and `(T,)` int64: by token the one that it was or was a part of.
    """
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    for place in starts:
        inside = (tokenized.offsets[:, 0] < place) & (tokenized.offsets[:, 1] > place)
        for token in inside.nonzero().flatten().tolist():
            first, last = tokenized.offsets[token].tolist()
            halves = ((first, place), (place, last))
            parts = [_encoded_alone(tokenized.text, start, end, tokenizer) for start, end in halves]
            if tokenized.text[first:last].isspace() and all(parts):
                pieces[token] = [piece for part in parts for piece in part]
    ids, offsets, origins = [], [], []
    for token, (token_id, ends) in enumerate(
        zip(tokenized.input_ids.tolist(), tokenized.offsets.tolist(), strict=True)
    ):
        for piece, first, last in pieces.get(token, [(token_id, *ends)]):
            ids.append(piece)
            offsets.append((first, last))
            origins.append(token)
    cut = replace(
        tokenized,
        input_ids=torch.tensor(ids, dtype=torch.int64),
        offsets=torch.tensor(offsets, dtype=torch.int64).reshape(-1, 2),
    )
    return cut, torch.tensor(origins, dtype=torch.int64)


def _encoded_alone(text: str, start: int, end: int, tokenizer: Any) -> list[tuple[int, int, int]]:
    """Return id, start and end of the tokens of a stretch; none where the tokenizer adds to it (SentencePiece)."""
    encoded = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
    pieces = [
        (token, first + start, last + start)
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    position = start
    for _, first, last in pieces:
        if first != position or last <= first:
            return []
        position = last
    return pieces if position == end else []


def fill(
    aided: str, sentinels: Sequence[str], texts: Sequence[str], marks: Sequence[Sequence[tuple[int, int]]] = ()
) -> _Filled:
    """Put texts back into an expanded rendering and note which stretches are the template's, or marks of boxes."""
    literals, order = split_at(aided, sentinels)
    pieces, owned, places = [literals[0]], [(0, len(literals[0]))], {}
    position = len(literals[0])
    for part, literal in zip(order, literals[1:], strict=True):
        places[part] = (position, position + len(texts[part]))
        position += len(texts[part])
        owned.append((position, position + len(literal)))
        position += len(literal)
        pieces += (texts[part], literal)
    own = tuple(
        (places[part][0] + start, places[part][0] + end) for part in order if marks for start, end in marks[part]
    )
    return _Filled("".join(pieces), tuple(owned), places, own)


def _only(text: Any) -> str | None:
    """Return the one string of a call, None where there is another number of them."""
    if isinstance(text, str):
        return text
    if isinstance(text, (list, tuple)) and len(text) == 1 and isinstance(text[0], str):
        return text[0]
    return None


def _joined(
    offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None], first_length: int
) -> Iterator[tuple[int, int]]:
    """Yield a pair's offsets as offsets into prefix + suffix."""
    for (start, end), sequence in zip(offsets, sequences, strict=True):
        shift = first_length if sequence == 1 else 0
        yield start + shift, end + shift
