"""One conversation to one row of tensors: rendered once, its processor called once, labels checked.

1. `ChatTemplate` renders the conversation and says what the model must produce.
2. The processor gets the rendering with a sentinel for each text, and the decoded images: it makes the media
   tensors, expands the placeholders, and asks its tokenizer.
3. `SubstitutingTokenizer` answers in the tokenizer's place with the tokens of the real texts.
4. The supervised characters become supervised tokens, and every row is checked before it leaves.

A row that is too long goes through this again, made smaller as `overflow` says.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature

from vlm_lora.batching.boxes.conventions import PIXELS, BoxConvention
from vlm_lora.batching.boxes.encoder import BoxEncoder, LoadedImage
from vlm_lora.batching.canvases import Size, nearest, own_size, resized
from vlm_lora.batching.chat.layouts import Rendering
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.image_counts import tokens_by_image
from vlm_lora.batching.masks import Span, check_mask, supervise
from vlm_lora.batching.overflow import COARSE_SIDES, SIDES, encode_within_limit, scaled
from vlm_lora.batching.prefix_suffix import PrefixSuffix
from vlm_lora.batching.prepared.row_images import RowImages
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.batching.rendering import ChatTemplate, prompt_turns
from vlm_lora.batching.style import RenderingStyle
from vlm_lora.batching.tokenization import ControlTokens, SubstitutingTokenizer, Tokenized, assemble, cut_at
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.data.wording import counted
from vlm_lora.errors import ImageError, ModelError, RenderingError, TooLongError, UserError

logger = logging.getLogger(__name__)

_PROCESSOR_FAULTS = (ValueError, TypeError, LookupError, RuntimeError, AttributeError, StopIteration)


class RowEncoder:
    """Turns conversations into `EncodedRow`s for one model. Can be pickled into loader workers.

    Args:
        processor: the model's processor, with a fast tokenizer; it is not changed.
        style: the family's conventions (`style_for(model_type)`).
        eos_token_ids: tokens at which generation stops.
        max_length: longest row in tokens, images included; None for no limit.
        on_overflow: what happens to a longer row, one of `config.OVERFLOW_POLICIES`.
        boxes: how the model counts and writes boxes.
        image_limits: handed to `load_image` as `limits=`; None takes the project's defaults.
        load_image: decodes one image source; None takes the project's own loader.

    Raises:
        ModelError: no chat template, no fast tokenizer, or no eos token.
    """

    def __init__(
        self,
        processor: Any,
        style: RenderingStyle,
        *,
        eos_token_ids: frozenset[int],
        max_length: int | None,
        on_overflow: str = "error",
        boxes: BoxConvention = PIXELS,
        image_limits: Any = None,
        load_image: Callable[..., Any] | None = None,
    ) -> None:
        tokenizer = processor.tokenizer
        if not eos_token_ids:
            raise ModelError("No eos token is known for this model: without one it cannot learn to stop.")
        self._plain = tokenizer
        self._style = style
        self._eos_token_ids = eos_token_ids
        self._max_length = max_length
        self._settings = (style, sorted(eos_token_ids), max_length, on_overflow, boxes)
        self._on_overflow = on_overflow
        self._boxes = BoxEncoder(processor, boxes)
        self._canvases: tuple[Size, ...] = ()
        self._watcher: Callable[[Any], None] | None = None
        self._kept: RowImages | None = None
        self.keeps_images = False  # see `keeping_images`
        self._load_image, self._image_limits = _loader(load_image, image_limits)
        self._bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        ends = {tokenizer.convert_ids_to_tokens(token_id): token_id for token_id in sorted(eos_token_ids)}
        media = _media_tokens(processor, style)
        self._media_token_ids = frozenset(media.values()) - eos_token_ids
        self._placeholders = _placeholders(processor, style)
        self._media_names = frozenset(processor.image_processor.model_input_names)
        self._renderer: ChatTemplate | PrefixSuffix
        if style.kind == "prefix_suffix":
            self._renderer = PrefixSuffix(image_token=self._placeholders[0], eos_token=tokenizer.eos_token)
        else:
            eos_token = tokenizer.eos_token if tokenizer.eos_token in ends else next(iter(ends))
            self._renderer = ChatTemplate(processor, style, eos_tokens=frozenset(ends), eos_token=eos_token)
        controls = ControlTokens(tokenizer, frozenset(media) | frozenset(ends))
        self._tokenizer = SubstitutingTokenizer(tokenizer, controls)
        # A shallow copy with another tokenizer: the caller's processor stays as it is.
        self._processor = copy.copy(processor)
        self._image_processor = processor.image_processor
        self._processor.tokenizer = self._tokenizer

    @property
    def max_length(self) -> int | None:
        """Longest row in tokens; None for no limit."""
        return self._max_length

    @property
    def _sides(self) -> Sequence[float]:
        """Shares of images' sides that `shrink_images` tries."""
        return COARSE_SIDES if self._canvases else SIDES

    def text_tokens(self, text: str) -> int:
        """Return how many tokens a text is by itself."""
        return len(self._plain.tokenize(text, add_special_tokens=False))

    def encode(
        self, conversation: Conversation, *, keep_images: bool = False, loaded: dict[int, LoadedImage] | None = None
    ) -> EncodedRow:
        """Return the row for training, made to fit as `on_overflow` says.

        Args:
            conversation: the row.
            keep_images: also return the images as the processor was given them, and how many tokens each takes.
            loaded: decoded images by the `id` of their reference, which is added to: an image that several
                conversations share is decoded once. The caller keeps those conversations.

        Raises:
            TooLongError: the row is too long, and `on_overflow` does not or cannot change that.
            RenderingError: the label promise cannot be kept on this row.
            ImageError: an image cannot be read.
        """
        make = partial(self._encoded, conversation, keep_images, {} if loaded is None else loaded)
        return make() if self._kept is None else self._kept.row(conversation, self._canvases, make, anew=keep_images)

    def prepare_images(self, conversation: Conversation) -> tuple[int, int]:
        """Make a row's images into tensors ahead of `encode`, for an encoder that keeps them.

        Returns:
            Bytes on disk of what is kept of the images, and of the row itself.

        Raises:
            DataError: as `encode`.
        """
        assert self._kept is not None, "nothing is kept"
        return self._kept.measured(conversation, self._canvases, partial(self._encoded, conversation, False, {}))

    def say_damage(self) -> None:
        """Say, where images are kept, how many entries were damaged and are made again."""
        if self._kept is not None:
            self._kept.store.say_damage()

    def _encoded(self, conversation: Conversation, keep_images: bool, decoded: dict[int, LoadedImage]) -> EncodedRow:
        def attempt(smaller: Conversation, side: float) -> EncodedRow:
            pictures = self._pictures(smaller, smaller.images, side, decoded)
            shown = [decoded[id(image)] for image in smaller.images]
            boxes = self._boxes.write(smaller, smaller.images, shown, pictures)
            rendering = self._renderer.render(boxes.written)
            row = self._placed_row(rendering, boxes.written, pictures, counts_images=keep_images)
            row = self._boxes.checked(row, boxes)
            return replace(row, pictures=tuple(pictures)) if keep_images else row

        return encode_within_limit(conversation, self._on_overflow, attempt, self._sides)

    def encode_kept(self, conversation: Conversation, *, keep_images: bool = False) -> EncodedRow | None:
        """As `encode`; None for a row that `--on_overflow drop` leaves out."""
        try:
            return self.encode(conversation, keep_images=keep_images)
        except TooLongError as error:
            if self._on_overflow != "drop":
                raise
            logger.warning("%s The row is left out.", error)
            return None

    def encode_prompt(self, conversation: Conversation) -> EncodedRow:
        """Return everything before the last assistant turn that is trained on, with the generation prompt; no labels.

        The limit and `on_overflow` count for the prompt as for a row.

        Raises:
            TooLongError, RenderingError, ImageError: as `encode`.
        """
        loaded: dict[int, LoadedImage] = {}

        def attempt(smaller: Conversation, side: float) -> EncodedRow:
            turns = prompt_turns(smaller.turns)
            images = tuple(part for turn in turns for part in turn.parts if isinstance(part, ImageRef))
            pictures = self._pictures(smaller, images, side, loaded)
            answered = replace(smaller, turns=smaller.turns[: len(turns) + 1])
            boxes = self._boxes.write(answered, images, [loaded[id(image)] for image in images], pictures)
            rendering = self._renderer.render_prompt(boxes.written)
            return self._boxes.checked(self._placed_row(rendering, boxes.written, pictures, prompt=True), boxes)

        return self._keeping(encode_within_limit(conversation, self._on_overflow, attempt, self._sides))

    def check_template(self) -> None:
        """Render one short conversation with an image, which every model's template can write.

        Raises:
            RenderingError: this one cannot, so no row of any data could be rendered.
        """
        question = Turn(role="user", parts=(ImageRef(source=Path("a.png")), Text(text="a")))
        answer = Turn(role="assistant", parts=(Text(text="b"),))
        trial = Conversation(turns=(question, answer), source=RowSource(file="a short conversation"))
        self._check_placeholders(self._renderer.render(trial), 1)
        self._renderer.render_prompt(trial)

    def with_canvases(self, canvases: Sequence[Size]) -> RowEncoder:
        """Return an encoder that resizes each row's images to the nearest of these sizes (width, height)."""
        other = copy.copy(self)
        other._canvases = tuple(canvases)
        return other

    def watched_by(self, watcher: Callable[[Any], None]) -> RowEncoder:
        """Return an encoder that shows `watcher` each image as it is loaded, in reading order, before resizing."""
        other = copy.copy(self)
        other._watcher = watcher
        return other

    def keeping_images(self, store: TensorStore) -> RowEncoder:
        """Return an encoder that makes a row's images into tensors once and keeps those; the rows are the same."""
        other, own = copy.copy(self), copy.copy(self._processor)
        own.tokenizer, own.image_processor = self._plain, self._image_processor
        other.keeps_images = True
        other._kept = RowImages(own, store, self._image_limits, self._settings)
        other._processor = copy.copy(self._processor)
        other._processor.image_processor = other._kept.image_processor
        return other

    def picture(self, image: ImageRef) -> Any:
        """Return one image as `encode` would load it, in RGB, at its own size where it has one.

        Raises:
            ImageError: it cannot be read, or has a size of its own and this model's images cannot have one.
        """
        return self._load(image).picture

    def _load(self, image: ImageRef) -> LoadedImage:
        decode = partial(self._load_image, image.source, limits=self._image_limits)
        picture = decode() if self._kept is None else self._kept.open(image.source, decode)
        stored = picture.size
        if self._watcher is not None:
            self._watcher(picture)
        if image.size is not None:
            if self._canvases:
                _note_canvases()
            picture = resized(picture, own_size(image.size, stored, self._image_processor))
        return LoadedImage(picture=picture, stored=stored)

    def _pictures(
        self, conversation: Conversation, images: tuple[ImageRef, ...], side: float, loaded: dict[int, LoadedImage]
    ) -> list[Any]:
        """Return images at a share of their sides; `loaded` keeps them, so that each is decoded only once."""
        for image in images:
            if id(image) not in loaded:
                loaded[id(image)] = self._image(image, conversation)
        pictures = [loaded[id(image)].picture for image in images]
        sizes = [picture.size for picture in pictures]
        if self._canvases and images:
            sizes = [nearest(sizes, self._canvases)] * len(images)
        return [resized(picture, scaled(size, side)) for picture, size in zip(pictures, sizes, strict=True)]

    def _placed_row(
        self,
        rendering: Rendering,
        conversation: Conversation,
        pictures: list[Any],
        *,
        prompt: bool = False,
        counts_images: bool = False,
    ) -> EncodedRow:
        """As `_row`; errors name the row, but for the length's, which may not be the last word."""
        try:
            return self._row(rendering, conversation, pictures, prompt=prompt, counts_images=counts_images)
        except TooLongError:
            raise
        except (RenderingError, ImageError) as error:  # an image that was known is decoded as late as that
            raise type(error)(f"{conversation.source}: {error}") from error

    def _row(
        self,
        rendering: Rendering,
        conversation: Conversation,
        pictures: list[Any],
        *,
        prompt: bool,
        counts_images: bool,
    ) -> EncodedRow:
        self._check_placeholders(rendering, len(pictures))
        outputs, tokenized = self._call(rendering, pictures, prompt=prompt)
        token_tensors, media = self._sorted(outputs, len(tokenized.input_ids))
        spans = [] if prompt else self._spans(rendering, tokenized)
        if _straddled(tokenized.offsets, spans):
            tokenized, origins = cut_at(tokenized, [span.start for span in spans], self._plain)
            token_tensors = {name: values[origins] for name, values in token_tensors.items()}
        ids = tokenized.input_ids
        labels = torch.full_like(ids, IGNORE_INDEX)
        self._check_length(len(ids))
        self._check_bos(ids, tokenized.text)
        if not prompt:
            mask = self._mask(tokenized, spans)
            labels[mask] = ids[mask]
        return EncodedRow(
            input_ids=ids,
            labels=labels,
            token_tensors=token_tensors,
            media=media,
            text=tokenized.text,
            source=conversation.source,
            image_tokens=self._image_tokens(rendering, tokenized, pictures) if counts_images else (),
        )

    def _image_tokens(self, rendering: Rendering, tokenized: Tokenized, pictures: list[Any]) -> tuple[int, ...]:
        return tokens_by_image(
            rendering,
            tokenized,
            [picture.size for picture in pictures],
            placeholders=self._placeholders,
            media_token_ids=self._media_token_ids,
        )

    def _image(self, image: ImageRef, conversation: Conversation) -> LoadedImage:
        try:
            return self._load(image)
        except UserError as error:
            raise type(error)(f"{conversation.source}: {error}") from error

    def _call(self, rendering: Rendering, pictures: list[Any], *, prompt: bool) -> tuple[Mapping[str, Any], Tokenized]:
        """Call the processor, once."""
        text = rendering.aided
        extra: dict[str, Any] = dict(self._style.asked_for)
        if self._style.kind == "prefix_suffix" and not prompt:
            text, extra["suffix"] = text[:-1], [text[-1]]
        if self._style.kind == "prefix_suffix" or (self._bos[0] and text.startswith(self._bos[0])):
            extra["add_special_tokens"] = False  # the rendering has its own bos
        if pictures:
            extra["images"] = pictures if self._style.images == "flat" else [pictures]
        self._tokenizer.expect(rendering.sentinels, rendering.texts, rendering.marks)
        try:
            if self._style.kind == "prefix_suffix":
                # PaliGemma's processor makes labels by numpy; from tensors, numpy 2 deprecates that.
                made = {name: _stacked(value) for name, value in self._processor(text=[text], **extra).items()}
                outputs = BatchFeature(made, tensor_type="pt")
            else:
                outputs = self._processor(text=[text], return_tensors="pt", **extra)
        except _PROCESSOR_FAULTS as error:
            raise RenderingError(f"{type(self._processor).__name__} refuses this row: {error}") from error
        finally:
            pieces = self._tokenizer.finish()
        tokenized = assemble(pieces, outputs["input_ids"].reshape(-1), len(rendering.layout.order))
        if tokenized is None:
            raise RenderingError(
                f"{type(self._processor).__name__} changes ids after tokenizing, so labels cannot be "
                "placed on its tokens."
            )
        return outputs, tokenized

    def _spans(self, rendering: Rendering, tokenized: Tokenized) -> list[Span]:
        """Return what the model must produce."""
        spans = []
        for answer in rendering.layout.answers:
            first, last = answer.parts
            start, end = tokenized.places[first][0], tokenized.places[last][1]
            span = Span(start=start - len(answer.lead), end=end + len(answer.tail), ended=answer.ended)
            if tokenized.text[span.start : span.end] != rendering.layout.produced(answer, rendering.texts):
                raise RenderingError(
                    f"the processor changed the rendering around the answer of turn {answer.turn}: "
                    f"{tokenized.text[span.start : span.end]!r}."
                )
            spans.append(span)
        return spans

    def _mask(self, tokenized: Tokenized, spans: Sequence[Span]) -> torch.Tensor:
        """Return `(T,)` bool, checked."""
        mask = supervise(tokenized.offsets, spans)
        check_mask(
            input_ids=tokenized.input_ids,
            mask=mask,
            offsets=tokenized.offsets,
            spans=spans,
            text=tokenized.text,
            eos_token_ids=self._eos_token_ids,
            media_token_ids=self._media_token_ids,
        )
        return mask

    def _check_placeholders(self, rendering: Rendering, images: int) -> None:
        written = max(
            (sum(literal.count(name) for literal in rendering.layout.literals) for name in self._placeholders),
            default=images,
        )
        if written != images:
            raise RenderingError(
                f"the row has {counted(images, 'image')}, the chat template writes {counted(written, 'placeholder')}. "
                "Put images into user turns, where the template writes them."
            )

    def _check_length(self, length: int) -> None:
        if self._max_length is not None and length > self._max_length:
            raise TooLongError(
                f"{length} tokens (images included) are more than the limit of {self._max_length}.",
                tokens=length,
                limit=self._max_length,
            )

    def _check_bos(self, ids: torch.Tensor, text: str) -> None:
        name, token_id = self._bos
        if token_id is None or token_id in self._eos_token_ids:
            return
        if len(ids) > 1 and int(ids[0]) == int(ids[1]) == token_id:
            twice = f"the row starts with {name!r} twice"
            raise RenderingError(f"{twice}: the chat template and the tokenizer both write it.")

    def _sorted(
        self, outputs: Mapping[str, Any], length: int
    ) -> tuple[dict[str, torch.Tensor], Mapping[str, torch.Tensor]]:
        """Sort the processor's outputs into per-token tensors and media."""
        token_tensors: dict[str, torch.Tensor] = {}
        media: dict[str, torch.Tensor] = {}
        for name, value in outputs.items():
            if name in ("input_ids", "attention_mask") or name in self._style.dropped_outputs:
                continue
            value = torch.tensor(value) if name in self._style.counts else value
            if not isinstance(value, torch.Tensor):
                raise RenderingError(
                    f"{type(self._processor).__name__} returns {name!r} as a {type(value).__name__}, not as a tensor."
                )
            per_token = name not in self._media_names and tuple(value.shape) == (1, length)
            if per_token or name in self._style.token_tensors:
                token_tensors[name] = value[0]
            else:
                media[name] = value
        return token_tensors, media if self._kept is None else self._kept.media(media)

    def _keeping(self, row: EncodedRow) -> EncodedRow:
        """Keep what was made of a row's images, now that the row is one that can be used."""
        if self._kept is not None:
            self._kept.keep()
        return row


