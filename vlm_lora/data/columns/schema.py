"""Which columns are the image, the question, the answer, the chat: detected from the first rows.

An explicit mapping wins. One candidate for a role is taken, several are an error that names the flag to
type, none is an error that lists what was seen and what is accepted. Detection never decodes an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.annotations import Marked, how_boxes_are_written, read_boxes, read_pages, refuse_two_answers
from vlm_lora.data.columns.answers import AnswerReading, describe_answers, refuse_bare_choices
from vlm_lora.data.columns.names import (
    CAPTION_QUESTION,
    CAPTIONS,
    COLUMN_NAMES,
    CONTEXT_OF_PROMPT,
    IMAGE_PARTS,
    PLACEHOLDER,
    ROLES,
    ColumnRole,
)
from vlm_lora.data.columns.search import (
    SAMPLE,
    ColumnSearch,
    Images,
    explain_text_only,
    find_images,
    read_mapping,
    where_from,
)
from vlm_lora.data.conversations.grounding import COLUMN as OBJECTS
from vlm_lora.data.conversations.grounding import box_written_in, holds_references
from vlm_lora.data.conversations.region_rows import SIDES, SIZE_COLUMNS
from vlm_lora.data.conversations.texts import OTHER_MARKS, parse_turns, texts_in
from vlm_lora.data.conversations.turns import HISTORY, Told, find_told
from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.ocr.boxes import BoxReading
from vlm_lora.data.ocr.task_answers import PageReading
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

Layout = Literal["question_answer", "caption", "messages", "prompt_completion", "boxes", "page"]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What each column is taken as. Columns that a layout does not use are None."""

    layout: Layout
    """One question and answer, an answer to one question for all rows, one chat, a chat prompt with a chat completion,
    boxes, or a page of OCR data."""
    image: str | None = None
    more_images: tuple[str, ...] = ()
    """Further columns of images, in the order in which theirs follow."""
    either: bool = False
    """Whether a row has its images in one of these columns alone."""
    prompt: str | None = None
    question: str | None = None
    """Asked of every row, where no column asks."""
    context: str | None = None
    """Alpaca's `input`: continues the prompt on a new line where it is not empty."""
    response: str | None = None
    answers: AnswerReading = field(default_factory=AnswerReading)
    """What the response is besides text."""
    messages: str | None = None
    boxes: BoxReading | None = None
    page: PageReading | None = None
    objects: str | None = None
    """Column whose names and boxes fill marks in the texts."""
    told: Told = field(default_factory=Told)
    """What was said before the question: system texts and histories."""
    show_choices: bool = False
    """Whether choices in columns of their own are shown behind the question."""
    as_they_are: bool = False
    """Whether the answers' column, or the chat's, was named: a bare letter of a choice is then trained on."""
    no_pictures: bool = False
    """Whether the user said that there are none: parts for images and ShareGPT's marks are left out, and `<image>` in
    any other text is a word."""
    reasons: tuple[str, ...] = ()

    @property
    def names_places(self) -> bool:
        """Whether questions or answers are made from boxes, so that it matters how a model counts."""
        return self.boxes is not None or self.objects is not None or bool(self.questions_for_boxes)

    @property
    def questions_for_boxes(self) -> tuple[str, ...]:
        """The questions that the user set, or a task file has, about boxes."""
        one = () if self.boxes is None or self.boxes.question is None else (self.boxes.question,)
        tasks = () if self.page is None else self.page.tasks
        return (*one, *(task.question for task in tasks if "box" in (task.given, *task.output.split(","))))

    @cached_property
    def columns(self) -> frozenset[str]:
        """All columns that say something."""
        found = {
            self.image,
            *self.more_images,
            self.prompt,
            self.context,
            self.response,
            self.messages,
            self.objects,
            *self.told.columns,
        }
        if self.boxes is not None:
            found |= {self.boxes.column, self.boxes.prompt, *SIZE_COLUMNS, *SIDES}
        if self.page is not None:
            found |= {self.page.column, *SIZE_COLUMNS, *SIDES}
        return frozenset(column for column in found if column is not None)

    def explain(self) -> str:
        """Say in lines of text what was taken as what, and why."""
        return "\n".join((f"layout: {self.layout}", *self.reasons))


