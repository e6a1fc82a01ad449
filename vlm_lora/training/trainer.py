"""The trainer: the backend's own class, composed with the little that a constructor cannot take."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlm_lora.backend import Backend
from vlm_lora.batching.collator import FED, ROWS, SUPERVISED, Fed, naming_rows
from vlm_lora.batching.loading import explained, limit
from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.ordering.rows import FillableRows
from vlm_lora.batching.packing.inputs import PackedInputs
from vlm_lora.batching.packing.order import PackOrder
from vlm_lora.compat import let_cpu_have_numbers
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.features.cache import FeatureCache
from vlm_lora.model.objective import ScoredModel, SupervisedHead, gather_targets
from vlm_lora.model.stored_weights import only_measured
from vlm_lora.model.untouched import same_randomness
from vlm_lora.training.checkpoints.background import Sealer
from vlm_lora.training.checkpoints.carried_over import CarriedOver
from vlm_lora.training.checkpoints.choosing import Views, check_best
from vlm_lora.training.checkpoints.full_weights import load_full_weights
from vlm_lora.training.checkpoints.rotation import NothingInTheWay, begin_saving, end_saving
from vlm_lora.training.checkpoints.saving import check_saved, gathered_state, is_sharded_by_tensor
from vlm_lora.training.checkpoints.sealing import unseal_final
from vlm_lora.training.checkpoints.so_far import SoFar
from vlm_lora.training.checkpoints.valid_state import ValidState
from vlm_lora.training.engine import generating, let_go_of_weights, zero_stage
from vlm_lora.training.feeding.pace import Pace
from vlm_lora.training.feeding.strategy import Feeding, evaluation_order
from vlm_lora.training.feeding.waiting import DataWait
from vlm_lora.training.finite.guard import FiniteGuard
from vlm_lora.training.guards.room import RoomAhead, check_room, checkpoint_size, in_place, taken_whole
from vlm_lora.training.guards.watchdog import Watchdog
from vlm_lora.training.hub import uploading, without_token
from vlm_lora.training.rates import PartRates, drop_empty_groups, resumed_rates

logger = logging.getLogger(__name__)


class VlmTrainerMixin:
    """Loss on supervised positions, rows in the project's order, evaluation that sums instead of averaging averages.

    Set `head`, `row_groups`, `fixed_shapes`, `capture`, `finite` and `waiting` right after construction. The loss is
    the sum of the negative log-likelihoods divided by the number of supervised tokens of the whole global batch (all
    accumulation steps, all ranks), so batch 8x1, 2x4 and 1x8 give one gradient.
    """

    head: SupervisedHead
    row_groups: Mapping[str, Sequence[Sequence[int]]]
    """By split (`train`, `validation`): row indices that may share a batch; empty where any may."""
    feeding: Feeding = Feeding()
    """In which order the training rows come."""
    fixed_shapes: bool
    """Whether hardware compiles each new shape, so that none may depend on a batch's number of supervised tokens."""
    capture: Callable[[torch.nn.Module], torch.nn.Module]
    """The backend's: returns a module whose graph is captured and replayed, or the module as it is."""
    sealer: Sealer
    """Gives checkpoints their manifests; large ones while the training goes on."""
    finite: FiniteGuard
    """Ends the run where a loss, gradient or weight is not finite, or leaves such a step out."""
    watchdog: Watchdog | None = None
    """Ends a training that stands still; None outside one."""
    before_saving: Callable[[], None] = staticmethod(lambda: None)
    """Raises an error where nothing may be written into the output folder any more."""
    so_far: SoFar
    """Sums over the whole run, which its checkpoints keep."""
    waiting: DataWait
    """Seconds that training waits for its data."""
    pace: Pace
    """What the log says of speed, padding and memory."""
    fed: Fed = Fed(rows=0, tokens=0)
    """What this process has trained on so far in this run."""
    part_rates: PartRates | None = None
    """Learning rates of single parts; None where every part has `--learning_rate`."""
    total_limit: int | None = None
    """`--save_total_limit`, which the base class must not know: it would remove folders that are not the run's."""
    carried: CarriedOver | None = None
    """The run's settings, for its checkpoints and over those of the one it goes on from; None outside a training."""
    balance: float = 0.0
    """How much of the model's own loss for an even load of experts is added to that of each micro-batch."""
    packs: PackedInputs | None = None
    """Makes masks and positions of packed batches, where the run packs."""
    features: FeatureCache | None = None
    """Gives the model features of images in place of their pixels; None where none are kept."""
    answering: Callable[..., Mapping[str, float]] | None = None
    """Answers validation rows with the model and returns what the answers score, by name, the same on all ranks; None
    where perplexity alone is measured. `everything` says whether all rows are to be answered, or a sample."""
    loader_timeout: float = 0
    """Seconds to wait for a loader worker; 0 waits for ever."""
    _scored: torch.nn.Module | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a loader worker that delivers nothing or was killed ends it with one message."""
        with self._explained(), self.sealer.finished_at_end():
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; a loader worker that delivers nothing or was killed ends it with one message."""
        with self._explained(), self._training_goes_on():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train with the batch that was asked for: transformers 4.55 would take that of the checkpoint."""
        arguments = self.args  # type: ignore[attr-defined]
        if not arguments.auto_find_batch_size:
            batch_size = self._train_batch_size = arguments.train_batch_size
        self.so_far.begins()
        return super()._inner_training_loop(batch_size, *args, **kwargs)  # type: ignore[misc]

    def _training_goes_on(self) -> AbstractContextManager[None]:
        """Let an evaluation during training leave the generators as they were: the next step draws the same."""
        training = self.is_in_train  # type: ignore[attr-defined]
        return same_randomness(self.args.device) if training else nullcontext()  # type: ignore[attr-defined]

    def _explained(self) -> Any:
        read = (self.train_dataset, self.eval_dataset)  # type: ignore[attr-defined]
        rows = [rows for rows in read if isinstance(rows, FillableRows)]
        return explained(self.loader_timeout, [(each.in_hand, each.name) for each in rows])

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Run the model, its head on the supervised positions; the base class calls `supervised_loss`."""
        if self.packs is not None:
            inputs = self.packs.prepare(inputs)
        held = inputs.get(FED)
        positions, rows, count = self._aside(inputs)
        if self.watchdog is not None:
            self.watchdog.see(inputs)
        if held is not None:
            self.fed += held
        # The base class drops the labels before it calls the loss function: hand over what it needs instead.
        inputs["labels"] = gather_targets(inputs["labels"], positions)
        balanced = bool(self.balance) and model.training
        if balanced:
            inputs["output_router_logits"] = True
        with self._on_features(inputs) as given, self.head.on(positions, inputs["labels"], count):
            loss, outputs = super().compute_loss(  # type: ignore[misc]
                model, given, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if balanced:
            # One for each micro-batch, however many tokens it has: their mean over an update's, on all ranks.
            loss = loss + self.balance * outputs.aux_loss / self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        self.finite.note(loss, [row.name for row in rows], outputs.row_losses)
        loss = self.finite.for_backward(loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a micro-batch, and return its loss as it goes into the average that is logged."""
        return self.finite.for_average(super().training_step(*args, **kwargs))  # type: ignore[misc]

    def _on_features(self, inputs: dict[str, Any]) -> AbstractContextManager[dict[str, Any]]:
        if self.features is None:
            return nullcontext(inputs)
        return self.features.given(inputs, self._prepare_inputs, self.accelerator.autocast)  # type: ignore[attr-defined]

    def _aside(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, Sequence[Any], int | None]:
        """Take what is not the model's out of its inputs: positions, rows, supervised tokens where they may count."""
        positions, rows, count = inputs.pop("supervised_positions"), inputs.pop(ROWS, ()), inputs.pop(SUPERVISED, None)
        inputs.pop(FED, None)
        return positions, rows, None if self.fixed_shapes else count

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save complete and finite weights, whatever shards them, and look at what was written."""
        if not _internal_call:  # a checkpoint's were looked at before anything made room for it
            self.finite.before_save()
            self.before_saving()
        arguments, model = self.args, self.model  # type: ignore[attr-defined]
        folder = output_dir or arguments.output_dir
        written = False
        state: dict[str, torch.Tensor] | None = None
        if self.is_fsdp_enabled and is_sharded_by_tensor(model):  # type: ignore[attr-defined]
            state = gathered_state(model, keep=arguments.should_save)
        elif not self.is_deepspeed_enabled or zero_stage(self) == 3:  # type: ignore[attr-defined]
            super().save_model(output_dir, _internal_call=True)  # type: ignore[misc]
            written = True
        # Under ZeRO-1 and 2 every process has all weights; the base class would copy them first, tied ones twice.
        if arguments.should_save:
            if not written:
                self._save(folder, state_dict=state)
            check_saved(Path(folder), self.accelerator.unwrap_model(model))  # type: ignore[attr-defined]
            if self.carried is not None and output_dir is not None and _internal_call:
                self.carried.write(Path(folder))  # a checkpoint; the trainer's state comes last

    def _save(self, *args: Any, **kwargs: Any) -> None:
        """Write weights, and the arguments without the Hub's token."""
        with without_token(self.args):  # type: ignore[attr-defined]
            super()._save(*args, **kwargs)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save where it is due; a checkpoint keeps the sum of the losses so far."""
        self.so_far.note_loss(tr_loss)
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint under a name that is on the folder's list, and have it sealed; older ones may go then."""
        self.sealer.finish()  # what goes for the one before makes room
        self.finite.before_save()
        self.before_saving()
        self.so_far.keep(self)
        self._unpushed: str | None = None
        size, saves = checkpoint_size(self), self.args.should_save  # type: ignore[attr-defined]
        check_room(self, size)
        path = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        with taken_whole(path, size, saves=saves):
            begin_saving(self, path)
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

        def prepare(connection: Any) -> Callable[[], None]:
            end = end_saving(self, path, self.total_limit, connection)
            return partial(in_place, end, path, size, saves=saves)

        self.sealer.seal(prepare, size=size, ranks=self.args.world_size)  # type: ignore[attr-defined]
        if self._unpushed is not None:
            self.sealer.finish()
            # What it copies into the output folder is no end of a run, so a manifest there would not fit it.
            unseal_final(Path(self.args.output_dir))
            with uploading(self):
                super()._push_from_checkpoint(self._unpushed)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Have a checkpoint pushed once its manifest is in place."""
        self._unpushed = checkpoint_folder

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer, with each part's own rate; what the user set for it can be wrong."""
        optimizer = self._create_optimizer(*args, **kwargs)
        drop_empty_groups(optimizer)
        if self.carried is not None:
            self.carried.note_optimizer(optimizer)
        return optimizer

    def _create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        rates = self.part_rates
        try:
            if rates is None:
                return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
            model = args[0] if args else kwargs.get("model") or self.model  # type: ignore[attr-defined]
            with rates.splitting(model):
                optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
            rates.check(optimizer, model)
            return optimizer
        except (ValueError, ImportError, TypeError) as error:
            kind = str(getattr(self.args.optim, "value", self.args.optim))  # type: ignore[attr-defined]
            raise ConfigError(f"--optim {kind} cannot be built: {error}") from error

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Build the schedule; what the user set for it can be wrong."""
        if self.carried is not None:
            self.carried.note_steps(args[0] if args else kwargs["num_training_steps"])
        try:
            return super().create_scheduler(*args, **kwargs)  # type: ignore[misc]
        except (ValueError, TypeError) as error:
            kind = str(getattr(self.args.lr_scheduler_type, "value", ""))  # type: ignore[attr-defined]
            raise ConfigError(f"--lr_scheduler_type {kind} cannot be built: {error}") from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load adapters and engines' own checkpoints as the base class does, plain full weights rightly."""
        if self._has_plain_weights:
            load_full_weights(self.model, resume_from_checkpoint)  # type: ignore[attr-defined]
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`, for `--load_best_model_at_end`; only if it is as it was saved."""
        self.sealer.finish()
        best = Path(self.state.best_model_checkpoint)  # type: ignore[attr-defined]
        check_best(best, Views.of(self.args), engine=self._is_sharded)  # type: ignore[attr-defined]
        if self._has_plain_weights:
            load_full_weights(self.model, str(best))  # type: ignore[attr-defined]
        else:
            super()._load_best_model()  # type: ignore[misc]

    @property
    def _has_plain_weights(self) -> bool:
        """Whether full weights are tuned and lie whole in this process."""
        return not (self._is_sharded or hasattr(self.model, "peft_config"))  # type: ignore[attr-defined]

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)  # type: ignore[attr-defined]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on from a checkpoint's optimizer, if it has the same rates per part, with the settings of this run."""
        let_cpu_have_numbers()
        with resumed_rates(checkpoint, self.optimizer):  # type: ignore[attr-defined]
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if self.carried is not None and checkpoint is not None:
            self.carried.put_in_force(self.optimizer, self.lr_scheduler, checkpoint)  # type: ignore[attr-defined]
        if self.part_rates is not None and checkpoint is not None:
            self.part_rates.check_resumed(self.optimizer, checkpoint)  # type: ignore[attr-defined]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on with a checkpoint's generators, unless this run has another `--seed`."""
        if self.carried is None or not self.carried.reseeds:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log each part's own rate after the first one, which the base class logs; a bad step ends the run first."""
        self.finite.read()
        waited = self.waiting.share() if "loss" in logs else None
        if waited is not None:
            logs["data_wait"] = round(waited, 4)
            logs.update(self.pace.since_last(self.fed, self.args.world_size))  # type: ignore[attr-defined]
        if self.part_rates is not None and "learning_rate" in logs:
            logs.update(self.part_rates.current(self.optimizer))  # type: ignore[attr-defined]
        self.so_far.of_all_ranks(logs, self)
        self.finite.skipped.correct(logs, self.state.global_step)  # type: ignore[attr-defined]
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """Take the batches of one step, and count how long they take to come."""
        self.pace.step_begins()
        return super().get_batch_samples(self.waiting.over(epoch_iterator), *args, **kwargs)  # type: ignore[misc]

    def get_batch_samples_transformers(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """As `get_batch_samples`, by the name that another trainer's loop calls."""
        self.pace.step_begins()
        return super().get_batch_samples_transformers(  # type: ignore[misc]
            self.waiting.over(epoch_iterator), *args, **kwargs
        )

    def get_train_dataloader(self) -> Any:
        """Return the loader of the training rows: its batches say which rows they are of, its workers have a limit."""
        with naming_rows(self):
            return limit(super().get_train_dataloader(), self.loader_timeout)  # type: ignore[misc]

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As `get_train_dataloader`."""
        with naming_rows(self):
            return limit(super().get_eval_dataloader(*args, **kwargs), self.loader_timeout)  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder | PackOrder:
        """Order the training rows as the run's feeding says."""
        return self.feeding.training_order(self, self.row_groups.get("train"))

    def _get_eval_sampler(self, eval_dataset: Any) -> BatchOrder:
        """Evaluate every row once, in order."""
        return evaluation_order(self, eval_dataset, self.row_groups.get("validation"))

    def scored(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the module that scores a batch, captured by the backend unless training is under way."""
        if self.is_in_train:  # type: ignore[attr-defined]
            return ScoredModel(model, self.head)
        if self._scored is None:
            self._scored = self.capture(ScoredModel(model, self.head))
        return self._scored

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Add the batch's row sums to the evaluation's totals; fillers have none."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        positions, rows, count = self._aside(inputs)
        self._row_names.append([row.name for row in rows])
        self._row_numbers += [-1 if row.number is None else row.number for row in rows]
        targets = gather_targets(inputs.pop("labels"), positions)
        autocast = self.compute_loss_context_manager()  # type: ignore[attr-defined]
        with torch.no_grad(), autocast, self._on_features(inputs) as given:
            known = () if count is None else (count,)
            sums = self.scored(model)(given, targets, positions, *known)
        # They stay on the device: reading them here would wait for every batch.
        self._own_sums.append(sums)
        self._row_sums.append(self.accelerator.gather(sums))  # type: ignore[attr-defined]
        return None, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Replace the base class's mean of batch means by one division; add the perplexity, and scores of answers."""
        self.finite.read()
        self._row_sums: list[torch.Tensor] = []
        self._row_names: list[list[str]] = []
        self._row_numbers: list[int] = []
        self._own_sums: list[torch.Tensor] = []
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        prefix = kwargs.get("metric_key_prefix", "eval")
        self.finite.check_evaluation(self._row_sums, self._row_names)
        output.metrics.update(perplexity_metrics(torch.cat(self._row_sums), prefix))
        if self.answering is not None:
            with generating(self), self.compute_loss_context_manager():  # type: ignore[attr-defined]
                scores = self.answering(self.model, everything=not self.is_in_train)  # type: ignore[attr-defined]
            output.metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        let_go_of_weights(self)
        return output

    def row_losses(self) -> dict[int, float]:
        """Return each row's mean loss in nats in the last evaluation, by its number in the split.

        All ranks must call it: each has the rows that it evaluated.
        """
        own = torch.cat(self._own_sums)
        numbers = torch.tensor(self._row_numbers, device=own.device)
        gathered = self.accelerator.gather((numbers, own))  # type: ignore[attr-defined]
        pairs = zip(gathered[0].tolist(), gathered[1].cpu().double().tolist(), strict=True)
        return {number: nll / tokens for number, (nll, tokens) in pairs if tokens}  # fillers have no tokens


def perplexity_metrics(sums: torch.Tensor, prefix: str) -> dict[str, float]:
    """Return loss, perplexity and token count from `(N, 2)` row sums.

    Perplexity is `exp(total negative log-likelihood / total supervised tokens)` (Jurafsky and Martin,
    Speech and Language Processing, section 3.3, on supervised tokens only).
    """
    nll, tokens = sums.cpu().double().sum(dim=0).tolist()
    loss = nll / tokens
    perplexity = math.exp(loss) if loss < 709 else math.inf
    if math.isinf(perplexity):
        logger.warning("A loss of %.4g: its perplexity is beyond what a number holds; results have null for it.", loss)
    return {
        f"{prefix}_loss": loss,
        f"{prefix}_perplexity": perplexity,
        f"{prefix}_supervised_tokens": int(tokens),
    }


def supervised_loss(
    head: SupervisedHead, outputs: Any, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum the token losses and divide by the global batch's supervised tokens (a `compute_loss_func`).

    The outputs get each row's sum as `row_losses` `(B,)`.
    """
    if num_items_in_batch is None:
        raise ModelError(
            "The trainer did not count the global batch's supervised tokens: the loss cannot be normalised."
        )
    losses = head.losses(outputs.logits, targets)
    outputs.row_losses = losses.detach().sum(dim=1)
    return losses.sum() / num_items_in_batch


def compose_trainer(base: type) -> type:
    """Return `Vlm<base>`: the mixin over the backend's trainer class."""
    return type(f"Vlm{base.__name__}", (VlmTrainerMixin, base), {})


def build_trainer(
    backend: Backend,
    *,
    model: torch.nn.Module,
    kwargs: Mapping[str, Any],
    row_groups: Mapping[str, Sequence[Sequence[int]]],
) -> Any:
    """Construct the backend's trainer with the project's loss, order of rows, and the model's supervised head."""
    head = SupervisedHead(model, reads=not backend.traits.static_shapes)
    loss = partial(supervised_loss, head)
    try:
        with only_measured(model, trains=kwargs["args"].do_train):
            trainer = compose_trainer(backend.trainer_class())(model=model, compute_loss_func=loss, **kwargs)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"The trainer refuses these settings: {error}") from error
    trainer.head = head
    trainer.waiting, trainer.pace, trainer.so_far = DataWait(), Pace(backend.memory), SoFar()
    trainer.row_groups = row_groups
    trainer.fixed_shapes = backend.traits.static_shapes
    trainer.capture = backend.capture
    trainer.total_limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    trainer.sealer = Sealer()
    trainer.add_callback(trainer.sealer)
    trainer.add_callback(NothingInTheWay())
    trainer.add_callback(RoomAhead(trainer))
    trainer.finite = FiniteGuard(
        trainer, reads_each_step=not backend.traits.static_shapes, whole_gradient=backend.whole_gradient
    )
    trainer.add_callback(trainer.finite)
    trainer.add_callback(ValidState())
    return trainer
