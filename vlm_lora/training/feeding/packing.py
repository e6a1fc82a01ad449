"""Whether and how a run packs its rows: what does not go with packing, the plan, and what the run says of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.packing.inputs import PackedInputs, check_layers
from vlm_lora.batching.packing.order import PackOrder
from vlm_lora.batching.packing.plan import PackPlan, pack_length
from vlm_lora.batching.packing.shape import PackShape, RowSizes, ShapedPlan, plan_shape
from vlm_lora.batching.row_table import RowTable
from vlm_lora.batching.shape_survey import images_vary
from vlm_lora.batching.shapes import Media
from vlm_lora.compat import WINDOW_CUTS_SPANS
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.dataset import Conversations, Splits
from vlm_lora.data.mixture import Mixture
from vlm_lora.data.split_parts import trained_parts
from vlm_lora.data.wording import counted
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.families import Family
from vlm_lora.training.feeding.whole_steps import few_packs
from vlm_lora.training.planning import shared_values

logger = logging.getLogger(__name__)

FILE = "pack_lengths.json"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The packs of a run."""

    plan: PackPlan | ShapedPlan
    longest: int
    """Tokens of the longest row."""
    family: Family
    blank: EncodedRow | None = None
    """What fills up the images of packs of one shape."""

    @property
    def shape(self) -> PackShape | None:
        """What every pack is brought to; None where packs have no one shape."""
        return self.plan.shape if isinstance(self.plan, ShapedPlan) else None

    def order(self, trainer: Any) -> PackOrder:
        """Return the order in which a trainer is given the packs."""
        return PackOrder(
            self.plan,
            batch_size=trainer._train_batch_size,
            processes=trainer.args.world_size,
            drop_last=trainer.args.dataloader_drop_last,
            # Packs of one shape are planned from the first epoch's rows, so every epoch reads those.
            carries_epoch=trainer.train_dataset.varies and self.shape is None,
        )

    def inputs(self, model: Any) -> PackedInputs:
        """Return what turns packed batches into the inputs of a model."""
        return packed_inputs(model, self.family, longest=self.longest)


def packed_inputs(model: Any, family: Family, *, longest: int) -> PackedInputs:
    """Return what turns packed batches into the inputs of a model, with or without PEFT around it.

    Args:
        model: the model.
        family: its family, which packs.
        longest: tokens of the longest row.

    Raises:
        ModelError: its language model or its attention cannot be packed.
    """
    rope_index = next((part.get_rope_index for part in model.modules() if hasattr(part, "get_rope_index")), None)
    return PackedInputs(
        family.packing,
        model.config.get_text_config(),
        dtype=model.dtype,
        longest=longest,
        rope_index=rope_index,
        text_model=_text_model(model),
        window_cuts_spans=WINDOW_CUTS_SPANS,
    )


def _text_model(model: Any) -> torch.nn.Module | None:
    """Return the module that runs the layers of the language model."""
    config = model.config.get_text_config()
    own = (part for part in model.modules() if getattr(part, "config", None) is config and hasattr(part, "layers"))
    return next(own, None)


def check_packing(
    run: RunConfig, arguments: Any, family: Family, config: Any, encoder: RowEncoder, *, static_shapes: bool
) -> None:
    """Refuse the models whose rows `--packing` cannot pack, before the rows are read.

    Args:
        run: the resolved configuration.
        arguments: the training arguments.
        family: the model's.
        config: its configuration.
        encoder: makes its rows.
        static_shapes: whether batch shapes would be planned.

    Raises:
        ConfigError, ModelError: names it, the reason, and what to type.
    """
    if not run.batching.packing:
        return
    if not family.packing.packs:
        raise ModelError(
            f"--packing true does not go with {family.model_type}: {family.packing.refused}. Type --packing false."
        )
    if static_shapes and (images_vary(encoder) or _by_row(family)):
        raise ConfigError(
            f"--packing true with --static_shapes true gives all packs one shape, and images of {family.model_type} "
            "have several. Type --static_shapes false (hardware that compiles each new shape then compiles more "
            "often), or --packing false."
        )
    check_layers(family.packing, config.get_text_config(), longest=0)


