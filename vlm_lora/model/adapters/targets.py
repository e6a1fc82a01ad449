"""From what the user asked for to the exact modules that get LoRA, and from those to what PEFT is told of them.

PEFT matches plain names such as `q_proj` anywhere in a model, so they hit the vision tower as well.
Here every choice is resolved to full module names first; the list that goes into `adapter_config.json`
selects exactly those, so plain PEFT reloads the adapter anywhere.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from vlm_lora.compat import renamed_by_peft
from vlm_lora.errors import ConfigError
from vlm_lora.model.adapters.experts import (
    EXPERTS,
    ROUTERS_STAY,
    cannot_be_trained,
    expert_layers,
    expert_parameters,
    named_experts,
    routers,
    warn_of_frozen_experts,
)
from vlm_lora.model.adapters.file_names import lost_modules
from vlm_lora.model.parts import Parts

logger = logging.getLogger(__name__)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "language": ("language",),
    "projector": ("projector",),
    "vision": ("vision",),
    "all": ("language", "projector", "vision"),
    "all-linear": ("language", "projector", "vision"),
    EXPERTS: (EXPERTS,),
}
"""Words that name parts, and experts of the language model; `all-linear` is PEFT's own."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NAME = re.compile(r"[\w.]+")
_NESTED = re.compile(r"\.base_layer(?=\.|$)")
_NEVER = ("head", "embeddings")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What gets LoRA, by full names in the model's order."""

    modules: tuple[str, ...]
    """Linear layers and convolutions."""
    parameters: tuple[str, ...] = ()
    """Experts that are one parameter a layer."""


def resolve_targets(model: nn.Module, parts: Parts, wanted: str) -> Targets:
    """Return what gets LoRA.

    Args:
        model: without PEFT around it.
        parts: from `find_parts`.
        wanted: `language`, `projector`, `vision`, `all`, `experts`, or several joined by commas; or a regular
            expression that must match a whole module name (or that of a parameter that holds experts); or module
            names joined by commas, each a full name or its end. A bare name such as `q_proj` means the language model
            where that has it.

    Raises:
        ConfigError: nothing is selected; the message shows the nearest names there are.
    """
    words = [word.strip() for word in wanted.strip("[]() ").split(",") if word.strip(" '\"")]
    words = [word.strip("'\"") for word in words]
    supported = _supported(model, parts)
    experts = expert_parameters(model, parts)
    if words and all(word in GROUPS for word in words):
        chosen = _by_group(model, parts, supported, words)
        parameters = set(experts) if EXPERTS in words else set()
        if EXPERTS not in words and any("language" in GROUPS[word] for word in words):
            warn_of_frozen_experts(model, parts, wanted)
    elif words and all(_NAME.fullmatch(word) for word in words):
        chosen, parameters = _by_name(model, parts, supported, words)
    else:
        chosen = _by_pattern(supported, wanted)
        parameters = set(named_experts(model, parts, pattern=wanted))
    beyond = sorted(parameters - set(experts))
    parameters &= set(experts)
    if beyond and not (chosen or parameters):
        raise ConfigError(cannot_be_trained(wanted, beyond))
    return _usable(model, parts, supported, wanted, words, chosen, [name for name in experts if name in parameters])


