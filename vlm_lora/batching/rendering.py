"""A conversation as its model's chat template writes it, with every text at a known place.

How the places are found: the template renders the conversation twice, once as it is and once with every
text replaced by a private-use character. What stands between those characters is the template's own
writing (`Layout`); putting the texts back must give the first rendering exactly, or the row is refused.
A layout depends on roles, kinds of parts and which answers are trained on only, so it is analysed once and kept.

Sentinels are private-use characters that hold a text's place while a template or a processor works around it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from vlm_lora.batching.style import RenderingStyle
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.errors import ModelError, RenderingError

# The upper halves of the supplementary private-use planes: no published tokenizer or template gives these
# characters a meaning. The lower ones are taken: transformers 5 marks text with U+F0000 and U+F0001, and its
# processors do not expand a placeholder behind the first.
_PLANES = (0xF8000, 0x108000)
_PLANE_SIZE = 0x7FFD
FIRST_SENTINEL = chr(_PLANES[0])


def texts_of(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Return the conversation's texts in order: an assistant turn is one text, other turns one per part."""
    texts: list[str] = []
    for turn in turns:
        if turn.role == "assistant":
            texts.append(turn.text)
        else:
            texts += [part.text for part in turn.parts if not isinstance(part, ImageRef)]
    return tuple(texts)


