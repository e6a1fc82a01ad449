"""What the core asks of hardware: three small protocols, found by entry point.

The core imports no adapter. An adapter is any installed distribution with an entry point in the
group `vlm_lora.backends`; `docs/backends.md` shows one on a page.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vlm_lora.config.declaration import Declaration, adapters
from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import BackendError, ConfigError, nearest
from vlm_lora.launch.launching import Launch, LaunchRequest

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Facts about the hardware that the core may use."""

    static_shapes: bool
    """True where every new tensor shape costs a compilation."""
    counts_graphs: bool = False
    """True where whole steps are recorded as graphs, so that planned shapes bound how many are compiled."""
    quantization: tuple[str, ...] = ()
    """Kinds of 4-bit weights (`nf4`, `fp4`) that `model_keywords` knows to load with `--load_in_4bit`."""
    block_diagonal_masks: tuple[str, ...] = ()
    """Attention implementations that read a mask of blocks, one for each of several rows packed into one."""
    liger: bool = False
    """Whether Liger's kernels, which are Triton's, run on it."""
    lora_on_parameters: bool = False
    """Whether LoRA on single parameters, such as all experts of a layer in one, is known to train on it."""
    optimizer: str = ""
    """What its arguments class takes without `--optim`, for plans where the class is not; empty: as transformers'."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Whether a backend can be used here, and why not."""

    usable: bool
    device: str
    """What would be used, in words: `MyCard 2 (139 GiB)`, `CPU (2 cores)`."""
    reason: str = ""
    """Why it is not usable and what to do about it; empty when it is."""
    priority: int = 0
    """`auto` takes the usable backend with the highest priority; the CPU is 0."""


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One kind of device, as the memory plan sees it."""

    name: str
    """What `--device` takes: `H100-80`."""
    total_bytes: int
    """As its driver reports it."""
    fixed_bytes: int
    """Taken before the first tensor: the driver, the process's context and its kernels."""
    source: str
    """Where the two figures come from."""
    is_here: bool = False
    """True for the device of this machine."""
    computes_bf16: bool = True
    """Whether bf16 autocast is the default on it."""
    fused_attention: bool = True
    """Whether sdpa is one kernel that keeps no T x T probabilities."""
    is_cpu: bool = False
    """True for the host itself."""
    flops: float | None = None
    """Floating-point operations a second that its maker states for dense bf16 (fp16 without bf16); None: not known."""
    flops_source: str = ""
    """Where that figure comes from."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtypes of a run on one device, by their names in torch."""

    weights: str
    """Of the base model."""
    autocast: str | None = None
    """What autocast computes in; None without autocast."""
    adapter: str | None = None
    """What an engine casts the whole model to after LoRA is attached; None: LoRA stays float32."""
    widened: frozenset[str] = frozenset()
    """Functions that the device's autocast runs in float32, beyond those of the CPU's."""


class Planner(Protocol):
    """What the memory plan asks of hardware, which need not be here."""

    def devices(self) -> Sequence[DeviceSpec]:
        """Return the kinds of devices that the memory plan knows, those of this machine first. Never raises."""

    def precision(self, run: RunConfig, values: Mapping[str, Any], device: DeviceSpec) -> Precision:
        """Return the dtypes that a run would have on `device`, which need not be here.

        Args:
            run: what was asked for.
            values: the checked keys of the arguments class that were given.
            device: one of `devices()`.
        """


class Launcher(Protocol):
    """How several processes are started."""

    def launch(self, request: LaunchRequest, command: Sequence[str]) -> Launch:
        """Return the command line that starts `command` as asked. Raises ConfigError on what cannot be done."""