def detect_schema(rows: Rows, config: DataConfig, *, quiet: bool = False) -> Schema:
    """Find out what the columns mean.

    Args:
        rows: of one split; the first ones are looked at.
        config: the flags.
        quiet: whether to warn of nothing, as for rows that were looked at before.

    Raises:
        DataError: A mapped column that is not there, several candidates for a role, or none.
    """
    sample = [rows[i] for i in range(min(len(rows), SAMPLE))]
    search = ColumnSearch(columns=rows.columns, sample=sample, where=where_from(rows), place=rows.source, quiet=quiet)
    mapped = read_mapping(search, config)
    pictures = find_images(search, mapped.get("image"))
    schema = replace(_detect(rows, search, config, mapped, pictures), more_images=pictures.more, either=pictures.either)
    told = find_told(rows.columns, schema.columns)
    schema = replace(
        schema,
        told=told,
        as_they_are=bool(config.response_column or config.messages_column),
        reasons=(*schema.reasons, *told.explain(config.system_prompt)),
    )
    if schema.layout in ("messages", "question_answer", "prompt_completion"):
        schema = _with_objects(schema, search, config)
    unused = [column for column in rows.columns if column not in schema.columns]
    return replace(schema, reasons=(*schema.reasons, f"not used: {quoted(unused)}")) if unused else schema


def _with_objects(schema: Schema, search: ColumnSearch, config: DataConfig) -> Schema:
    """Take a column of objects as what marks in the texts stand for; say what becomes of boxes in the texts."""
    told = [text for row in search.sample for text in texts_in([row.get(c) for c in schema.columns])]
    written = box_written_in(told)
    if written is not None:
        why = f"boxes that the texts write out ({written}) stay as they are, whatever --box_coordinates says"
        schema = replace(schema, reasons=(*schema.reasons, why))
    columns = [c for c in search.columns if c.casefold() == OBJECTS and c not in schema.columns]
    column = next((c for c in columns if any(map(holds_references, search.values(c)))), None)
    if column is None:
        return schema
    why = f"objects: column '{column}' fills <ref-object> and <bbox> in the texts, in order"
    return replace(schema, objects=column, reasons=(*schema.reasons, why, how_boxes_are_written(config)))


def _detect(
    rows: Rows, search: ColumnSearch, config: DataConfig, mapped: Mapping[ColumnRole, str], pictures: Images
) -> Schema:
    if "boxes" in mapped or "page" in mapped:
        return _marked_schema(rows, search, config, mapped, pictures)
    if "messages" in mapped:
        return _chat_schema(search, mapped["messages"], "named by --messages_column", pictures)
    marked = Marked.among(rows.columns, search.sample)
    holders = (*marked.boxes, *marked.pages)
    prompts = [c for c in search.named("prompt") if c not in holders]
    responses = [c for c in search.named("response") if c not in holders]
    asks_for_boxes = marked.boxes and not responses and "response" not in mapped
    if ("prompt" in mapped or "response" in mapped) and not asks_for_boxes:
        return _pair_schema(rows, search, config, mapped, pictures)
    chats = _without_history([c for c in rows.columns if search.has_chat(c)], alone=not (prompts and responses))
    separate = [c for c in chats if c not in prompts and c not in responses]
    if holders:
        tasks_named = bool(config.tasks or config.task_file or config.output_types)
        refuse_two_answers(search.where, marked, chats, () if tasks_named and not responses else prompts, responses)
        return _marked_schema(rows, search, config, {**mapped, **_single_mark(search, marked)}, pictures)
    if separate and len(prompts) == 1 and len(responses) == 1:
        raise DataError(
            f"{search.where} has a chat column ({quoted(separate)}) and a question with an answer "
            f"('{prompts[0]}', '{responses[0]}').{search.odd_rows([*separate, prompts[0], responses[0]])} "
            f"Type --messages_column {separate[0]}, or "
            f"--prompt_column {prompts[0]} --response_column {responses[0]}."
        )
    if separate or (chats and not (prompts and responses)):
        column = search.single("messages", separate or chats)
        return _chat_schema(search, column, "its values are lists of turns", pictures)
    return _pair_schema(rows, search, config, mapped, pictures)


def _without_history(chats: Sequence[str], *, alone: bool) -> list[str]:
    """Return the columns of chats that are no history; where it may be the only chat, a history is one."""
    others = [column for column in chats if column.casefold() not in HISTORY]
    return others if others or not alone else [*chats]


def find_image_column(rows: Rows, config: DataConfig) -> str:
    """Return the column that holds the images, whatever the others mean.

    Raises:
        DataError: None, several, or one that is named and not there.
    """
    sample = [rows[i] for i in range(min(len(rows), SAMPLE))]
    search = ColumnSearch(columns=rows.columns, sample=sample, where=where_from(rows), place=rows.source)
    found = find_images(search, read_mapping(search, config).get("image"))
    if found.more:
        raise DataError(
            f"{search.where}: {quoted([str(found.column), *found.more])} all hold images, and a tar takes those of one "
            "column. Put them into one, as a list, or type --image_column with the one that is meant."
        )
    column = found.column
    return column if column is not None else search.single("image", [])


