"""Families without a chat template that read a question as a prefix and write an answer as the suffix."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lora.batching.chat.layouts import Answer, Layout, Rendering, choose_sentinels
from vlm_lora.batching.chat.slots import slots_of
from vlm_lora.batching.rendering import prompt_turns
from vlm_lora.data.conversation import Conversation, ImageRef, Turn
from vlm_lora.errors import RenderingError


class PrefixSuffix:
    """Renders one question and one answer (PaliGemma): images first, then the question; the answer apart.

    The processor itself writes bos, the line break behind the question, and the eos behind the answer.

    Args:
        image_token: the processor's placeholder.
        eos_token: what the processor writes behind the answer.
    """

    def __init__(self, *, image_token: str, eos_token: str) -> None:
        self._image_token = image_token
        self._eos_token = eos_token

    def render(self, conversation: Conversation) -> Rendering:
        """Render for training: the last text is the suffix.

        Raises:
            RenderingError: the conversation is not one question and one answer.
        """
        self._check(conversation, ("user", "assistant"))
        prefix = self._prefix(conversation.turns[:1])
        part = len(prefix.texts)
        answer = Answer(part=part, turn=1, lead="", tail=self._eos_token, ended=True)
        texts = (*prefix.texts, conversation.turns[1].text)
        answers = (answer,) if conversation.turns[1].supervised else ()
        layout = Layout(literals=(*prefix.layout.literals, ""), order=(*prefix.layout.order, part), answers=answers)
        return Rendering(layout=layout, texts=texts, sentinels=choose_sentinels(texts))

    def render_prompt(self, conversation: Conversation) -> Rendering:
        """Render the question alone.

        Raises:
            RenderingError: there is more than one question.
        """
        turns = prompt_turns(conversation.turns)
        if [turn.role for turn in turns] != ["user"]:
            self._check(conversation, ("user", "assistant"))
        return self._prefix(turns)

    def _prefix(self, turns: Sequence[Turn]) -> Rendering:
        texts = tuple(slot.text for slot in slots_of(turns, inline=False))
        images = sum(isinstance(part, ImageRef) for turn in turns for part in turn.parts)
        literals = (self._image_token * images, *([""] * len(texts)))
        layout = Layout(literals=literals, order=tuple(range(len(texts))))
        return Rendering(layout=layout, texts=texts, sentinels=choose_sentinels(texts))

    @staticmethod
    def _check(conversation: Conversation, roles: tuple[str, ...]) -> None:
        if conversation.tools or any(turn.reasoning or turn.tool_calls for turn in conversation.turns):
            raise RenderingError(
                f"{conversation.source}: this model has no chat template, so it takes no tools, calls or thoughts "
                "beside the texts. Write them into the texts, or leave them out."
            )
        found = tuple(turn.role for turn in conversation.turns)
        if found != roles:
            raise RenderingError(
                f"{conversation.source}: this model reads one question and writes one answer (user, "
                f"assistant); the row has {', '.join(found) or 'no turns'}. Split the conversation into "
                "single questions, and put a system text into the question."
            )
