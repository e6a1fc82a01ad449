"""A conversation as its model's chat template writes it, with every text at a known place.

How the places are found: the template renders the conversation twice, once as it is and once with every
text replaced by a private-use character. What stands between those characters is the template's own
writing (`Layout`); putting the texts back must give the first rendering exactly, or the row is refused.
A layout depends on roles, kinds of parts, tools and which answers are trained on only, so it is analysed once and kept.
What the model must produce there `chat.answers` finds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.batching.chat.answers import AnswerFinder, Found
from vlm_lora.batching.chat.dialect import TEMPLATE_FAULTS, Dialect, Marking, controls_of, told_by
from vlm_lora.batching.chat.layouts import (
    FIRST_SENTINEL,
    Answer,
    Layout,
    Rendering,
    choose_sentinels,
    common_prefix,
    edited,
    split_at,
)
from vlm_lora.batching.chat.slots import CLOSES, OPENS, Chat, Slot, marks_of, slots_of
from vlm_lora.batching.style import RenderingStyle
from vlm_lora.data.conversation import Conversation, ImageRef, Role, RowSource, Text, Turn
from vlm_lora.errors import ModelError, RenderingError, ThinkingError

logger = logging.getLogger(__name__)

_KEPT_LAYOUTS = 1024
"""Layouts that are kept; tools and calls make new ones row by row."""


def prompt_turns(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the turns before the last assistant turn that is trained on; all of them where there is none."""
    answers = [number for number, turn in enumerate(turns) if turn.is_answer]
    return turns[: answers[-1]] if answers else turns