def _single_mark(search: ColumnSearch, marked: Marked) -> Mapping[ColumnRole, str]:
    """Return the one column of boxes or pages. Raises DataError where there are several."""
    if marked.boxes and marked.pages:
        raise DataError(
            f"{search.where} has boxes ('{marked.boxes[0]}') and OCR pages ('{marked.pages[0]}'). Type "
            f"--boxes_column {marked.boxes[0]}, or --page_column {marked.pages[0]}."
        )
    if marked.boxes:
        return {"boxes": search.single("boxes", marked.boxes)}
    return {"page": search.single("page", marked.pages)}


def _marked_schema(
    rows: Rows,
    search: ColumnSearch,
    config: DataConfig,
    mapped: Mapping[ColumnRole, str],
    pictures: Images,
) -> Schema:
    image = pictures.column
    role: ColumnRole = "boxes" if "boxes" in mapped else "page"
    column = mapped[role]
    if image is None or image == column:
        raise DataError(
            f"{search.where}: '{column}' holds {'boxes' if role == 'boxes' else 'OCR pages'}, and no other column "
            f"could be taken as the image. It has {quoted(search.columns)}. Type --image_column COLUMN."
        )
    given = config.boxes_column if role == "boxes" else config.page_column
    why = f"named by {COLUMN_NAMES[role].flag}" if given else "by its values"
    if role == "boxes":
        boxes, lines = read_boxes(rows, column, config, _asking_column(search, config, mapped))
        reasons = (pictures.why, f"boxes: column '{column}', {why}", *lines)
        return Schema(layout="boxes", image=image, boxes=boxes, reasons=reasons)
    page, lines = read_pages(column, config)
    return Schema(
        layout="page", image=image, page=page, reasons=(pictures.why, f"page: column '{column}', {why}", *lines)
    )


def _asking_column(search: ColumnSearch, config: DataConfig, mapped: Mapping[ColumnRole, str]) -> str | None:
    """Return the column that asks for boxes: a question without an answer of its own; --box_prompt stands above it."""
    if "prompt" in mapped:
        return mapped["prompt"]
    prompts = [] if search.named("response") or config.box_prompt else search.named("prompt")
    prompts = [c for c in prompts if c != mapped["boxes"]]
    return search.single("prompt", prompts) if prompts else None


def _chat_schema(search: ColumnSearch, column: str, why: str, pictures: Images) -> Schema:
    image = pictures.column
    if image == column:
        raise DataError(f"{search.where}: '{column}' cannot be both the image and the chat.")
    chats = [turns for row in search.sample if (turns := parse_turns(row.get(column))) is not None]
    if not chats:
        example = next(iter(search.values(column)), None)
        raise DataError(
            f"{search.where}: column '{column}' holds no chat. A chat is a list of turns, each with "
            f'"role" and "content" or with "from" and "value"; the first value is {short(example)}.'
        )
    why_marks = _explain_marks((text for turns in chats for text in _user_texts(turns)), pictures)
    if any("from" in turn and "value" in turn for turns in chats for turn in turns):
        taken = "is left out: there are no images" if pictures.declined else "marks an image's place"
        why_marks = f"{PLACEHOLDER} in user turns {taken} (ShareGPT turns)"
    return Schema(
        layout="messages",
        image=image,
        messages=column,
        no_pictures=pictures.declined,
        reasons=(f"messages: column '{column}', {why}", _explain_images(search, chats, pictures), why_marks),
    )


def _explain_images(search: ColumnSearch, chats: Sequence[Sequence[Mapping[str, Any]]], pictures: Images) -> str:
    """Say where a chat's images come from, or that they are left out."""
    if not any(_has_own_images(turn) for turns in chats for turn in turns):
        return explain_text_only(search, pictures)
    taken = "images of the chat's parts are left out" if pictures.declined else "the chat's parts bring their own"
    return f"{pictures.why}; {taken}"


def _explain_marks(texts: Iterable[str], pictures: Images) -> str:
    """Say what `<image>` in user texts that are no ShareGPT turns is: each row decides, by its number of images."""
    told = [*texts]
    others = dict.fromkeys(mark[0] for text in told for mark in OTHER_MARKS.finditer(text))
    if others and not pictures.declined:
        return (
            f"{', '.join([*others][:4])} in user texts mark images' places where a row has as many as images without "
            "a part; any other number makes a bad row"
        )
    if not any(PLACEHOLDER in text for text in told):
        return f"no {PLACEHOLDER} in the first rows' user texts: images have parts of their own or go first"
    if pictures.declined:
        return f"{PLACEHOLDER} in user texts is a word: there are no images"
    return (
        f"{PLACEHOLDER} in user texts marks an image's place where a row has as many as images without a part; any "
        "other number makes a bad row"
    )


