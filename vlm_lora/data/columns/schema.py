"""Which columns are the image, the question, the answer, the chat: detected from the first rows.

An explicit mapping wins. One candidate for a role is taken, several are an error that names the flag to
type, none is an error that lists what was seen and what is accepted. Detection never decodes an image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.annotations import (
    Marked,
    how_boxes_are_written,
    read_boxes,
    read_pages,
    refuse_two_answers,
    unread_marks,
)
from vlm_lora.data.columns.answers import AnswerReading, describe_answers, holds_whole_numbers, refuse_bare_choices
from vlm_lora.data.columns.image_words import explain_images, explain_marks, user_texts
from vlm_lora.data.columns.names import (
    CAPTION_QUESTION,
    CAPTIONS,
    COLUMN_NAMES,
    CONTEXT_OF_PROMPT,
    PLACEHOLDER,
    TEXTS,
    TURN_KEYS,
    ColumnRole,
    role_of_name,
)
from vlm_lora.data.columns.other_forms import refuse_other_forms
from vlm_lora.data.columns.repeated import find_repeats
from vlm_lora.data.columns.search import (
    SAMPLE,
    ColumnSearch,
    Images,
    explain_text_only,
    find_images,
    read_mapping,
    where_from,
)
from vlm_lora.data.columns.unknown import Reading, Unknown, explain_left_out, find_unknown
from vlm_lora.data.conversations.choice_numbers import first_number
from vlm_lora.data.conversations.choices import listed_choices
from vlm_lora.data.conversations.grounding import COLUMN as OBJECTS
from vlm_lora.data.conversations.grounding import box_written_in, holds_references
from vlm_lora.data.conversations.region_rows import SIDES, SIZE_COLUMNS
from vlm_lora.data.conversations.texts import OTHER_MARKS, parse_turns, texts_in
from vlm_lora.data.conversations.told import HISTORY, Told, find_told
from vlm_lora.data.conversations.turns import without_keys
from vlm_lora.data.formats.rows import Row, Rows
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
    whole_context: bool = False
    """Whether its fractions are whole numbers, as those of answers may be (`AnswerReading.whole`)."""
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
    ignored_columns: frozenset[str] = frozenset()
    """Columns that are left out of every row before anything else is read."""
    ignored_keys: tuple[str, ...] = ()
    """Keys of turns and parts that are left out."""
    reading: Reading | None = None
    """Which columns of a row are accounted for; None says nothing of others."""
    unknown: Unknown = field(default_factory=Unknown)
    """What the first rows hold and nobody reads."""
    show_choices: bool = False
    """Whether choices in columns of their own are shown behind the question."""
    no_pictures: bool = False
    """Whether the user said that there are none: parts for images and ShareGPT's marks are left out, and `<image>` in
    any other text is a word."""
    image_ids: bool = False
    """Whether the column of images names files below --image_root by numbers or without their endings."""
    reasons: tuple[str, ...] = ()

    @property
    def names_places(self) -> bool:
        """Whether questions or answers are made from boxes, so that it matters how a model counts."""
        return self.boxes is not None or self.objects is not None or bool(self.questions_for_boxes)

    @property
    def questions_for_boxes(self) -> tuple[str, ...]:
        """The questions that the user set, or a task file has, about boxes that are counted as the model counts."""
        one = () if self.boxes is None or self.boxes.question is None else (self.boxes.question,)
        tasks = () if self.page is None or not self.page.placed else self.page.tasks
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

    @property
    def is_chat(self) -> bool:
        """Whether a row's columns hold turns."""
        return self.layout in ("messages", "prompt_completion")

    def without_ignored(self, row: Row) -> Row:
        """Return a row without the columns that are left out."""
        if self.ignored_columns.isdisjoint(row):
            return row
        return {column: value for column, value in row.items() if column not in self.ignored_columns}

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
    search = _search(rows, config, quiet=quiet)
    mapped = read_mapping(search, config)
    if not mapped.keys() - {"image"}:
        refuse_other_forms(search)
    pictures = find_images(search, mapped.get("image"), config.image_root)
    schema = replace(
        _detect(rows, search, config, mapped, pictures),
        more_images=pictures.more,
        either=pictures.either,
        image_ids=pictures.by_id,
    )
    told = find_told(search.columns, schema.columns)
    schema = replace(
        schema,
        told=told,
        ignored_columns=frozenset(config.ignore_columns),
        ignored_keys=config.ignore_keys,
    )
    if schema.layout in ("messages", "question_answer", "prompt_completion"):
        schema = _with_objects(schema, search, config)
    repeats = find_repeats(search, pictures, schema.prompt, chosen="prompt" in mapped)
    reading = Reading(
        columns=schema.columns | repeats.columns,
        ignored=config.ignore_keys,
        asks=schema.layout == "question_answer",
        chat=schema.is_chat,
        decided=_decided(mapped, config),
        repeats=repeats,
    )
    schema = replace(schema, reading=reading)
    marks = unread_marks(search, schema.boxes, schema.page)
    unknown = find_unknown(search.where, search.sample, reading, _chats(search, schema), marks)
    told_of = schema.columns | unknown.columns.keys() | _choices(search, reading)
    left_out = [column for column in rows.columns if column not in told_of]
    reasons = (*told.explain(config.system_prompt), *explain_left_out(left_out, config))
    return replace(schema, unknown=unknown, reasons=(*schema.reasons, *reasons))