@dataclass(frozen=True, kw_only=True)
class _Analysis:
    """One shape of conversation."""

    written: Layout
    """As the template writes it."""
    found: Found
    """As it is trained on."""


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
        self._layouts: dict[object, _Analysis] = {}
        self._said: set[str] = set()
        self._string_roles = self._roles_of_strings()
        self._dialect = Dialect(self._template, self._apply, self._content)
        self._controls = controls_of(self._tokenizer, eos_tokens)
        self._finder = AnswerFinder(
            self._split, eos_tokens=eos_tokens, takes_thoughts=self._takes_thoughts, say=self._say
        )

    def render(self, conversation: Conversation) -> Rendering:
        """Render a whole conversation for training.

        Raises:
            RenderingError: the template refuses, drops, reorders or rewrites a turn.
        """
        return self._rendering(conversation.turns, conversation, prompt=False)

    def render_prompt(self, conversation: Conversation) -> Rendering:
        """Render everything before the last assistant turn that is trained on, with the generation prompt.

        Raises:
            RenderingError: as `render`.
        """
        return self._rendering(tuple(prompt_turns(conversation.turns)), conversation, prompt=True)

    def _rendering(self, turns: tuple[Turn, ...], conversation: Conversation, *, prompt: bool) -> Rendering:
        source: RowSource = conversation.source
        try:
            chat = self._chat(turns, conversation.tools)
            try:
                layout, texts = self._placed(chat, prompt=prompt)
            except ThinkingError:
                raise
            except RenderingError:
                plain = self._chat(turns, conversation.tools, blank=False)
                if plain.slots == chat.slots:
                    raise
                chat = plain  # the template leaves out what it writes around a text where that is blank
                layout, texts = self._placed(chat, prompt=prompt)
            self._check_given(chat, prompt=prompt)
            if not prompt:
                layout = self._ended(chat, layout)
        except TEMPLATE_FAULTS as error:
            raise RenderingError(f"{source}: the model's chat template refuses this row: {error}") from error
        except RenderingError as error:
            raise type(error)(f"{source}: {error}") from error
        sentinels = choose_sentinels(texts, chat.given)
        return Rendering(layout=layout, texts=texts, sentinels=sentinels, marks=marks_of(chat.slots, texts))

    def _chat(self, turns: tuple[Turn, ...], tools: tuple[str, ...], *, blank: bool = True) -> Chat:
        """Number the texts of a conversation."""
        thinks = any(turn.role == "assistant" and CLOSES in turn.text for turn in turns)
        cuts = self._dialect.cuts if thinks else None
        if cuts == "key":
            turns = tuple(_by_key(turn) if turn.role == "assistant" else turn for turn in turns)
        self._check_ends(turns)
        if any(turn.reasoning.strip() for turn in turns) and self._dialect.reasoning_key is None:
            raise ThinkingError(
                "the row has thoughts beside an answer's text, and the model's chat template takes none. Write them "
                "into the turn's text as the model is to write them, or leave them out."
            )
        return Chat(turns=turns, slots=slots_of(turns, inline=cuts == "text", blank=blank), tools=tools)

    def _check_ends(self, turns: tuple[Turn, ...]) -> None:
        """Refuse answers whose thoughts begin and do not end, where the template knows thoughts: they were cut off."""
        for number, turn in enumerate(turns, start=1):
            begins = turn.is_answer and turn.text.lstrip().startswith(OPENS) and CLOSES not in turn.text
            if begins and (self._dialect.reasoning_key is not None or self._dialect.cuts is not None):
                raise ThinkingError(
                    f"the answer of turn {number} begins with {OPENS} and has no {CLOSES}: its thoughts lead to no "
                    "text, or were cut off. Complete it, or leave the row out."
                )

    def _placed(self, chat: Chat, *, prompt: bool) -> tuple[Layout, tuple[str, ...]]:
        """Return the layout to train on and the texts as rendered; as the template has it they must give its writing.

        Raises:
            RenderingError: they do not.
        """
        texts = chat.texts
        rendered = self._render(chat, texts, prompt=prompt)
        # A template may write the date: a kept layout that no longer fits is analysed afresh.
        for fresh in (False, True):
            analysis = self._analysis(chat, prompt=prompt, fresh=fresh)
            written = texts if analysis.written.fill(texts) == rendered else edited(analysis.written, texts, rendered)
            if written is not None:
                found = analysis.found
                kept = (text.removeprefix(found.without.get(part, "")) for part, text in enumerate(written))
                return found.layout, (*kept, *[""] * found.layout.empty)
        raise RenderingError(_rewritten(analysis.written, chat, rendered))

    def _analysis(self, chat: Chat, *, prompt: bool, fresh: bool) -> _Analysis:
        key = (prompt, chat.shape)
        if fresh or key not in self._layouts:
            written = self._written(chat, prompt=prompt)
            found = Found(layout=written) if prompt else self._finder.find(chat, written)
            if len(self._layouts) >= _KEPT_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = _Analysis(written=written, found=found)
        return self._layouts[key]

    def _written(self, chat: Chat, *, prompt: bool) -> Layout:
        """Return what the template writes around the texts.

        Raises:
            RenderingError: it leaves a text out, or writes one twice.
        """
        layout = self._split(chat, prompt)
        if len(set(layout.order)) < len(layout.order):
            raise RenderingError("the chat template writes the text of a turn twice.")
        for missing in sorted(set(range(len(chat.slots))) - set(layout.order)):
            slot = chat.slots[missing]
            if slot.kind == "text":
                raise RenderingError(
                    f"the chat template leaves out the text of turn {slot.turn} ({chat.turns[slot.turn].role}). Remove "
                    "that turn or part from the data, or give the model a chat template that writes it."
                )
            if not prompt and not chat.is_last(slot.turn):
                self._say(
                    "The chat template leaves out the thoughts of an answer once the user asks again: such answers are "
                    "learnt without them."
                )
        return layout

    def _ended(self, chat: Chat, layout: Layout) -> Layout:
        """Return the layout with the last answer ended by an eos, appended where the template has none."""
        if not layout.answers or layout.answers[-1].ended:
            return layout
        last = layout.answers[-1]
        if layout.order[-1] != last.parts[1]:
            return layout
        if not self._style.append_eos:
            raise RenderingError("the chat template ends the last answer without an eos token.")
        eos_token = self._next_header(chat, last) or self._eos_token
        self._say(
            "The chat template ends no answer with an eos token: %r is appended after the last answer, or "
            "the model would never learn to stop.",
            eos_token,
        )
        tail = last.tail + eos_token
        return replace(
            layout,
            literals=(*layout.literals[:-1], tail),
            answers=(*layout.answers[:-1], replace(last, tail=tail, ended=True)),
        )

    def _next_header(self, chat: Chat, last: Answer) -> str | None:
        """Return the eos token that a further turn would put behind the last answer, or None.

        GLM's next turn begins with `<|user|>`, behind a call with `<|observation|>`: its models stop there.
        """
        turn = Turn(role="tool" if chat.turns[-1].tool_calls else "user", parts=(Text(text="?"),))
        slots = (*chat.slots, Slot(turn=len(chat.turns), text="?"))
        longer = replace(chat, turns=(*chat.turns, turn), slots=slots)
        sentinels = choose_sentinels(longer.texts, longer.given)
        try:
            rendered = self._render(longer, sentinels, prompt=False)
        except TEMPLATE_FAULTS:
            return None
        end = (sentinels[last.parts[1]] if last.parts[1] < len(chat.slots) else "") + last.tail
        return max((token for token in self._eos_tokens if end + token in rendered), key=len, default=None)

    def _split(self, chat: Chat, prompt: bool) -> Layout:
        sentinels = choose_sentinels(chat.texts, chat.given)
        literals, order = split_at(self._render(chat, sentinels, prompt=prompt), sentinels)
        return Layout(literals=literals, order=order)

    def _render(self, chat: Chat, texts: Sequence[str], *, prompt: bool) -> str:
        tools = [json.loads(tool) for tool in chat.tools]
        return self._apply(self._messages(chat, texts), add_generation_prompt=prompt, tools=tools)

    def _apply(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, tools: Sequence[Any] = ()
    ) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **({"tools": list(tools)} if tools else {}),
        )
        return rendered

    def _messages(self, chat: Chat, texts: Sequence[str]) -> list[dict[str, Any]]:
        images = 0
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(chat.turns):
            own = [(slot, text) for slot, text in zip(chat.slots, texts, strict=True) if slot.turn == number]
            if turn.role == "assistant":
                messages.append(self._answer(turn, own))
                continue
            remaining = (text for _, text in own)
            texts_alone = not any(isinstance(part, ImageRef) for part in turn.parts)
            as_string = turn.role in self._string_roles or (turn.role == "tool" and texts_alone)
            parts: list[dict[str, str]] = []
            for part in turn.parts:
                image = isinstance(part, ImageRef)
                images += image
                if image and as_string:
                    parts.append({"type": "text", "text": self._placeholder.format(n=images)})
                else:
                    parts.append({"type": "image"} if image else {"type": "text", "text": next(remaining)})
            content = "".join(part["text"] for part in parts) if as_string else parts
            ids = {"name": turn.name, "tool_call_id": turn.tool_call_id}
            messages.append({"role": turn.role, "content": content, **{k: v for k, v in ids.items() if v is not None}})
        return messages

    def _answer(self, turn: Turn, own: Sequence[tuple[Slot, str]]) -> dict[str, Any]:
        """Return an answer as a message."""
        if any(isinstance(part, ImageRef) for part in turn.parts):
            raise RenderingError("an assistant turn holds an image: a model that writes text cannot learn it.")
        message: dict[str, Any] = {"role": "assistant"}
        text = next((text for slot, text in own if slot.kind == "text"), None)
        for slot, thought in own:
            if slot.kind == "thought" and slot.inline:
                rest = turn.text.partition(CLOSES)[2] if text is None else text
                text = f"{slot.opening}{thought}{CLOSES}{rest}"
            elif slot.kind == "thought":
                message[str(self._dialect.reasoning_key)] = thought
        if turn.tool_calls:
            message["tool_calls"] = self._dialect.calls(turn.tool_calls)
        if text is None and turn.tool_calls and self._dialect.call_form is not None:
            message["content"] = self._dialect.call_form.empty
        else:
            message["content"] = self._content(turn.text if text is None else text)
        return message

    def _content(self, text: str) -> Any:
        return text if "assistant" in self._string_roles else [{"type": "text", "text": text}]

    def _check_given(self, chat: Chat, *, prompt: bool) -> None:
        """Refuse a row whose tools or calls the template does not write, or writes where they would be taken apart.

        Raises:
            RenderingError: names what is left out, or the control token inside.
        """
        if not chat.given:
            return
        tools = [json.loads(tool) for tool in chat.tools]
        messages = self._messages(chat, chat.texts)
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        for text in (inner for told in told_by(tools, calls) for inner in _opened(told)):
            if control := self._controls.search(text):
                raise RenderingError(
                    f"the row's tools or calls hold {control.group()!r}, which is a control token of this model. Write "
                    "it otherwise, or leave the row out."
                )
        marking = Marking((*chat.texts, *chat.given))
        messages, tools = marking.messages(messages), marking.tools(tools)
        missing = marking.missing(self._apply(messages, add_generation_prompt=prompt, tools=tools))
        if missing:
            raise RenderingError(
                f"the model's chat template leaves out {missing[0]!r} of the row's tools or calls"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + ". Write the tools into the system turn's text and calls into the answer's, or leave them out."
            )

    def _takes_thoughts(self) -> bool:
        return self._dialect.reasoning_key is not None

    def _roles_of_strings(self) -> frozenset[Role]:
        """Return the roles whose content the template takes as a string, as parts it fails or writes something else.

        Where it takes a user's parts, answers and system turns are tried out as well: GLM-4.1V writes an answer's parts
        as Python would. What a tool says is a string wherever it holds no image.
        """
        parts = [{"type": "text", "text": FIRST_SENTINEL}]
        if self._style.content == "string":
            return frozenset(("user", "assistant", "system", "tool"))
        asked: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        if self._style.content == "auto" and not self._writes([{**asked, "content": parts}]):
            return frozenset(("user", "assistant", "system", "tool"))
        tried: dict[Role, Callable[[Any], list[Any]]] = {
            "assistant": lambda content: [asked, {"role": "assistant", "content": content}],
            "system": lambda content: [{"role": "system", "content": content}, asked],
        }
        strings = (
            r for r, chat in tried.items() if not self._writes(chat(parts)) and self._writes(chat(parts[0]["text"]))
        )
        return frozenset(strings) if self._style.content == "auto" else frozenset()

    def _writes(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the template writes the sentinel in messages once, and as text."""
        try:
            rendered = self._apply(messages, add_generation_prompt=messages[-1]["role"] == "user")
        except TEMPLATE_FAULTS:
            return False
        return rendered.count(FIRST_SENTINEL) == 1 and "'type'" not in rendered and '"type"' not in rendered

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


def _by_key(turn: Turn) -> Turn:
    """Return an answer with the thoughts of its text beside it; as it is where it has others, or more than one."""
    before, _, text = turn.text.partition(CLOSES)
    left, _, thought = before.rpartition(OPENS)
    if CLOSES not in turn.text or CLOSES in text or left.strip() or turn.reasoning.strip():
        return turn
    return replace(turn, reasoning=thought.strip("\n"), parts=(Text(text=text.lstrip("\n")),))


def _opened(text: str) -> Iterator[str]:
    """Yield a text, and where it is JSON, what its strings say."""
    yield text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    yield from told_by([value], [])


def _rewritten(layout: Layout, chat: Chat, rendered: str) -> str:
    """Say which turn's text the template changed: the first after which the rendering differs."""
    texts = chat.texts
    expected = layout.fill(texts)
    same = len(common_prefix(expected, rendered))
    position = 0
    changed = layout.order[-1] if layout.order else 0
    for literal, part in zip(layout.literals, layout.order, strict=False):
        position += len(literal) + len(texts[part])
        if same < position:
            changed = part
            break
    number = chat.slots[changed].turn
    return (
        f"the chat template rewrites the text of turn {number} ({chat.turns[number].role}) or what stands next to it: "
        f"it writes {rendered[max(0, same - 20) : same + 40]!r} where the row would give "
        f"{expected[max(0, same - 20) : same + 40]!r}. Labels on such a row would be wrong: bring the text "
        "into the form that the template writes, for example without reasoning tags."
    )
