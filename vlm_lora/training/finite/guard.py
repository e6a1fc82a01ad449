"""Losses, gradients and weights are finite, or the run ends within a step on all ranks and saves nothing more.

The norm of each gradient is looked at after the last backward pass of a step, before it is clipped: a norm that is
not finite would make all gradients NaN. With the losses of the step that gives one number, which the ranks agree on.

- Where a read costs little it is read at once, and the update is not made.
- Where it would cut a graph (`Traits.static_shapes`) nothing is read: gradients of a bad step and of all after it are
  replaced by zeros on the device, so weights and moments stay finite; decay and momentum still move them, and they
  are thrown away. How many steps were good is counted there, and read when something is logged (the end of the
  training is), evaluated or saved.
- DeepSpeed steps within the backward pass: its own look at the gradients is asked before. Its static form reads the
  norm that DeepSpeed has computed, after its step; DeepSpeed leaves an update with such a norm out by itself (since
  0.16, in bf16 by `check_grad_overflow`, which is on unless its file says otherwise).
- fp16 with a loss scale skips steps by design: only a loss that is not finite ends it, or a scale below 1.
- With `--on_nonfinite skip_step` the flag is read at each step, everywhere: a schedule is kept on the host. Such a
  step leaves weights, optimizer and schedule as they were, so many times in a row and no more. A loss that is not
  finite makes its gradients NaN: DeepSpeed and fp16's scale, which look at gradients alone, then make no update.

Before each save the trained weights are looked at too: a finite gradient at a huge rate makes them infinite.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback

from vlm_lora.errors import NotFiniteError
from vlm_lora.model.finite_weights import described, local_part, nonfinite
from vlm_lora.training.finite import words
from vlm_lora.training.finite.skipping import SkippedSteps
from vlm_lora.training.finite.words import Report, Verdict
from vlm_lora.training.meeting import Meeting

logger = logging.getLogger(__name__)

LEAST_SCALE = 1.0
"""A loss scale below this scales nothing up: sixteen halvings below where torch starts."""

_COLLAPSED = "loss scale already at minimum"
"""What DeepSpeed says, in a plain Exception, where its scale cannot fall further."""


class _MicroBatch(NamedTuple):
    rows: tuple[str, ...]
    row_losses: torch.Tensor | None
    """`(B,)`, on the device."""
    loss: torch.Tensor


class FiniteGuard(TrainerCallback):
    """Ends a run at its first loss, gradient or weight that is not finite, or leaves such steps out.

    Set `skipped.limit` right after construction.

    Args:
        trainer: the project's, which hands over its losses by `note` and asks before it saves and logs.
        reads_each_step: False where a read in a step cuts a graph.
        whole_gradient: the backend's: a parameter's gradient where an engine partitions it.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        reads_each_step: bool,
        whole_gradient: Callable[[torch.nn.Parameter], torch.Tensor | None],
    ) -> None:
        self._trainer = trainer
        self._whole_gradient = whole_gradient
        self._static = not reads_each_step
        self.skipped = SkippedSteps()
        """The steps that were left out, and how many may be."""
        self._windows: dict[int, list[_MicroBatch]] = {}
        """By step, since the last read."""
        self._measured = True
        self._scale = 0.0
        """Of the loss in fp16, before the update."""
        self._engine: Any = None
        self._trained: list[tuple[str, torch.nn.Parameter]] = []
        self._judged = 0
        self._first = 0
        self._unwrap: list[Callable[[], None]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Get to know the engine, and look at what was resumed.

        Raises:
            NotFiniteError: the checkpoint's weights are not finite.
        """
        trainer = self._trainer
        self._trained = self._trainable()
        device = args.device
        self._zero = torch.zeros((), device=device)
        self._spoiled = torch.zeros((), device=device)  # 0 as long as no loss was bad, then NaN for ever
        self._alive = torch.ones((), device=device)
        self._good = torch.zeros((), device=device)
        self._norms = torch.zeros(len(self._trained), device=device)
        self._windows, self._judged, self._first, self._measured = {}, 0, state.global_step, True
        self.skipped.begin(state)
        self._engine = trainer.accelerator.deepspeed_engine_wrapped.engine if trainer.is_deepspeed_enabled else None
        if state.global_step:
            self._refuse_weights(functools.partial(words.resumed_message, state.global_step))
        if self._engine is not None:
            self._wrap(self._engine, "step", self._engine_step)
            return
        # Whoever clips first would hide whose gradient it was.
        for owner, name in [(trainer.accelerator, "clip_grad_norm_"), *getattr(trainer, "other_clippers", ())]:
            self._wrap(owner, name, self._measure_first)
        if self.skips:
            self._wrap(trainer.optimizer, "step", self._unless_skipped)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the engine as it was."""
        while self._unwrap:
            self._unwrap.pop()()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to collect a step's micro-batches."""
        if self._reads:
            self._windows.clear()
            self._spoiled = self._zero
        self._measured = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients where nothing has clipped them."""
        if self._engine is None:
            self.measure()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step that fp16's scale of the loss left out."""
        scaler = self._trainer.accelerator.scaler
        if scaler is None or self._engine is not None:
            return
        # It falls where an update was left out, and then alone; accelerate does not see what a fused optimizer does.
        scale = float(scaler.get_scale())
        left_out = scale < self._scale
        if left_out:
            self._trainer.optimizer._is_overflow = True
        if left_out and not self.skipped.now:
            self._overflowed(scale)
        elif self.skipped.now and not left_out:
            raise self._step_error(self._step, [])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count on, or anew, how many steps were skipped in a row."""
        self.skipped.step_ends(state)

    @property
    def skips(self) -> bool:
        """Whether a step that is not finite is left out."""
        return self.skipped.limit is not None

    def for_backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Return a micro-batch's loss, which makes all gradients NaN if it is not finite and steps are skipped."""
        return loss * (loss.detach() * 0 + 1) if self.skips else loss

    def for_average(self, loss: torch.Tensor) -> torch.Tensor:
        """Return what a micro-batch adds to the sum of the losses that is logged: nothing if it would spoil that."""
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss)) if self.skips else loss

    def note(self, loss: torch.Tensor, rows: Sequence[str], row_losses: torch.Tensor | None) -> None:
        """Take the loss of one micro-batch; nothing is read.

        Args:
            loss: the micro-batch's share of the step's loss, as it goes into the backward pass.
            rows: the names of its rows.
            row_losses: `(B,)`, each row's summed loss.
        """
        loss = loss.detach().float()
        kept = None if row_losses is None else row_losses.detach()
        self._windows.setdefault(self._step, []).append(_MicroBatch(tuple(rows), kept, loss))
        self._spoiled = self._spoiled + loss * 0

    @torch.no_grad()
    def measure(self) -> None:
        """Look at the step's losses and gradients, once; where nothing may be read, put zeros for bad gradients.

        Raises:
            NotFiniteError: one of them is not finite.
        """
        if self._measured:
            return
        self._measured = True
        scaler = self._trainer.accelerator.scaler
        scaled = scaler is not None
        self._scale = float(scaler.get_scale()) if scaled else 0.0
        collapsed = scaled and self._scale < LEAST_SCALE
        norms = self._norms if scaled else norms_of([self._gradient(tensor) for _, tensor in self._trained], self._zero)
        self._judge(norms, collapsed=collapsed)
        if not self._reads:
            dead = self._alive < 0.5
            for _, tensor in self._trained:
                if tensor.grad is not None:
                    local_part(tensor.grad).masked_fill_(dead, 0)

    def read(self) -> None:
        """Read how many steps were good, where that is not read at each.

        Raises:
            NotFiniteError: not all were; it names the first that was not.
        """
        if self._reads or not self._windows:
            return
        good = int(self._good.item())
        if good == self._judged:
            self._windows.clear()
            return
        finite = self._norms.cpu().isfinite().tolist()
        names = [name for (name, _), fine in zip(self._trained, finite, strict=True) if not fine]
        names = names if self._engine is None else []  # one norm was kept for all
        raise self._step_error(self._first + good + 1, names)

    def before_save(self) -> None:
        """Make sure that what is about to be saved is finite.

        Raises:
            NotFiniteError: a step since the last read was not, or a trained weight is not.
        """
        self.read()
        self._refuse_weights(functools.partial(words.weights_message, self._trainer.state.global_step))

    def check_evaluation(self, sums: Sequence[torch.Tensor], rows: Sequence[Sequence[str]]) -> None:
        """Make sure that all rows have a finite loss.

        Args:
            sums: of each batch, `(ranks * B, 2)` row sums of all ranks, on all ranks the same.
            rows: of each batch, the names of this rank's rows.

        Raises:
            NotFiniteError: names the rows that have not.
        """
        finite = [batch.detach().cpu()[:, 0].isfinite() for batch in sums]
        if all(bool(batch.all()) for batch in finite):
            return
        suspects: list[str] = []
        rank = self._trainer.args.process_index
        for batch, names in zip(finite, rows, strict=True):
            own = batch[rank * len(names) : (rank + 1) * len(names)].tolist()
            suspects += [name for name, fine in zip(names, own, strict=True) if not fine]
        count = sum(len(batch) for batch in finite)
        raise self._error(
            Report(suspects=tuple(suspects)), lambda reports: words.evaluation_message(reports, rows=count)
        )

    @property
    def _reads(self) -> bool:
        """Whether the flag is read at each step."""
        return self.skips or not self._static

    @property
    def _step(self) -> int:
        """The step under way, from 1."""
        return int(self._trainer.state.global_step) + 1

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, tensor) for name, tensor in self._trainer.model.named_parameters() if tensor.requires_grad]

    def _gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a gradient, or a zero where there is none."""
        part = self._zero if tensor.grad is None else local_part(tensor.grad)
        return part if part.numel() else self._zero

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Call `around(function, ...)` in place of an object's function, until the training ends."""
        function = getattr(owner, name)
        # With the function's own marks: torch's schedules look for theirs on an optimizer's step.
        setattr(owner, name, functools.update_wrapper(functools.partial(around, function), function))
        self._unwrap.append(functools.partial(setattr, owner, name, function))

    def _unless_skipped(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take the optimizer's step, but for one that is left out; with a scale of the loss that is done there."""
        if self._trainer.accelerator.scaler is not None:
            return step(*args, **kwargs)
        # accelerate says so to the trainer's loop, which leaves the schedule where it is.
        self._trainer.optimizer._is_overflow = self.skipped.now
        return None if self.skipped.now else step(*args, **kwargs)

    def _overflowed(self, scale: float) -> None:
        self.skipped.overflow(self._trainer.state)
        logger.info("%s", words.overflow_message(self._step, scale, self.skipped.overflows))

    def _measure_first(self, clip: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.measure()
        return clip(*args, **kwargs)

    def _judge(self, norms: torch.Tensor, *, collapsed: bool = False) -> None:
        """Agree whether the step is bad, and say so, leave it out or keep it.

        Raises:
            NotFiniteError: it is, and ends the run.
        """
        bad = torch.cat([norms, self._spoiled[None]]).isfinite().all().logical_not().float()
        if collapsed:
            bad = torch.ones_like(bad)
        if self._trainer.args.world_size > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        self._judged += 1
        if self._reads:
            if bool(bad):
                self._end_or_skip(self._bad_gradients(), collapsed=collapsed)
            return
        self._norms = torch.where(self._alive * bad > 0.5, norms, self._norms)
        self._alive = self._alive * (1 - bad)
        self._good = self._good + self._alive

    def _end_or_skip(self, gradients: Sequence[str], *, collapsed: bool = False) -> None:
        """End the run at the step under way, or leave the step out; all ranks call it.

        Raises:
            NotFiniteError: the step ends the run.
        """
        skipped, step = self.skipped, self._step
        if skipped.limit is None or collapsed:
            raise self._step_error(step, gradients, collapsed=collapsed)
        own = self._step_report(step, gradients)
        judge = functools.partial(words.verdict_on, step, skipped=skipped, trained=len(self._trained))
        meeting = self._meeting()
        verdict = Verdict.read(meeting.message(own.text(), lambda texts: judge(map(Report.read, texts)).text()))
        if verdict.ends:
            raise NotFiniteError(verdict.said, meeting.told)
        skipped.skip(self._trainer.state, mean=verdict.finite_loss)
        if self._trainer.args.process_index == 0:
            logger.warning("%s", verdict.said)

    def _bad_gradients(self) -> list[str]:
        """Return the names of the trained tensors whose gradient is not finite, on this rank."""
        if self._trainer.accelerator.scaler is not None:
            return []
        if self._engine is None:
            return [name for name, tensor in self._trained if not bool(self._gradient(tensor).isfinite().all())]
        if self._engine.fp16_enabled():
            return []
        # Where the gradients are is the engine's own business; all ranks ask in the same order.
        found = [(name, self._whole_gradient(tensor)) for name, tensor in self._trained]
        return [name for name, gradient in found if gradient is not None and not bool(gradient.isfinite().all())]

    def _engine_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take DeepSpeed's step, if what it steps by is finite."""
        engine = self._engine
        if not engine.is_gradient_accumulation_boundary() or self._measured:
            return step(*args, **kwargs)
        self._measured = True
        in_fp16, optimizer, before = engine.fp16_enabled(), engine.optimizer, engine.skipped_steps
        if self._reads:
            looks = getattr(optimizer, "has_overflow", None)
            bad = False
            if not in_fp16 and looks is not None:
                bad = bool(looks(getattr(optimizer, "partition_gradients", True)))
            own = [] if in_fp16 or looks is not None else [self._gradient(tensor) for _, tensor in self._trained]
            self._judge(self._zero.new_full((1,), torch.inf) if bad else norms_of(own, self._zero))
        try:
            taken = step(*args, **kwargs)
        except Exception as error:
            if _COLLAPSED not in str(error):
                raise
            raise self._step_error(self._step, [], collapsed=True) from error
        left_out = engine.skipped_steps > before
        if in_fp16 and left_out and not self.skipped.now:
            self._overflowed(float(optimizer.cur_scale))
        norm = None if in_fp16 else engine.get_global_grad_norm()
        if self._reads:
            # What keeps gradients where nobody looks before the step has a norm after it; -1 is one that is none.
            if norm is not None and not 0 <= float(norm) < torch.inf and not self.skipped.now:
                self._end_or_skip([])
            if self.skipped.now and not left_out:
                raise self._step_error(self._step, [])
        else:
            value = self._zero if norm is None else torch.as_tensor(norm, device=self._zero.device).float()
            self._judge(torch.where(value < 0, torch.nan, value).expand(len(self._trained)))
        return taken

    @torch.no_grad()
    def _refuse_weights(self, message: Callable[[Sequence[Report]], str]) -> None:
        """Look at the trained weights, on all ranks; they may have parts each.

        Raises:
            NotFiniteError: a weight is not finite.
        """
        found = nonfinite(self._trainable(), on_host=self._static)
        bad = torch.tensor(float(bool(found)), device=self._trainer.args.device)
        if self._trainer.args.world_size > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if bool(bad):
            raise self._error(Report(weights=described(found) if found else ""), message)

    def _step_error(self, step: int, gradients: Sequence[str], *, collapsed: bool = False) -> NotFiniteError:
        report = self._step_report(step, gradients)
        if collapsed:
            return self._error(report, functools.partial(words.scale_message, step))
        trained = len(self._trained)
        return self._error(report, lambda reports: words.step_message(step, reports, trained=trained))

    def _step_report(self, step: int, gradients: Sequence[str]) -> Report:
        """Return what this rank knows of a step."""
        rows: list[str] = []
        suspects: list[str] = []
        total = finite = 0.0
        for batch in self._windows.get(step, ()):
            loss = float(batch.loss)
            total += loss
            finite += loss if math.isfinite(loss) else 0.0
            rows += batch.rows
            fine = [True] * len(batch.rows) if batch.row_losses is None else batch.row_losses.isfinite().tolist()
            own = [row for row, good in zip(batch.rows, fine, strict=True) if not good]
            suspects += own or (batch.rows if not torch.isfinite(batch.loss) else ())
        # The gradients tell nothing where the weights themselves are at fault.
        weights = nonfinite(self._trainable(), on_host=self._static)
        parts = [part for part in (local_part(tensor.detach()) for _, tensor in self._trainable()) if part.numel()]
        return Report(
            rows=tuple(rows),
            suspects=tuple(suspects),
            loss=total,
            finite_loss=finite,
            gradients=tuple(gradients),
            weights=described(weights) if weights else "",
            largest=0.0 if weights else max((float(part.abs().max()) for part in parts), default=0.0),
        )

    def _meeting(self) -> Meeting:
        args = self._trainer.args
        return Meeting(args.process_index, args.world_size, timedelta(seconds=args.ddp_timeout))

    def _error(self, own: Report, compose: Callable[[Sequence[Report]], str]) -> NotFiniteError:
        """Return the error with what all ranks know; all ranks call it."""
        meeting = self._meeting()
        message = meeting.message(own.text(), lambda texts: compose([Report.read(text) for text in texts]))
        return NotFiniteError(message, meeting.told)


def norms_of(tensors: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return the 2-norms `(n,)` of tensors in fp32, on the device of `like`; one pass per device and type."""
    if not tensors:
        return like.new_zeros(0)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(place)
    norms: dict[int, torch.Tensor] = {}
    for places in kinds.values():
        found = torch._foreach_norm([tensors[place] for place in places], 2, dtype=torch.float32)
        norms |= dict(zip(places, found, strict=True))
    return torch.stack([norms[place].to(like.device) for place in range(len(tensors))])
