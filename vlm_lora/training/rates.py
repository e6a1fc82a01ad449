"""A learning rate for each part of the model: the optimizer's groups, split further as they are made.

Every optimizer of torch's kind hands its groups to `Optimizer.add_param_group` while it is constructed. There each
group is split by part, so the split keeps the trainer's groups with and without weight decay, works for whatever
class `--optim` or the backend chooses, and is done before an optimizer makes state for its groups (one
that keeps lists of its own would not see groups that are split later). Schedulers scale each group from its own rate.

Handing ready groups to the trainer (`optimizer_cls_and_kwargs` with `params`) would need no hook in torch's class, and
would lose some optimizers: Gaudi's fused AdamW ignores them, GaLore and Muon make groups of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vlm_lora.errors import ConfigError
from vlm_lora.model.parts import Parts

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What FSDP, activation checkpointing and torch.compile put into parameter names."""


class PartRates:
    """Learning rates of single parts; the others have the run's own.

    Args:
        parts: from `find_parts`.
        rates: by part, all above 0.
    """

    def __init__(self, parts: Parts, rates: Mapping[str, float]) -> None:
        self._parts = parts
        self._rates = dict(rates)
        self._groups: list[str] = []
        """The part of each group, in the optimizer's order; empty text for groups with the run's own rate."""

    @contextmanager
    def splitting(self, model: nn.Module) -> Iterator[None]:
        """Within this context, optimizers that are constructed over `model` get one group per rate."""
        part_of = self._by_parameter(model)
        add = torch.optim.Optimizer.add_param_group

        def add_split(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
            given = group["params"]
            split: dict[str, list[Any]] = {}
            for item in [given] if isinstance(given, torch.Tensor) else list(given):
                # torch takes parameters, or pairs of a name and a parameter.
                parameter = item[1] if isinstance(item, tuple) else item
                split.setdefault(part_of.get(id(parameter), ""), []).append(item)
            # The group with the run's own rate first: the trainer logs the first one's.
            # No group without weights (with LoRA, nothing goes without decay): DeepSpeed would drop it later.
            for part in sorted(split):
                rate = {"lr": self._rates[part]} if part else {}
                add(optimizer, {**group, **rate, "params": split[part]})

        torch.optim.Optimizer.add_param_group = add_split  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.optim.Optimizer.add_param_group = add  # type: ignore[method-assign]

    def check(self, optimizer: Any, model: nn.Module) -> None:
        """Make sure that each trainable tensor is in the optimizer with its part's rate.

        Raises:
            ValueError: this optimizer keeps no rate per group.
        """
        part_of = self._by_parameter(model)
        found: dict[int, float] = {}
        self._groups = []
        for group in getattr(optimizer, "param_groups", ()):
            found |= {id(parameter): group.get("lr") for parameter in group["params"]}
            self._groups.append(next((part_of.get(id(parameter), "") for parameter in group["params"]), ""))
        for name, parameter in model.named_parameters():
            part = part_of.get(id(parameter), "")
            if parameter.requires_grad and found.get(id(parameter)) != self._rates.get(part, found.get(id(parameter))):
                raise ValueError(
                    f"it keeps no learning rate per part ({name}); leave --{part}_learning_rate out, or type another "
                    "--optim, for example adamw_torch"
                )

    def check_engine(self, trainer: Any) -> None:
        """Refuse a DeepSpeed configuration that makes the optimizer itself, out of one group.

        Raises:
            ConfigError: says what to take out of the file.
        """
        if not trainer.is_deepspeed_enabled:
            return
        if "optimizer" in trainer.accelerator.state.deepspeed_plugin.deepspeed_config:
            raise ConfigError(
                f"--{next(iter(self._rates))}_learning_rate: the DeepSpeed configuration brings an optimizer of its "
                'own, which has one rate. Take "optimizer" (and "scheduler") out of it and type --optim instead.'
            )

    def check_resumed(self, optimizer: Any, checkpoint: str) -> None:
        """Make sure that the rates which came with a checkpoint are those that were asked for.

        Raises:
            ConfigError: names the part and both rates.
        """
        for part, group in zip(self._groups, optimizer.param_groups, strict=True):
            saved = group.get("initial_lr")
            if part and saved is not None and saved != self._rates[part]:
                raise ConfigError(
                    f"--resume_from_checkpoint {checkpoint}: --{part}_learning_rate {saved} in the checkpoint, "
                    f"{self._rates[part]} now. Give the checkpoint's rate, or start afresh in another --output_dir."
                )

    def current(self, optimizer: Any) -> dict[str, float]:
        """Return the present rate of each part that has its own, as `learning_rate_PART`, and the run's."""
        now: dict[str, float] = {}
        for part, group in zip(self._groups, optimizer.param_groups, strict=True):
            # ZeRO-3 has its weights elsewhere and leaves the lists of its groups empty.
            now.setdefault(f"learning_rate_{part}" if part else "learning_rate", float(group["lr"]))
        return now

    def _by_parameter(self, model: nn.Module) -> dict[int, str]:
        """Return the part of each tensor that belongs to a part with its own rate, by the tensor's id."""
        found = {}
        for name, parameter in model.named_parameters():
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            part = self._parts.part_of(name)
            if part in self._rates:
                found[id(parameter)] = str(part)
        return found


def drop_empty_groups(optimizer: Any) -> None:
    """Take out groups without a weight: with LoRA nothing goes without decay.

    transformers makes such a group and optimum-habana does not: a checkpoint of one would not go on in the other.
    """
    groups = getattr(optimizer, "param_groups", [])
    groups[:] = [group for group in groups if group["params"]] or groups


def _as_ours(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state as `drop_empty_groups` would have left it; earlier versions kept such groups.

    Raises:
        ValueError: another optimizer wrote it. torch's versions add settings to one or drop some; where either has
            some that the other has not, it is not the same one.
    """
    groups = [group for group in state["param_groups"] if group["params"]] or state["param_groups"]
    saved, ours = ({*group} - {"initial_lr"} for group in (groups[0], optimizer.param_groups[0]))
    if saved - ours and ours - saved:
        raise ValueError(
            f"the parameter groups of another optimizer, with {', '.join(sorted(saved - ours))} and without "
            f"{', '.join(sorted(ours - saved))}, which this run's {type(optimizer).__name__} has"
        )
    return {**state, "param_groups": groups}


@contextmanager
def resumed_rates(checkpoint: str | None, optimizer: Any) -> Iterator[None]:
    """Within this context, `optimizer` reads checkpoints with groups without weights; what it refuses is a message.

    Raises:
        ConfigError: the checkpoint's optimizer was split by other learning rates, or tuned other weights.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    hook = None
    if isinstance(inner, torch.optim.Optimizer):
        hook = inner.register_load_state_dict_pre_hook(_as_ours)
    try:
        yield
    except ValueError as error:
        if "parameter group" not in str(error):
            raise
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: its optimizer has other groups of weights ({error}). Give the "
            "same --*_learning_rate and --freeze_* flags and the same optimizer (--optim, or what the backend's own "
            "configuration chooses) as the checkpoint's run, or start afresh in another --output_dir."
        ) from error
    finally:
        if hook is not None:
            hook.remove()