def _usable(
    model: nn.Module,
    parts: Parts,
    supported: Mapping[str, nn.Module],
    wanted: str,
    words: Sequence[str],
    chosen: set[str],
    parameters: Sequence[str],
) -> Targets:
    """Leave out what LoRA would have no effect on, or PEFT cannot wrap.

    Raises:
        ConfigError: nothing is left.
    """
    unused = [name for name in supported if name in chosen and not parts.carries_lora(name)]
    if unused:
        logger.info("LoRA leaves out %d modules whose output the model never reads, %s first.", len(unused), unused[0])
    routing = [name for name in routers(model, parts) if name in chosen]
    if routing:
        logger.info("LoRA leaves out %d routers, such as %s. %s", len(routing), routing[0], ROUTERS_STAY)
    renamed = _mistaken_for_experts(model, [name for name in chosen if name not in routing])
    left_out = {*unused, *routing, *renamed}
    names = _found_again(model, [name for name in supported if name in chosen and name not in left_out])
    if names or parameters:
        return Targets(modules=names, parameters=tuple(parameters))
    if routing:
        raise ConfigError(
            f"--lora_targets {wanted}: it selects nothing but routers, such as {routing[0]}. {ROUTERS_STAY} Type "
            "--lora_targets language."
        )
    if unused:
        raise ConfigError(
            f"--lora_targets {wanted}: the only modules it selects are never used by this model, such as "
            f"{unused[0]}. Type --lora_targets language."
        )
    if chosen - left_out:
        raise ConfigError(
            f"--lora_targets {wanted}: the installed PEFT would not find LoRA on any of these layers again, such as "
            f"{min(chosen - left_out)}. Type --lora_targets language, or --peft_method none."
        )
    raise ConfigError(_nothing(model, parts, supported, wanted, words))