class Backend(Protocol):
    """One kind of hardware. Heavy imports belong inside the methods."""

    name: ClassVar[str]
    traits: ClassVar[Traits]
    declaration: ClassVar[Declaration]

    @property
    def planner(self) -> Planner:
        """What the memory plan asks."""

    @property
    def launcher(self) -> Launcher:
        """How several processes are started."""

    def probe(self) -> Probe:
        """Say whether this backend is usable. Never raises."""

    def facts(self) -> Mapping[str, str]:
        """Return what `vlm-lora doctor` shows of drivers, modes and launchers, and what is missing. Never raises."""

    def environment(self, run: RunConfig) -> Mapping[str, str]:
        """Return variables that must be set before torch is imported; import nothing heavy here.

        Raises ConfigError where what was set contradicts the environment.
        """

    def arguments_class(self) -> type[TrainingArguments]:
        """Return the class whose fields are this backend's flags and configuration keys."""

    def prepare(self, run: RunConfig) -> None:
        """Set the environment and patches that must precede any model or process group."""

    def arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Build the training arguments from checked values. Raises ConfigError on what hardware refuses."""

    def device(self) -> torch.device:
        """Return the device of this process."""

    def model_keywords(
        self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments
    ) -> Mapping[str, Any]:
        """Return `from_pretrained` keywords: `torch_dtype` and `attn_implementation`, each logged with its reason."""

    def trainer_class(self) -> type[Trainer]:
        """Return the trainer that the project's mixin is composed with."""

    def trainer_keywords(self, run: RunConfig) -> Mapping[str, Any]:
        """Return further keyword arguments of that trainer."""

    def adapt_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Patch or replace what a vendor's class gets wrong; return the model to use."""

    def keeps_frozen_weights(self) -> bool:
        """Say whether an engine that partitions weights still has frozen ones where a layer is computed again."""

    def whole_gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """Return a parameter's whole gradient where an engine partitions it. All ranks ask in the same order."""

    def capture(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return `module` with its graph captured and replayed, where that was asked for; else as it is.

        Everything its output depends on is an argument of its `forward`. It is used without gradients.
        """

    def generation_keywords(self) -> Mapping[str, Any]:
        """Return further keyword arguments of `generate`."""

    def memory(self) -> Mapping[str, int]:
        """Return memory figures in bytes, by name; empty where the hardware reports none."""

    def reset_peak_memory(self) -> None:
        """Let the highest figure of `memory` begin anew, where the hardware can."""

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Say whether an error means that the device's memory was not enough."""


@cache
def installed() -> Mapping[str, Backend]:
    """Return the installed backends by name, one object each for the whole process."""
    return {name: adapter() for name, adapter in adapters().items()}


def set_environment(run: RunConfig) -> None:
    """Set the run's variables and those of the backends it may use. Call it before torch is imported.

    Raises:
        ConfigError: what was set contradicts the environment.
    """
    os.environ.update(run.environment)
    for name, backend in installed().items():
        if run.backend in ("auto", name):
            os.environ.update(backend.environment(run))


@contextmanager
def called(run: RunConfig) -> Iterator[None]:
    """Set a run's variables for the length of a call; leave the process as `left_as_found` does.

    Raises:
        ConfigError: a variable that is read when torch is imported is not set as the run needs it, and torch is
            imported already.
    """
    if "torch" in sys.modules:
        _refuse_late_variables(run)
    with left_as_found():
        set_environment(run)
        yield


@contextmanager
def left_as_found() -> Iterator[None]:
    """Leave environment, signals and logging as they were found, whatever is called inside."""
    environment, handlers = dict(os.environ), list(logging.root.handlers)
    levels = {logger: logger.level for logger in (logging.root, logging.getLogger("vlm_lora"))}
    main = threading.current_thread() is threading.main_thread()
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        logging.root.handlers[:] = handlers
        for logger, level in levels.items():
            logger.setLevel(level)
        for number, handler in signals.items() if main else ():
            signal.signal(number, handler)


def _refuse_late_variables(run: RunConfig) -> None:
    for name, backend in installed().items():
        if run.backend not in ("auto", name):
            continue
        wanted = backend.environment(run)
        late = {
            variable: value
            for variable, value in wanted.items()
            if variable in backend.declaration.before_torch and os.environ.get(variable) != value
        }
        if late:
            lines = ", ".join(f"{variable}={value}" for variable, value in late.items())
            raise ConfigError(
                f"{lines} must be set before torch is imported, and it is imported already. Set it in the environment "
                "that starts Python, or make this call before anything imports torch."
            )


def select(name: str) -> tuple[Backend, Probe]:
    """Return the backend called `name`, or for `auto` the usable one of highest priority.

    Raises:
        BackendError: no such backend, or it is not usable here. Another device is never taken instead.
    """
    if name != "auto":
        backend = named(name)
        probe = backend.probe()
        if not probe.usable:
            raise BackendError(f"Backend '{name}' is not usable on this machine: {probe.reason}")
        return backend, probe
    probes = [(backend.probe(), backend) for backend in installed().values()]
    usable = [(probe, backend) for probe, backend in probes if probe.usable]
    if not usable:
        reasons = "; ".join(f"{backend.name}: {probe.reason}" for probe, backend in probes) or "none is installed"
        raise BackendError(f"No usable backend: {reasons}. Reinstall with: pip install vlm-lora")
    probe, backend = max(usable, key=lambda pair: pair[0].priority)
    return backend, probe


def named(name: str) -> Backend:
    """Return the backend of that name, be it usable here or not. Raises BackendError where there is none."""
    backends = installed()
    if name not in backends:
        known = ", ".join(sorted(backends)) or "none"
        raise BackendError(f"--backend {name}: installed backends are {known}.{nearest(name, backends)}")
    return backends[name]