def _stacked(value: Any) -> Any:
    """Return a list of tensors, which 4.55's torchvision image processors return, as one tensor; else the value."""
    several = isinstance(value, list) and bool(value) and all(isinstance(each, torch.Tensor) for each in value)
    return torch.stack(value) if several else value


def _straddled(offsets: torch.Tensor, spans: Sequence[Span]) -> bool:
    """Tell whether a token stands for characters on both sides of the place where an answer begins."""
    return any(bool(((offsets[:, 0] < span.start) & (offsets[:, 1] > span.start)).any()) for span in spans)


_noted: set[str] = set()


def _note_canvases() -> None:
    """Say once in this process that images with a size of their own are brought to a few sizes, too."""
    if not _noted:
        _noted.add("canvases")
        logger.warning(
            "Images with a size of their own (min_pixels, resized_height, ...) are brought to the nearest of the few "
            "sizes of --static_shapes all the same; --static_shapes false shows them at their own."
        )


def _loader(load_image: Callable[..., Any] | None, limits: Any) -> tuple[Callable[..., Any], Any]:
    """Return the image loader and its limits, the project's own where none is given."""
    if load_image is not None:
        return load_image, limits
    from vlm_lora.data.images import loader as images

    return images.load_image, images.ImageLimits() if limits is None else limits


def _media_tokens(processor: Any, style: RenderingStyle) -> dict[str, int]:
    """Return the placeholder tokens that the style or the processor names, with their ids."""
    tokenizer = processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    names = [*style.media_tokens]
    for owner in (processor, tokenizer):
        for attribute in ("image_token", "video_token", "audio_token", "boi_token", "eoi_token"):
            named = getattr(owner, attribute, None)
            names += [named] if isinstance(named, str) else []
    return {name: vocabulary[name] for name in names if name in vocabulary}


def _placeholders(processor: Any, style: RenderingStyle) -> tuple[str, ...]:
    """Return the strings that may stand for one image in a rendering."""
    # 4.55's Gemma 3 names the expanded token `image_token` and the one in the template `boi_token`.
    named = [getattr(processor, name, None) for name in ("image_token", "boi_token")]
    own = [] if style.image_placeholder is None else [style.image_placeholder.split("{n}")[0]]
    return tuple(dict.fromkeys([*own, *(name for name in named if isinstance(name, str) and name)]))
