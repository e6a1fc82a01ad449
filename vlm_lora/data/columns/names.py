"""Names by which columns, turns and parts are known: the tables that detection and conversion share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlm_lora.data.conversation import Role

ColumnRole = Literal["image", "prompt", "response", "messages", "boxes", "page"]


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """How columns of one role are usually called, and the flag that settles it."""

    flag: str
    usual: tuple[str, ...]
    fallback: tuple[str, ...] = ()
    """Names that count only where no usual one is there, because they often mean something else."""


COLUMN_NAMES: Mapping[ColumnRole, ColumnNames] = {
    "image": ColumnNames(
        flag="--image_column",
        usual=(
            *("image", "images", "image_path", "image_paths", "image_file", "image_files", "img", "img_path"),
            *("picture", "pictures", "image_url", "image_urls", "image_bytes", "image_base64", "image_base64_str"),
        ),
        fallback=("file_name", "file_names", "filename"),
    ),
    "prompt": ColumnNames(
        flag="--prompt_column",
        usual=("query", "question", "prompt", "instruction", "problem", "user_prompt"),
        fallback=("input", "text_input", "questions"),
    ),
    "response": ColumnNames(
        flag="--response_column",
        usual=("label", "labels", "answer", "answers", "response", "output", "outputs", "completion", "target"),
        fallback=(
            *("caption", "captions", "annotations_captions", "solution", "ground_truth", "text_output"),
            "correct_choice_idx",
        ),
    ),
    "messages": ColumnNames(
        flag="--messages_column",
        usual=("messages", "conversations", "conversation", "chat", "dialog", "dialogue"),
    ),
    "boxes": ColumnNames(flag="--boxes_column", usual=("objects",)),
    "page": ColumnNames(flag="--page_column", usual=("text", "ocr", "json", "page", "annotation", "annotations")),
}

CAPTIONS = ("caption", "captions", "annotations_captions")
"""Answers that need no question of their own."""

TEXTS = ("text", "html_table", "latex", "markdown", "transcription", "transcript")
"""Columns of texts that are the answers where --default_prompt asks and no column is called as answers are."""

CAPTION_QUESTION = "Describe the picture."
"""What is asked for a caption."""

CONTEXT_OF_PROMPT: Mapping[str, tuple[str, ...]] = {"instruction": ("input", "inputs"), "question": ("hint",)}
"""The columns that continue a prompt, where they are not empty, as in Alpaca, M3IT, ScienceQA and MMBench."""

NOTHING = "nan"
"""What pandas writes for a missing text; such a context, or choice, is not there."""

TURN_KEYS: tuple[tuple[str, str], ...] = (("role", "content"), ("from", "value"), ("role", "parts"))
"""Keys of a turn: OpenAI's, ShareGPT's, whose user texts mark images by `<image>`, and Gemini's."""

MARKS = (
    *("weight", "loss", "loss_mask", "loss_weight", "loss_scale"),
    *("train", "training", "trainable", "train_on_turn", "supervised"),
)
"""Keys (case does not count) that say whether a turn is trained on: 1 or true, 0 or false."""

CALL_ROLES = ("tool_call", "function_call")
"""Roles of turns whose text is a call (ms-swift's, LLaMA-Factory's): they are answers."""

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    **dict.fromkeys(CALL_ROLES, "assistant"),
    **dict.fromkeys(("tool", "tool_response", "observation", "function"), "tool"),
}
"""What a turn's (case-folded) role is called in the data."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of an answer (case does not count) with its thoughts."""

CALL_KEYS = ("tool_calls", "tool_call", "function_call")
"""Keys of an answer with what it calls."""

TOOL_KEYS = ("tools", "functions")
"""Keys of a turn, and columns, with descriptions of what answers may call."""

TEXT_PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "value", "content"),
    "input_text": ("text",),
    "output_text": ("text",),
}
"""Type of a text part to the keys that may hold its text; the first that is not null counts."""

IMAGE_PARTS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "path", "url", "bytes", "image_url", "value", "base64", "source", "data"),
    "image_url": ("image_url", "url", "value", "image"),
    "input_image": ("image_url",),
}
"""Type of an image part to the keys that may hold its image; with all of them null it takes the next
image of the image column."""

SHOWN_BY_KEY = ("image", "image_url", "inline_data", "inlineData", "file_data", "fileData")
"""Keys that say that a part without a type, or one that has a text, shows an image; the last four are Gemini's."""

PLACEHOLDER = "<image>"
"""Marks an image's place in ShareGPT-style user text."""


def role_of_name(column: str) -> ColumnRole | None:
    """Return the role that columns of this name usually have, or None."""
    folded = column.casefold()
    return next((role for role, names in COLUMN_NAMES.items() if folded in names.usual + names.fallback), None)