def _user_texts(turns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what users say: whole contents, and texts of parts."""
    for turn in turns:
        content = turn.get("content")
        if ROLES.get(str(turn.get("role")).casefold()) == "user":
            parts = content if isinstance(content, list | tuple) else [content]
            texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
            yield from (text for text in texts if isinstance(text, str))


def _has_own_images(turn: Mapping[str, Any]) -> bool:
    parts = turn.get("content")
    return isinstance(parts, list | tuple) and any(
        isinstance(part, Mapping) and any(part.get(key) for key in IMAGE_PARTS.get(str(part.get("type", "image")), ()))
        for part in parts
    )


def _caption_schema(
    rows: Rows, search: ColumnSearch, config: DataConfig, mapped: Mapping[ColumnRole, str], pictures: Images
) -> Schema:
    """Read answers that no column asks for: captions by a question of ours, others by --default_prompt."""
    image = pictures.column
    given = mapped.get("response")
    captions = [c for c in search.columns if c.casefold() in CAPTIONS and c != image]
    others = [c for c in search.named("response") if c not in (image, *captions)]
    responses = [*captions, *others] if given is None else [given]
    question = config.default_prompt
    if question is None and image is not None and len(responses) == 1 and responses[0].casefold() in CAPTIONS:
        question = CAPTION_QUESTION
    if question is None:
        ask = f'--default_prompt "{CAPTION_QUESTION}"'
        flags = [ask] if len(responses) == 1 else [f"{ask} --response_column {c}" for c in responses or ["COLUMN"]]
        search.single("prompt", [], f", or {', or '.join(flags)} to ask one question of every row")
    response = search.single("response", responses)
    why = "by its name" if given is None else f"named by {COLUMN_NAMES['response'].flag}"
    source = "by --default_prompt" if config.default_prompt else "for captions; --default_prompt asks another"
    answers, why_answers = describe_answers(rows, search, response)
    asked = (f"question: {question!r}, asked of every row, {source}", f"response: column '{response}', {why}")
    return Schema(
        layout="caption",
        image=image,
        question=question,
        response=response,
        answers=answers,
        no_pictures=pictures.declined,
        reasons=(explain_text_only(search, pictures), *asked, *why_answers),
    )


def _pair_schema(
    rows: Rows, search: ColumnSearch, config: DataConfig, mapped: Mapping[ColumnRole, str], pictures: Images
) -> Schema:
    image = pictures.column
    if "prompt" not in mapped and not [c for c in search.named("prompt") if c not in (image, *mapped.values())]:
        return _caption_schema(rows, search, config, mapped, pictures)
    columns: dict[ColumnRole, str] = {}
    reasons = []
    for role in ("prompt", "response"):
        taken = {image, *mapped.values(), *columns.values()}
        given = mapped.get(role)
        candidates = [c for c in search.named(role) if c not in taken]
        columns[role] = given if given is not None else search.single(role, candidates)
        why = f"named by {COLUMN_NAMES[role].flag}" if given is not None else "by its name"
        reasons.append(f"{role}: column '{columns[role]}', {why}")
    prompt, response = columns["prompt"], columns["response"]
    chat = [c for c in (prompt, response) if search.has_chat(c)]
    known = CONTEXT_OF_PROMPT.get(prompt.casefold())
    context = next((c for c in search.columns if c.casefold() == known and c not in (image, prompt, response)), None)
    if context is not None:
        reasons.append(f"context: column '{context}' continues '{prompt}' on a new line where it is not empty")
    asked = [value for value in search.values(prompt) if isinstance(value, str)]
    if any(PLACEHOLDER in value or OTHER_MARKS.search(value) for value in asked):
        reasons.append(_explain_marks(asked, pictures))
    if response == image or prompt == response:
        raise DataError(f"{search.where}: '{response}' cannot be the response and something else at once.")
    answers, why_answers = describe_answers(rows, search, response)
    shows = "response" not in mapped and not answers.names and not chat and config.choices == "shown"
    if "response" not in mapped and not answers.names:
        reasons += refuse_bare_choices(search, prompt, context, response, shown=shows)
    return Schema(
        layout="prompt_completion" if chat else "question_answer",
        image=image,
        prompt=prompt,
        context=context,
        response=response,
        answers=answers,
        show_choices=shows,
        no_pictures=pictures.declined,
        reasons=(explain_text_only(search, pictures), *reasons, *why_answers),
    )
