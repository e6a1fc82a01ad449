"""Questions put one after the other to one model, which sees the earlier ones with their answers."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lora.data.conversation import Conversation, ImageRef, ImageSource, Part, RowSource, Text, Turn
from vlm_lora.evaluation.generation import Answerer, Reply


class Dialogue:
    """A conversation with a model that is loaded once.

    Args:
        answerer: generates.
        system_prompt: what stands before the first question; None for nothing.
    """

    def __init__(self, answerer: Answerer, system_prompt: str | None = None) -> None:
        self._answerer = answerer
        self._system = (Turn(role="system", parts=(Text(text=system_prompt),)),) if system_prompt else ()
        self._turns: tuple[Turn, ...] = ()

    def ask(self, prompt: str, images: Sequence[ImageSource] = ()) -> Reply:
        """Return the answer to a question about new images and all that was said before.

        Raises:
            DataError: an image that cannot be used, or more tokens than the model takes. The question is forgotten.
        """
        parts: tuple[Part, ...] = (*(ImageRef(source=image) for image in images), Text(text=prompt))
        question = Turn(role="user", parts=parts)
        turns = (*self._system, *self._turns, question, Turn(role="assistant", parts=(Text(text=""),)))
        (reply,) = self._answerer.reply([Conversation(turns=turns, source=RowSource(file="the conversation"))])
        said = reply.text.rpartition("</think>")[2].strip()  # models are not shown their earlier thoughts
        self._turns = (*self._turns, question, Turn(role="assistant", parts=(Text(text=said),)))
        return reply

    def begin_anew(self) -> None:
        """Forget all questions, images and answers."""
        self._turns = ()