def plan_packing(
    run: RunConfig,
    arguments: Any,
    splits: Splits,
    tables: Mapping[str, RowTable],
    family: Family,
    *,
    blank: EncodedRow | None = None,
) -> Packing:
    """Plan the packs of a run from its row table, the same on every process, and say what they are.

    Args:
        run: the resolved configuration.
        arguments: the training arguments.
        splits: the rows that are used.
        tables: of each data set, on the first process of each machine.
        family: the model's.
        blank: with it, all packs get one shape, and this turn with a blank image in place of images that are missing.

    Raises:
        ConfigError: a row is longer than a pack.
    """
    rows = splits.train
    assert rows is not None
    parts = shared_values(
        Path(arguments.output_dir) / FILE,
        arguments,
        lambda: {name: _sizes(tables[name], blank) for name in trained_parts(splits)},
    )
    by_part = [np.asarray(parts[name]["tokens"], dtype=np.int64) for name in trained_parts(splits)]
    longest = max(int(lengths.max(initial=0)) for lengths in by_part)
    capacity = _capacity(run, by_part, longest)
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    in_order = str(getattr(arguments, "train_sampling_strategy", "")) == "sequential"
    lengths_of = _lengths_of(rows, by_part)
    if blank is not None:
        kinds = {
            kind: _lengths_of(rows, [np.asarray(parts[name][kind], dtype=np.int64) for name in trained_parts(splits)])(
                0
            )
            for kind in ("tokens", "images", "supervised")
        }
        plan = plan_shape(RowSizes(**kinds), blank=len(blank.input_ids), most=capacity, seed=None if in_order else seed)
        _announce(plan, arguments, plan.shape.tokens, int(kinds["tokens"].sum()))
        return Packing(plan=plan, longest=longest, family=family, blank=blank)

    def planned(epochs: int) -> PackPlan:
        return PackPlan(lengths_of, epochs=epochs, capacity=capacity, seed=None if in_order else seed)

    packs = planned(1)
    if isinstance(rows, Mixture) and rows.varies:
        packs = planned(_epochs(arguments, packs.count))
    _announce(packs, arguments, capacity, packs.tokens(0))
    return Packing(plan=packs, longest=longest, family=family)


def _sizes(table: RowTable, blank: EncodedRow | None) -> dict[str, list[int]]:
    """Return what the rows of a data set take of a pack.

    Of a row that reads otherwise in another epoch the longest reading counts: it fits in every epoch.
    """
    sizes = {"tokens": table.longest("tokens").tolist()}
    if blank is not None:
        counts = [_images(media, blank) for media in table.media]
        sizes["images"] = [counts[kind] for kind in table.longest("media")]
        sizes["supervised"] = table.longest("supervised").tolist()
    return sizes


def _images(media: Media, blank: EncodedRow) -> int:
    """Return the images of a row from the shapes of its media tensors, of a model whose images are all alike."""
    name = next(iter(blank.media))
    return next((shape[0] // len(blank.media[name]) for kind, shape, _ in media if kind == name), 0)


def _by_row(family: Family) -> bool:
    """Say whether the family's media tensors count rows, and so have no shape of their own."""
    return any(batching.leading == "row" for batching in family.rendering.media.values())


def _capacity(run: RunConfig, by_part: Sequence[Any], longest: int) -> int:
    """Return the tokens of a pack."""
    given = run.batching.pack_length
    if given is not None and longest > given:
        count = sum(int((lengths > given).sum()) for lengths in by_part)
        raise ConfigError(
            f"--pack_length {given}: {counted(count, 'row has', 'rows have')} more tokens, the longest {longest}, and "
            f"no row is cut. Type --pack_length {longest}, or --max_length {given} with --on_overflow drop, "
            "shrink_images or trim_turns."
        )
    return pack_length(given, run.batching.max_length, longest)


def _lengths_of(rows: Conversations, by_part: Sequence[Any]) -> Callable[[int], Any]:
    """Return what gives the tokens of every row in an epoch."""
    if not isinstance(rows, Mixture):
        return lambda epoch: by_part[0]

    def lengths(epoch: int) -> Any:
        found = [rows.find(index, epoch if rows.varies else 0) for index in range(len(rows))]
        return np.array([by_part[member][place] for member, place, _ in found], dtype=np.int64)

    return lengths


def _epochs(arguments: Any, packs: int) -> int:
    """Return how many epochs a run has at most, if each has about so many packs."""
    if arguments.max_steps <= 0:
        return math.ceil(arguments.num_train_epochs)
    return math.ceil(arguments.max_steps * _step(arguments) / packs) + 1


def _step(arguments: Any) -> int:
    """Return the packs of one update."""
    return int(arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps)


def _announce(plan: PackPlan | ShapedPlan, arguments: Any, capacity: int, tokens: int) -> None:
    """Log what the packs of the first epoch are."""
    if isinstance(plan, ShapedPlan):
        logger.info(
            "Packs of one shape: %d tokens, %d images, up to %d supervised tokens; padding %.1f %% of the tokens, "
            "blank images included.",
            plan.shape.tokens,
            plan.shape.images,
            plan.shape.supervised,
            (1 - tokens / plan.computed) * 100,
        )
    packs, step = plan.packs(0), _step(arguments)
    updates = [sum(map(len, packs[start : start + step])) for start in range(0, len(packs), step)]
    logger.info(
        "Packing: %s in %s of at most %d tokens in every epoch, %.1f %% filled. "
        "--per_device_train_batch_size counts packs: %.1f rows an update (from %d to %d). Evaluation stays unpacked.",
        counted(plan.rows, "row"),
        counted(plan.count, "pack"),
        capacity,
        tokens / (plan.count * capacity) * 100,
        sum(updates) / len(updates),
        min(updates),
        max(updates),
    )
    few = few_packs(plan.count, plan.rows, arguments)
    if few:
        logger.warning("%s", few)