def _choices(search: ColumnSearch, reading: Reading) -> frozenset[str]:
    """Return the columns of choices, which are shown behind the question or refused."""
    rows = search.sample if reading.asks else ()
    listed = (one for row in rows for one in listed_choices(row, reading.columns))
    return frozenset(column for one in listed for column in one.columns)


def _decided(mapped: Mapping[ColumnRole, str], config: DataConfig) -> frozenset[ColumnRole]:
    """Return the roles for which flags name a column, or what to ask: others that could have them are left out."""
    roles: set[ColumnRole] = {role for role in mapped if role == "image"}
    if mapped.keys() - roles:
        roles |= {role for role in COLUMN_NAMES if role != "image"}
    if config.box_prompt or config.default_prompt or config.task_file or config.tasks or config.output_types:
        roles.add("prompt")
    return frozenset(roles)


def _search(rows: Rows, config: DataConfig, *, quiet: bool = False) -> ColumnSearch:
    """Return the columns and first rows, without what is ignored."""
    ignored = frozenset(config.ignore_columns)
    kept = tuple(column for column in rows.columns if column not in ignored)
    first = (rows[number] for number in range(min(len(rows), SAMPLE)))
    sample = [{column: value for column, value in row.items() if column not in ignored} for row in first]
    return ColumnSearch(columns=kept, sample=sample, where=where_from(rows), place=rows.source, quiet=quiet)