def _found_again(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the modules without those whose LoRA PEFT would not find again in an adapter's file."""
    lost = lost_modules(model, names)
    if lost:
        logger.warning(
            "LoRA leaves out %d of %d layers, such as %s: the installed PEFT rewrites their names when it loads an "
            "adapter of this model, so that none on them would load again. --peft_method none trains them.",
            len(lost),
            len(names),
            lost[0],
        )
    return tuple(name for name in names if name not in lost)


def _mistaken_for_experts(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return those of the modules that PEFT would not find again in an adapter's configuration.

    For some mixtures it takes names of linear layers for those that experts had in transformers 4, and puts LoRA on
    the experts instead, shared or dense layers among them.
    """
    old = renamed_by_peft(getattr(model, "config", None))
    found = sorted(name for name in names if name.rpartition(".")[2] in old)
    if found:
        logger.warning(
            "LoRA leaves out %d linear layers, such as %s: for this model the installed PEFT takes their names "
            "(%s) for experts' of transformers 4, so that no adapter on them would load again. "
            "--peft_method none trains them.",
            len(found),
            found[0],
            ", ".join(sorted({name.rpartition(".")[2] for name in found})),
        )
    return found


def module_setting(model: nn.Module, names: Sequence[str]) -> str | list[str]:
    """Return `target_modules` for PEFT: names, of which SGLang takes nothing else, that select these modules alone.

    Each is a module's last steps where all modules that end so are chosen, else its full name. Only where a full name
    is the end of another module's it is a compact regular expression. For some mixtures PEFT takes last names for
    those of experts, so that full names stand there.

    Args:
        model: without PEFT around it.
        names: of its modules, in full.
    """
    if not names:
        return []
    if renamed_by_peft(getattr(model, "config", None)):
        return list(names)
    wanted = set(names)
    beyond = {end for name, _ in model.named_modules() if name not in wanted for end in _ends(name)}
    chosen = [next((end for end in _named_ends(name) if end not in beyond), None) for name in names]
    listed = [end for end in chosen if end is not None]
    return list(dict.fromkeys(listed)) if len(listed) == len(chosen) else compact_regex(model, names)


def _ends(name: str) -> list[str]:
    """Return all that a module's name ends with, whole steps, shortest first."""
    steps = name.split(".")
    return [".".join(steps[-count:]) for count in range(1, len(steps) + 1)]


def _named_ends(name: str) -> list[str]:
    """Return those of a module's ends that hold no number, and its full name."""
    return [*(end for end in _ends(name)[:-1] if not any(map(str.isdecimal, end.split(".")))), name]


def selected_modules(tuned: nn.Module, setting: str | Sequence[str]) -> frozenset[str]:
    """Return which modules of the base a `target_modules` selects, by PEFT's rule.

    Args:
        tuned: a `PeftModel`.
        setting: from an adapter_config.json; names, or a regular expression.

    Returns:
        Their names in the base.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=setting if isinstance(setting, str) else list(setting))
    names = {base_name(name) for name, _ in tuned.named_modules()}
    return frozenset(name for name in names if check_target_module_exists(config, name))


def base_name(name: str) -> str:
    """Return the name that a module of a `PeftModel` has in its base."""
    return _NESTED.sub("", name.removeprefix("base_model.model."))


def compact_regex(model: nn.Module, names: Sequence[str]) -> str:
    """Return a short regular expression that matches exactly `names`, as whole names, among the modules."""
    modules = [name for name, _ in model.named_modules() if name]
    wanted = set(names)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)].append(name)
    leaves: dict[str, list[str]] = defaultdict(list)
    for shape, members in groups.items():
        parent, _, leaf = shape.rpartition(".")
        prefix = _numbered(parent, leaf, members, modules, wanted)
        leaves[prefix].append(re.escape(leaf) if leaf != "#" else _numbers(members, -1))
    pattern = "|".join(
        (prefix + r"\." if prefix else "") + (ends[0] if len(ends) == 1 else f"(?:{'|'.join(ends)})")
        for prefix, ends in leaves.items()
    )
    selected = {name for name in modules if re.fullmatch(pattern, name)}
    if selected != wanted:
        # A shape that numbers alone cannot tell apart: spell every name out.
        pattern = "|".join(re.escape(name) for name in names)
    return pattern


def _numbers(members: Iterable[str], position: int) -> str:
    found = sorted({int(name.split(".")[position]) for name in members})
    return str(found[0]) if len(found) == 1 else f"(?:{'|'.join(map(str, found))})"


def _numbered(parent: str, leaf: str, members: Sequence[str], modules: Sequence[str], wanted: set[str]) -> str:
    r"""Return the regex of a parent path, with `\d+` for its numbers unless that is too wide."""
    steps = parent.split(".") if parent else []
    wide = r"\.".join(r"\d+" if step == "#" else re.escape(step) for step in steps)
    if leaf != "#":
        full = re.compile((wide + r"\." if wide else "") + re.escape(leaf))
        if all(name in wanted for name in modules if full.fullmatch(name)):
            return wide
    return r"\.".join(_numbers(members, index) if step == "#" else re.escape(step) for index, step in enumerate(steps))


def _supported(model: nn.Module, parts: Parts) -> dict[str, nn.Module]:
    """Every module that may carry LoRA: linear layers and convolutions outside head and embeddings."""
    found: dict[str, nn.Module] = {}
    inside_attention: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            # It reads its projections' weights without calling them: LoRA there would change nothing.
            inside_attention.append(name + ".")
        elif name.startswith(tuple(inside_attention)):
            continue
        elif isinstance(module, (nn.Linear, *CONVOLUTIONS)) and parts.part_of(name) not in _NEVER:
            found[name] = module
    return found


def _by_group(model: nn.Module, parts: Parts, supported: Mapping[str, nn.Module], words: Sequence[str]) -> set[str]:
    wanted = {part for word in words for part in GROUPS[word]}
    inside = {name: module for name, module in supported.items() if parts.part_of(name) in wanted}
    if EXPERTS in wanted:
        inside |= {name: supported[name] for name in expert_layers(supported, parts)}
    convolutions = [name for name, module in inside.items() if isinstance(module, CONVOLUTIONS)]
    if convolutions:
        logger.info(
            "LoRA leaves out %d convolutions, such as %s; name them in --lora_targets to tune them.",
            len(convolutions),
            convolutions[0],
        )
    chosen = set(inside) - set(convolutions)
    for part in sorted(wanted - {EXPERTS}):
        if not any(parts.part_of(name) == part for name in chosen):
            paths = ", ".join(getattr(parts, part)) or "nothing"
            logger.warning("--lora_targets %s: the %s (%s) has no linear layers.", ",".join(words), part, paths)
    if EXPERTS in wanted and not (expert_layers(chosen, parts) or expert_parameters(model, parts)):
        others = ",".join(word for word in words if word != EXPERTS) or "language"
        raise ConfigError(f"--lora_targets {','.join(words)}: this model has no experts. Type --lora_targets {others}.")
    return chosen


def _by_name(
    model: nn.Module, parts: Parts, supported: Mapping[str, nn.Module], words: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Return the modules and the weights outside linear layers that names select."""
    chosen: set[str] = set()
    parameters: set[str] = set()
    for word in words:
        hits = {name for name in supported if name == word or name.endswith("." + word)}
        language = {name for name in hits if parts.part_of(name) == "language"}
        # As with PEFT, a name that linear layers have means those alone.
        named = set() if language or ("." in word and hits) else set(named_experts(model, parts, names=[word]))
        if named and not named & set(expert_parameters(model, parts)):
            raise ConfigError(cannot_be_trained(word, sorted(named)))
        if word == EXPERTS:
            language |= set(expert_layers(supported, parts))
        if "." not in word and (language or named) and language != hits:
            elsewhere = hits - language
            if elsewhere:
                logger.info(
                    "--lora_targets %s: taken in the language model only; %d modules of that name elsewhere, such as "
                    "%s, are left out. Give a longer name to tune those.",
                    word,
                    len(elsewhere),
                    min(elsewhere),
                )
            hits = language
        if not hits and not named:
            raise ConfigError(_missing_name(supported, word))
        chosen |= hits
        parameters |= named
    if not parameters and named_experts(model, parts, names=words):
        warn_of_frozen_experts(model, parts, ",".join(words))
    return chosen, parameters


def _by_pattern(supported: Mapping[str, nn.Module], pattern: str) -> set[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"--lora_targets {pattern}: not a regular expression ({error}). Allowed are language, projector, vision, "
            "all, experts, a regular expression, or module names joined by commas."
        ) from None
    return {name for name in supported if compiled.fullmatch(name)}


def _examples(supported: Mapping[str, nn.Module]) -> str:
    """One example of each kind of module name, its numbers left as they are."""
    shapes: dict[str, str] = {}
    for name in supported:
        shapes.setdefault(re.sub(r"\d+", "#", name), name)
    return ", ".join(list(shapes.values())[:12])


def _missing_name(supported: Mapping[str, nn.Module], word: str) -> str:
    ends = sorted({name.rpartition(".")[2] for name in supported})
    near = difflib.get_close_matches(word, [*ends, *supported], n=4, cutoff=0.5)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return (
        f"--lora_targets: no module is called {word!r}.{hint} Allowed are language, projector, vision, all, experts, a "
        f"regular expression, or names such as {', '.join(ends[:12])}. Embeddings and head carry no LoRA."
    )


def _nothing(
    model: nn.Module, parts: Parts, supported: Mapping[str, nn.Module], wanted: str, words: Sequence[str]
) -> str:
    if words and all(word in GROUPS for word in words):
        return (
            f"--lora_targets {wanted}: that part of this model has no linear layers. Use a regular expression for "
            f"its convolutions; module names look like {_examples(supported)}."
        )
    everything = [name for name, _ in model.named_modules() if name]
    near = difflib.get_close_matches(wanted.replace("\\", "").replace(".*", "."), everything, n=3, cutoff=0.4)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return (
        f"--lora_targets {wanted}: matches no module that can carry LoRA. A regular expression must match the whole "
        f"name, for example .*language_model.*q_proj.{hint} Module names look like {_examples(supported)}."
    )


def adapted_weights(tuned: nn.Module) -> list[str]:
    """Return what carries LoRA in a `PeftModel`: modules by their names, experts in one tensor by the parameter's."""
    return [weight_name(name, module) for name, module in tuned.named_modules() if hasattr(module, "lora_A")]


def weight_name(name: str, layer: nn.Module) -> str:
    """Return the name in the base of what one of PEFT's layers changes: a module, or a parameter that holds experts."""
    # PEFT nests what it puts around several parameters of one module.
    parameter = getattr(layer, "parameter_name", None)
    return base_name(name) if parameter is None else f"{base_name(name)}.{parameter}"