def controls_of(turns: Sequence[Turn], texts: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return, for each of a rendering's texts, where the encoder itself wrote marks of boxes into it.

    Args:
        turns: what was rendered.
        texts: its texts in the order of `texts_of`, as the template wrote them: some trim.
    """
    found: list[tuple[str, list[tuple[int, int]]]] = []
    for turn in turns:
        parts = [part for part in turn.parts if isinstance(part, Text)]
        for group in [parts] if turn.role == "assistant" else [[part] for part in parts]:
            text, spans = "", []
            for part in group:
                spans += [(start + len(text), end + len(text)) for start, end in part.controls]
                text += part.text
            found.append((text, spans))
    shifts = [max(0, whole.find(text)) for (whole, _), text in zip(found, texts, strict=True)]
    return tuple(
        tuple((start - shift, end - shift) for start, end in spans)
        for (_, spans), shift in zip(found, shifts, strict=True)
    )


def choose_sentinels(texts: Sequence[str]) -> tuple[str, ...]:
    """Return one private-use character per text, none of them in any text.

    Raises:
        RenderingError: the texts use up the private-use planes.
    """
    used = set().union(*map(set, texts)) if texts else set()
    free: list[str] = []
    for plane in _PLANES:
        for code in range(plane, plane + _PLANE_SIZE):
            if len(free) == len(texts):
                return tuple(free)
            if chr(code) not in used:
                free.append(chr(code))
    raise RenderingError(f"{len(texts)} texts in one conversation are more than can be kept apart.")


def prompt_turns(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the turns before the last assistant turn that is trained on; all of them where there is none."""
    answers = [number for number, turn in enumerate(turns) if turn.is_answer]
    return turns[: answers[-1]] if answers else turns


def split_at(rendered: str, sentinels: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Split a rendering at its sentinels into the stretches between and the order of the texts.

    >>> split_at("<u>A</u><a>B</a>", ("A", "B"))
    (('<u>', '</u><a>', '</a>'), (0, 1))
    """
    numbers = {sentinel: number for number, sentinel in enumerate(sentinels)}
    literals, order = [""], []
    for piece in re.split("([" + "".join(map(re.escape, sentinels)) + "])", rendered) if sentinels else [rendered]:
        if piece in numbers:
            order.append(numbers[piece])
            literals.append("")
        else:
            literals[-1] += piece
    return tuple(literals), tuple(order)


def common_prefix(left: str, right: str) -> str:
    """Return the longest string that both start with."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return left[:length]


logger = logging.getLogger(__name__)

_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model must produce in one assistant turn: `lead`, the turn's text, `tail`."""

    part: int
    """Index of the turn's text among the conversation's texts."""
    turn: int
    """Index of the turn."""
    lead: str
    """What the template writes between the generation prompt and the text (` ` after `Assistant:`)."""
    tail: str
    """What it writes after the text, up to and including the first eos token."""
    ended: bool
    """Whether `tail` ends with an eos token."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a template writes around the texts of one shape of conversation."""

    literals: tuple[str, ...]
    """The template's own stretches: one before, between and after the texts."""
    order: tuple[int, ...]
    """Which text stands between `literals[i]` and `literals[i + 1]`."""
    answers: tuple[Answer, ...] = ()
    """One per assistant turn that is trained on, in order."""

    def fill(self, texts: Sequence[str]) -> str:
        """Return the rendering with `texts` at their places."""
        filled = [self.literals[0]]
        for index, literal in zip(self.order, self.literals[1:], strict=True):
            filled += (texts[index], literal)
        return "".join(filled)


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """One conversation, rendered: `layout.fill(texts)` is the string to tokenize."""

    layout: Layout
    texts: tuple[str, ...]
    """The texts as the template wrote them (some templates trim)."""
    sentinels: tuple[str, ...]
    """One private-use character per text that none of the texts contains."""

    @property
    def aided(self) -> str:
        """The rendering with a sentinel in the place of every text."""
        return self.layout.fill(self.sentinels)


class ChatTemplate:
    """Renders conversations with one model's chat template and finds what the model must produce.

    Args:
        processor: a transformers processor; its `chat_template`, else its tokenizer's, is used.
        style: the family's conventions.
        eos_tokens: the strings of the tokens at which generation stops.
        eos_token: the one to append where the template ends the last answer without any.

    Raises:
        ModelError: the model has no chat template.
    """

    def __init__(self, processor: Any, style: RenderingStyle, *, eos_tokens: frozenset[str], eos_token: str) -> None:
        self._tokenizer = processor.tokenizer
        self._template = _template_of(processor)
        self._style = style
        self._eos_tokens = eos_tokens
        self._eos_token = eos_token
        self._placeholder = style.image_placeholder or getattr(processor, "image_token", None) or ""
        self._layouts: dict[object, Layout] = {}
        self._said: set[str] = set()
        self._as_string = style.content == "string" or (style.content == "auto" and self._wants_string())

    def render(self, conversation: Conversation) -> Rendering:
        """Render a whole conversation for training.

        Raises:
            RenderingError: the template refuses, drops, reorders or rewrites a turn.
        """
        return self._rendering(conversation.turns, conversation.source, prompt=False)

    def render_prompt(self, conversation: Conversation) -> Rendering:
        """Render everything before the last assistant turn that is trained on, with the generation prompt.

        Raises:
            RenderingError: as `render`.
        """
        return self._rendering(prompt_turns(conversation.turns), conversation.source, prompt=True)

    def _rendering(self, turns: Sequence[Turn], source: RowSource, *, prompt: bool) -> Rendering:
        texts = texts_of(turns)
        sentinels = choose_sentinels(texts)
        try:
            rendered = self._render(turns, texts, prompt=prompt)
            layout, edited = self._placed(turns, texts, rendered, prompt=prompt)
            if not prompt:
                layout = self._ended(layout)
        except _TEMPLATE_FAULTS as error:
            raise RenderingError(f"{source}: the model's chat template refuses this row: {error}") from error
        except RenderingError as error:
            raise RenderingError(f"{source}: {error}") from error
        return Rendering(layout=layout, texts=edited, sentinels=sentinels)

    def _placed(
        self, turns: Sequence[Turn], texts: tuple[str, ...], rendered: str, *, prompt: bool
    ) -> tuple[Layout, tuple[str, ...]]:
        """Return the layout and the texts as rendered; together they must give `rendered`."""
        # A template may write the date: a kept layout that no longer fits is analysed afresh.
        for fresh in (False, True):
            layout = self._layout(turns, prompt=prompt, fresh=fresh)
            if layout.fill(texts) == rendered:
                return layout, texts
            edited = _edited(layout, texts, rendered)
            if edited is not None:
                return layout, edited
        raise RenderingError(_rewritten(layout, turns, texts, rendered))

    def _layout(self, turns: Sequence[Turn], *, prompt: bool, fresh: bool) -> Layout:
        key = (
            prompt,
            tuple((turn.role, turn.supervised, *(isinstance(p, ImageRef) for p in turn.parts)) for turn in turns),
        )
        if fresh or key not in self._layouts:
            self._layouts[key] = self._analyse(turns, prompt=prompt)
        return self._layouts[key]

    def _analyse(self, turns: Sequence[Turn], *, prompt: bool) -> Layout:
        literals, order = self._split(turns, prompt=prompt)
        count = len(texts_of(turns))
        if len(set(order)) < len(order):
            raise RenderingError("the chat template writes the text of a turn twice.")
        for missing in set(range(count)) - set(order):
            role, number = _owner(turns, missing)
            raise RenderingError(
                f"the chat template leaves out the text of turn {number} ({role}). Remove that turn or part "
                "from the data, or give the model a chat template that writes it."
            )
        layout = Layout(literals=literals, order=order)
        if prompt:
            return layout
        answers: list[Answer] = []
        part = 0
        for number, turn in enumerate(turns):
            if turn.is_answer:
                answers.append(self._answer(turns, number, part, layout))
            part += len(texts_of([turn]))
        return Layout(literals=literals, order=order, answers=tuple(answers))

    def _answer(self, turns: Sequence[Turn], number: int, part: int, layout: Layout) -> Answer:
        if number == 0:
            raise RenderingError(
                "the conversation begins with an answer, to which nothing leads. Remove that turn, or put the user's "
                "before it."
            )
        place = layout.order.index(part)
        before, after = layout.literals[place], layout.literals[place + 1]
        lead = self._lead(turns[:number], before)
        if number < len(turns) - 1:
            literals, order = self._split(turns[: number + 1], prompt=False)
            after = common_prefix(after, literals[order.index(part) + 1])
        ends = [after.find(token) + len(token) for token in self._eos_tokens if token in after]
        tail = after[: min(ends)] if ends else after.rstrip()
        return Answer(part=part, turn=number, lead=lead, tail=tail, ended=bool(ends))

    def _lead(self, turns: Sequence[Turn], before: str) -> str:
        """Return what follows the generation prompt before the answer's text.

        Only the stretch since the last text is compared: some templates write earlier turns differently
        once later ones exist, which does not move this turn's header.
        """
        prompted = self._split(turns, prompt=True)[0][-1]
        common = common_prefix(before, prompted)
        lead = before[len(common) :]
        if len(common) == len(prompted):
            return lead
        if lead.strip():
            raise RenderingError(
                f"the chat template prompts an answer with {prompted[len(common) :]!r} but writes "
                f"{lead!r} there in a finished turn, so what the model must produce is not defined."
            )
        self._say(
            "The chat template prompts answers with %r, which its finished turns do not contain: there the "
            "supervised tokens start with the answer's text.",
            prompted[len(common) :],
        )
        return ""

    def _ended(self, layout: Layout) -> Layout:
        """Return the layout with the last answer ended by an eos, appended where the template has none."""
        if not layout.answers or layout.answers[-1].ended:
            return layout
        last = layout.answers[-1]
        if layout.order[-1] != last.part:
            return layout
        if not self._style.append_eos:
            raise RenderingError("the chat template ends the last answer without an eos token.")
        self._say(
            "The chat template ends no answer with an eos token: %r is appended after the last answer, or "
            "the model would never learn to stop.",
            self._eos_token,
        )
        tail = last.tail + self._eos_token
        ended = Answer(part=last.part, turn=last.turn, lead=last.lead, tail=tail, ended=True)
        return Layout(literals=(*layout.literals[:-1], tail), order=layout.order, answers=(*layout.answers[:-1], ended))

    def _split(self, turns: Sequence[Turn], *, prompt: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
        sentinels = choose_sentinels(texts_of(turns))
        return split_at(self._render(turns, sentinels, prompt=prompt), sentinels)

    def _render(self, turns: Sequence[Turn], texts: Sequence[str], *, prompt: bool) -> str:
        messages = self._messages(turns, texts)
        rendered: str = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=prompt
        )
        return rendered

    def _messages(self, turns: Sequence[Turn], texts: Sequence[str]) -> list[dict[str, Any]]:
        remaining = iter(texts)
        images = 0
        messages: list[dict[str, Any]] = []
        for turn in turns:
            parts: list[dict[str, str]] = []
            if turn.role == "assistant":
                if any(isinstance(part, ImageRef) for part in turn.parts):
                    raise RenderingError("an assistant turn holds an image: a model that writes text cannot learn it.")
                parts.append({"type": "text", "text": next(remaining)})
            else:
                for part in turn.parts:
                    image = isinstance(part, ImageRef)
                    images += image
                    if image and self._as_string:
                        parts.append({"type": "text", "text": self._placeholder.format(n=images)})
                    else:
                        parts.append({"type": "image"} if image else {"type": "text", "text": next(remaining)})
            content = "".join(part["text"] for part in parts) if self._as_string else parts
            messages.append({"role": turn.role, "content": content})
        return messages

    def _wants_string(self) -> bool:
        """Try a list of parts; True where the template fails on it or does not write its text as text."""
        sentinel = FIRST_SENTINEL
        messages = [{"role": "user", "content": [{"type": "text", "text": sentinel}]}]
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except _TEMPLATE_FAULTS:
            return True
        return rendered.count(sentinel) != 1 or "'type'" in rendered

    def _say(self, message: str, *values: object) -> None:
        """Log a message about the template once."""
        text = message % values
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)


def _template_of(processor: Any) -> str:
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise ModelError(
            f"{type(processor).__name__} has no chat template. Put a chat_template.jinja next to the model's "
            "processor files, or take the instruction-tuned version of the model."
        )
    return template


def _edited(layout: Layout, texts: Sequence[str], rendered: str) -> tuple[str, ...] | None:
    """Return the texts as a trimming template wrote them, or None where that does not give `rendered`."""
    edited = list(texts)

    def place(index: int, start: int) -> bool:
        literal = layout.literals[index]
        if not rendered.startswith(literal, start):
            return False
        start += len(literal)
        if index == len(layout.order):
            return start == len(rendered)
        part = layout.order[index]
        text = texts[part]
        for candidate in dict.fromkeys((text, text.strip(), text.rstrip(), text.lstrip())):
            if rendered.startswith(candidate, start) and place(index + 1, start + len(candidate)):
                edited[part] = candidate
                return True
        return False

    return tuple(edited) if place(0, 0) else None


def _owner(turns: Sequence[Turn], part: int) -> tuple[str, int]:
    """Return role and number of the turn that holds text `part`."""
    for number, turn in enumerate(turns):
        part -= len(texts_of([turn]))
        if part < 0:
            return turn.role, number
    raise IndexError(part)


def _rewritten(layout: Layout, turns: Sequence[Turn], texts: Sequence[str], rendered: str) -> str:
    """Say which turn's text the template changed: the first after which the rendering differs."""
    expected = layout.fill(texts)
    same = len(common_prefix(expected, rendered))
    position = 0
    changed = layout.order[-1] if layout.order else 0
    for literal, part in zip(layout.literals, layout.order, strict=False):
        position += len(literal) + len(texts[part])
        if same < position:
            changed = part
            break
    role, number = _owner(turns, changed)
    return (
        f"the chat template rewrites the text of turn {number} ({role}) or what stands next to it: it writes "
        f"{rendered[max(0, same - 20) : same + 40]!r} where the row would give "
        f"{expected[max(0, same - 20) : same + 40]!r}. Labels on such a row would be wrong: bring the text "
        "into the form that the template writes, for example without reasoning tags."
    )