def _chats(search: ColumnSearch, schema: Schema) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield all lists of turns of the first rows that are read."""
    held = (schema.messages, schema.prompt, schema.response, *schema.told.history)
    for column in (column for column in held if column is not None):
        for value in search.values(column):
            turns = without_keys(parse_turns(value, pairs=column == schema.messages) or (), schema.ignored_keys)
            # A turn without a role is broken: a bad row, whatever else it holds.
            yield [turn for turn in turns if any(turn.get(role) is not None for role, _ in TURN_KEYS)]


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
    marked = Marked.among(search.columns, search.sample)
    holders = (*marked.boxes, *marked.pages)
    prompts = [c for c in search.named("prompt") if c not in holders]
    responses = [c for c in search.named("response") if c not in holders]
    asks_for_boxes = marked.boxes and not responses and "response" not in mapped
    if ("prompt" in mapped or "response" in mapped) and not asks_for_boxes:
        return _pair_schema(rows, search, config, mapped, pictures)
    chats = _without_history([c for c in search.columns if search.has_chat(c)], alone=not (prompts and responses))
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
    unread = [c for c in search.columns if role_of_name(c) == "messages" and search.may_hold(c, _is_nested)]
    if unread and not chats and not prompts:
        return _chat_schema(search, unread[0], "by its name", pictures)  # which says what a chat looks like
    if separate or (chats and not (prompts and responses)):
        column = search.single("messages", separate or chats)
        return _chat_schema(search, column, "its values are lists of turns", pictures)
    return _pair_schema(rows, search, config, mapped, pictures)


def _without_history(chats: Sequence[str], *, alone: bool) -> list[str]:
    """Return the columns of chats that are no history; where it may be the only chat, a history is one."""
    others = [column for column in chats if column.casefold() not in HISTORY]
    return others if others or not alone else [*chats]


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping) and bool(value)


def find_image_column(rows: Rows, config: DataConfig) -> tuple[str, bool]:
    """Return the column that holds the images, whatever the others mean, and whether it names them by ids.

    Raises:
        DataError: None, several, or one that is named and not there.
    """
    search = _search(rows, config)
    found = find_images(search, read_mapping(search, config).get("image"), config.image_root)
    if found.more:
        raise DataError(
            f"{search.where}: {quoted([str(found.column), *found.more])} all hold images, and a tar takes those of one "
            "column. Put them into one, as a list, or type --image_column with the one that is meant."
        )
    column = found.column
    return (column, found.by_id) if column is not None else (search.single("image", []), False)


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
    chats = [turns for row in search.sample if (turns := parse_turns(row.get(column), pairs=True)) is not None]
    if not chats:
        example = next(iter(search.values(column)), None)
        raise DataError(
            f"{search.where}: column '{column}' holds no chat. A chat is a list of turns, each with "
            f'"role" and "content" or with "from" and "value"; the first value is {short(example)}.'
        )
    why_marks = explain_marks((text for turns in chats for text in user_texts(turns)), pictures)
    if any("from" in turn and "value" in turn for turns in chats for turn in turns):
        taken = "is left out: there are no images" if pictures.declined else "marks an image's place"
        why_marks = f"{PLACEHOLDER} in user turns {taken} (ShareGPT turns)"
    return Schema(
        layout="messages",
        image=image,
        messages=column,
        no_pictures=pictures.declined,
        reasons=(f"messages: column '{column}', {why}", explain_images(search, chats, pictures), why_marks),
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
    if question is not None and not responses:
        responses = [c for c in search.columns if c.casefold() in TEXTS and c != image]
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


def _context_of(prompt: str, columns: Sequence[str], taken: Collection[str | None]) -> str | None:
    known = CONTEXT_OF_PROMPT.get(prompt.casefold(), ())
    return next((column for column in columns if column.casefold() in known and column not in taken), None)


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
        named = [c for c in search.named(role) if c not in taken]
        candidates = search.holding_the_others(named) if role == "prompt" else named
        others = [c for c in named if c not in candidates]
        columns[role] = given if given is not None else search.single(role, candidates)
        by_name = f"which holds the text of {quoted(others)}" if others else "by its name"
        why = f"named by {COLUMN_NAMES[role].flag}" if given is not None else by_name
        reasons.append(f"{role}: column '{columns[role]}', {why}")
    prompt, response = columns["prompt"], columns["response"]
    chat = [c for c in (prompt, response) if search.has_chat(c)]
    context = config.context_column or _context_of(prompt, search.columns, (image, prompt, response))
    if chat and config.context_column is not None:
        raise DataError(
            f"{search.where}: --context_column {config.context_column} continues a question in a column, and "
            f"{quoted(chat)} holds chats. Write it into their texts, or leave it out by --ignore_columns."
        )
    context = None if chat else context
    if context is not None:
        reasons.append(f"context: column '{context}' continues '{prompt}' on a new line where it is not empty")
    asked = [value for value in search.values(prompt) if isinstance(value, str)]
    if any(PLACEHOLDER in value or OTHER_MARKS.search(value) for value in asked):
        reasons.append(explain_marks(asked, pictures))
    if search.mostly_holds(prompt, lambda value: isinstance(value, list | tuple)) and not chat:
        reasons.append(f"each question of '{prompt}' is asked in a turn, with the answer at its place in '{response}'")
    if response == image or prompt == response:
        raise DataError(f"{search.where}: '{response}' cannot be the response and something else at once.")
    answers, why_answers = describe_answers(rows, search, response)
    shows = not answers.names and not chat and config.choices == "shown"
    if shows:
        asking = [column for column in (prompt, context, response) if column is not None]
        answers = replace(answers, first_choice=first_number(search.sample, asking, response))
    if answers.first_choice is not None:
        reasons.append(f"answers: the numbers of '{response}' count choices from {answers.first_choice}: their letters")
    if not answers.names:
        reasons += refuse_bare_choices(search, prompt, context, response, shown=shows, first=answers.first_choice)
    return Schema(
        layout="prompt_completion" if chat else "question_answer",
        image=image,
        prompt=prompt,
        context=context,
        whole_context=context is not None and holds_whole_numbers(search, context),
        response=response,
        answers=answers,
        show_choices=shows,
        no_pictures=pictures.declined,
        reasons=(explain_text_only(search, pictures), *reasons, *why_answers),
    )
