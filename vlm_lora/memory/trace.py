"""One training step of a model without weights: what is alive at the moments that may be its peak."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from vlm_lora.backend import Precision
from vlm_lora.compat import TRAINER_TURNS_CACHE_OFF, set_dtype, without_initialisation
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ModelError
from vlm_lora.memory.depth import BEFORE, TURN, Cut, Outline, cut_config, extend, mark_layers
from vlm_lora.memory.ledger import BACKWARD, BATCH, GRADIENTS, LANGUAGE, LOGITS, VISION, Ledger, Moment
from vlm_lora.memory.simulation import Simulation
from vlm_lora.model.adapters.experts import routers
from vlm_lora.model.adapters.new_tokens import NewTokens, grow
from vlm_lora.model.adapters.starts import as_plain
from vlm_lora.model.checkpointing import enable_checkpointing
from vlm_lora.model.families import Family
from vlm_lora.model.head.completion import complete
from vlm_lora.model.objective import SupervisedHead, gather_targets
from vlm_lora.model.parts import Part, Parts, base_of, decoder_layers, find_parts
from vlm_lora.model.tuning import apply_tuning


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is simulated."""

    tuning: TuningConfig
    checkpointing: bool
    precision: Precision
    attention: str | None
    """`sdpa` or `eager`; None for what transformers takes by itself."""
    fused_attention: bool
    """Whether sdpa runs as one kernel that keeps no T x T probabilities."""
    fixed_shapes: bool = False
    """Whether the head runs on what pads the supervised positions as well."""
    new_tokens: NewTokens | None = None
    """Tokens whose rows are trained: each forward pass makes a copy of a table that holds such rows."""
    rows: int | None = None
    """How many rows the embeddings get for them."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter of the model."""

    name: str
    part: Part
    elements: int
    bytes: int
    shape: tuple[int, ...]
    trained: bool
    adapter: bool
    """Made by LoRA."""
    quantizable: bool
    """The matrix of a frozen linear layer of the decoder, which `--load_in_4bit` quantizes."""
    layer: str
    """The decoder layer that holds it; empty outside of them."""


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """What one step needs besides optimizer states."""

    weights: tuple[Weight, ...]
    buffer_bytes: int
    batch_bytes: int
    """One micro-batch."""
    moments: tuple[Moment, ...]
    layers_run: int = 0
    """Decoder layers of the simulated step: fewer than the model's where they repeat."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What is counted on the whole model, whatever part of it is run."""

    weights: tuple[Weight, ...]
    buffer_bytes: int
    outline: Outline
    cut: Cut | None
    """A shallower model that may stand for it."""


Known: TypeAlias = dict[tuple[TuningConfig, Precision], Whole]


def trace_step(
    step: Step,
    *,
    config: Any,
    family: Family,
    batch: Mapping[str, torch.Tensor],
    trust_remote_code: bool,
    known: Known | None = None,
    whole: bool = False,
) -> StepTrace:
    """Simulate forward pass, loss and backward pass of one micro-batch with the model's own code.

    Args:
        step: what is trained, and how.
        config: the model's configuration; no weight is read.
        family: the model's family.
        batch: what the collator makes: `input_ids` `(B, T)`, `labels`, `supervised_positions` `(B, K)`, images.
        trust_remote_code: whether the model's own Python code may run.
        known: of the same model, from earlier steps; added to.
        whole: run every layer, also where layers that repeat could be left out.

    Raises:
        ModelError: the model's code reads a value that is not there without weights, so it cannot be simulated.
    """
    known = {} if known is None else known
    build = partial(_Built, step, family=family, trust_remote_code=trust_remote_code)
    key = (step.tuning, step.precision)
    model: _Built | None = None
    try:
        # The simulation draws no numbers that anybody sees; the process's generator stays as it is.
        with torch.random.fork_rng(devices=[]):
            if key not in known:
                model = build(config)
                known[key] = model.describe(config)
            run = None if whole else _shallow(known[key], build, batch)
            if run is None and not whole:
                known[key] = replace(known[key], cut=None)  # it would not stand for it with other batches either
            if run is None:
                model = model or build(config)
                model.run(batch)
                run = model, model.ledger.moments()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"{type(config).__name__}: the step cannot be simulated ({type(error).__name__}: {_short(error)}). "
            "Please report the model's class; --debug shows the place."
        ) from error
    taken, moments = run
    return StepTrace(
        weights=known[key].weights,
        buffer_bytes=known[key].buffer_bytes,
        batch_bytes=taken.batch_bytes,
        moments=moments,
        layers_run=len(taken.layers),
    )


def _short(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200].rstrip(".")


def _shallow(
    whole: Whole, build: Callable[[Any], _Built], batch: Mapping[str, torch.Tensor]
) -> tuple[_Built, tuple[Moment, ...]] | None:
    """Run a model with fewer layers; return it and the whole one's moments, None where it cannot stand for that."""
    if whole.cut is None:
        return None
    try:
        model = build(whole.cut.config)
        if not model.outline().stands_for(whole.outline):
            return None
        model.run(batch)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        # Other settings depend on the number of layers. The whole model, run next, says so if it is at fault itself.
        return None
    moments = extend(model.ledger, whole.cut)
    return None if moments is None else (model, moments)


class _Built:
    """A model without numbers, and what its step makes.

    Args:
        step: what is simulated.
        config: the model's configuration.
        family: the model's family.
        trust_remote_code: whether the model's own Python code may run.
    """

    def __init__(self, step: Step, config: Any, *, family: Family, trust_remote_code: bool) -> None:
        self.ledger = Ledger()
        self.batch_bytes = 0
        self._step = step
        self._simulation = Simulation(self.ledger)
        with self._simulation:
            self.module = _build(step, config, family, trust_remote_code)
            _empty(self.module, self._simulation, step.precision)
        self._parts = find_parts(self.module, family)
        self.layers = decoder_layers(self.module, self._parts)

    def outline(self) -> Outline:
        """Return what tells this model from others."""
        return Outline.of(base_of(self.module), self.layers)

    def describe(self, config: Any) -> Whole:
        """Return what is counted on this model, the whole one, and how it may be cut."""
        outline = self.outline()
        return Whole(
            weights=tuple(weights_of(self.module, self._parts)),
            buffer_bytes=sum(buffer.nbytes for buffer in self.module.buffers()),
            outline=outline,
            cut=cut_config(config, outline),
        )

    def run(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Take the step; the ledger counts it."""
        with self._simulation:
            with self.ledger.labelled(BATCH):
                inputs = {name: self._simulation.without_numbers(tensor) for name, tensor in batch.items()}
            self.batch_bytes = self.ledger.alive(BATCH)
            _watch(self.module, self._parts, self.ledger)
            modules = [base_of(self.module).get_submodule(name) for name in self.layers]
            mark_layers(modules, self.ledger)
            _run(self._step, self.module, inputs, self.ledger)


def _build(step: Step, config: Any, family: Family, trust_remote_code: bool) -> Any:
    import transformers

    own = copy.deepcopy(config)
    if TRAINER_TURNS_CACHE_OFF:
        for each in {id(c): c for c in (own, own.get_text_config())}.values():
            each.use_cache = False
    dtype = getattr(torch, step.precision.weights)
    set_dtype(own, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with warnings.catch_warnings(), without_initialisation():
            warnings.simplefilter("ignore")  # initialisers warn about tensors without numbers
            automatic = getattr(transformers, family.auto_class)
            model = automatic.from_config(
                own,
                attn_implementation=step.attention,
                trust_remote_code=trust_remote_code,
            )
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    complete(model)
    if step.rows is not None:
        grow(model, find_parts(model, family), step.rows)
    model = apply_tuning(model, family, as_plain(step.tuning), new_tokens=step.new_tokens)
    if step.checkpointing:
        enable_checkpointing(model, family)
    return model.train()


def _empty(model: nn.Module, simulation: Simulation, precision: Precision) -> None:
    """Take the numbers out of small parameters too: what they touch would be computed. Tied ones stay tied.

    Where an engine casts the whole model, they are made in its dtype.
    """
    cast = None if precision.adapter is None else getattr(torch, precision.adapter)
    fakes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                plain = simulation.fake(parameter.detach().to(cast or parameter.dtype))
                fake = nn.Parameter(plain, requires_grad=parameter.requires_grad)
                module._parameters[name] = fakes.setdefault(id(parameter), fake)


def weights_of(model: nn.Module, parts: Parts) -> Iterator[Weight]:
    """Yield what each parameter is."""
    routing = {*routers(model, parts)}
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and parts.part_of(name) == "language"
        and parts.carries_lora(name)
        and name not in routing
    }
    layers = decoder_layers(model, parts)
    prefix = "base_model.model."
    for name, parameter in model.named_parameters():
        bare = name.removeprefix(prefix)
        adapter = ".lora_" in name
        yield Weight(
            name=bare,
            part=parts.part_of(name),
            elements=parameter.numel(),
            bytes=parameter.nbytes,
            shape=tuple(parameter.shape),
            trained=parameter.requires_grad,
            adapter=adapter,
            quantizable=name in linear and not adapter and not parameter.requires_grad,
            layer=next((layer for layer in layers if bare.startswith(layer + ".")), ""),
        )


def _watch(model: nn.Module, parts: Parts, ledger: Ledger) -> None:
    """Say what each tensor is for: by the part that makes it, and by its becoming a gradient."""
    base = base_of(model)
    modules = dict(base.named_modules())
    within = {VISION: (*parts.vision, *parts.projector), LANGUAGE: decoder_layers(model, parts)}
    for label, paths in within.items():
        for path in paths:
            if path in modules and not isinstance(modules[path], nn.ModuleList):
                modules[path].register_forward_pre_hook(_pusher(ledger, label))
                # Recomputation ends a layer by an exception.
                modules[path].register_forward_hook(lambda *_: ledger.pop(), always_call=True)
    for path in parts.head:
        # What follows the head is the loss: the label stays.
        modules[path].register_forward_pre_hook(_pusher(ledger, LOGITS))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_graded(ledger))


def _pusher(ledger: Ledger, label: str) -> Callable[..., None]:
    return lambda *_: ledger.push(label)


def _graded(ledger: Ledger) -> Callable[[torch.Tensor], None]:
    def note(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            ledger.move(parameter.grad, GRADIENTS)

    return note


def _run(step: Step, model: Any, inputs: dict[str, torch.Tensor], ledger: Ledger) -> None:
    positions = inputs.pop("supervised_positions")
    with ledger.labelled(BATCH):
        targets = gather_targets(inputs.pop("labels"), positions)
    head = SupervisedHead(model, reads=False)
    # The longest answer of the data may stand in another batch than this one, the longest rows.
    count = None if step.fixed_shapes else max(int((positions >= 0).sum()), positions.shape[1])
    autocast = step.precision.autocast
    ledger.begin((BEFORE, 0))
    with ledger.labelled(LANGUAGE), ExitStack() as stack:
        if not step.fused_attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        with _autocast(step.precision), head.on(positions, targets, count):
            outputs = model(**inputs)
            if autocast is not None:  # as accelerate's wrapper does
                outputs = tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, outputs)
            loss = head.losses(outputs.logits, targets).sum() / positions.numel()
        del outputs
        ledger.begin((TURN, 0))  # autocast has forgotten its copies of weights
        with ledger.labelled(BACKWARD):
            loss.backward()


@contextmanager
def _autocast(precision: Precision) -> Iterator[None]:
    if precision.autocast is None:
        yield
        return
    dtype = getattr(torch, precision.autocast)
    with torch.autocast("cpu", dtype=dtype), _Widened(precision.widened, dtype):
        yield


class _Widened(TorchFunctionMode):
    """Runs in float32 what the device's autocast runs in float32 and the simulated one does not.

    Args:
        names: of functions in `torch` or `torch.nn.functional`.
        narrow: the dtype that is widened.
    """

    def __init__(self, names: frozenset[str], narrow: torch.dtype) -> None:
        super().__init__()
        self._names = names
        self._narrow = narrow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function, its inputs widened where it is one of the names."""
        kwargs = kwargs or {}
        wide = getattr(func, "__name__", "") in self._names and kwargs.get("dtype") is None
        if wide and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(torch.Tensor, self._widen, (args, kwargs))
        return func(*args, **kwargs)

    def _widen(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype == self._narrow else tensor
