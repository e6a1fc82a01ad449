"""Whether a server loads a folder as it is, by which command, or what to do before: from its files alone.

What vLLM and SGLang take of an adapter are rules read in their source; `servers.json` names the versions, and says
which of their architectures take LoRA, and on the vision tower. `tests/server_tables.py` writes it from that source.
`transformers serve` loads whole models alone, of the classes that it knows to generate. A verdict says which rule it
rests on; what no rule covers is `unknown`, and no promise.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vlm_lora.errors import ModelError
from vlm_lora.model.families import FAMILIES
from vlm_lora.model.folder_faults import ADAPTER_FILE, ADAPTER_WEIGHTS, adapter_settings, read_settings

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes (vllm/config/lora.py); 1 is left out, which only an adapter of rank 1 could use."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Starts that leave the base as it was (vllm/lora/peft_helper.py, `_init_is_supported`)."""
WHOLE_WORDS = ("all", "all-linear")
"""The words that SGLang takes in place of a list of modules (sglang/srt/lora/lora_manager.py)."""
_TOWER = re.compile(r"(^|\.)(visual|vision\w*|image_\w+|multi_modal_projector|connector|merger|aligner|mlp1)(\.|$)")
"""Modules outside of the language model, by the names that families outside of our table give them."""
_TENSOR = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)(\.weight)?$")
"""The tensors that vLLM reads (vllm/lora/utils.py, `parse_fine_tuned_lora_name`)."""


class Answer(Enum):
    """What becomes of a folder in a server."""

    AS_IT_IS = "as it is"
    MERGE = "merge first"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one server does with a folder."""

    server: str
    version: str
    """Of the server's source that the rules were read in."""
    answer: Answer
    why: tuple[str, ...] = ()
    """The rules that decide it, each in words."""
    command: str | None = None
    """What to type; None where nothing helps."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a folder's files say of it."""

    folder: Path
    settings: Mapping[str, Any] | None
    """An adapter's; None for a whole model."""
    tensors: tuple[str, ...] = ()
    """An adapter's, by name."""
    model_type: str | None = None
    """Of the base; None where its configuration is not here."""
    architecture: str | None = None
    base: str | None = None
    quantization: str | None = None
    """How a whole model's own weights are quantized."""
    dtype: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that an adapter changes, by their names in the base."""
        names = [
            _TENSOR.sub("", name).removeprefix("base_model.model.") for name in self.tensors if _TENSOR.search(name)
        ]
        return tuple(dict.fromkeys(names))

    @property
    def outside(self) -> tuple[str, ...]:
        """Those of them that are no part of the language model."""
        family = FAMILIES.get(self.model_type or "")
        if family is None:
            return tuple(name for name in self.modules if _TOWER.search(name))
        paths = (*family.vision, *family.projector)
        return tuple(
            name for name in self.modules if any(name == path or name.startswith(path + ".") for path in paths)
        )


def read_facts(folder: Path) -> Facts:
    """Return what a folder's files say; no weights are read.

    Raises:
        ModelError: there is neither an adapter nor a model.
    """
    if (folder / ADAPTER_FILE).is_file():
        settings = adapter_settings(folder)
        base = settings.get("base_model_name_or_path")
        place = Path(str(base)).expanduser() / "config.json"
        config = read_settings(place) if base and place.is_file() else {}
        return Facts(
            folder=folder,
            settings=settings,
            tensors=_names(folder / ADAPTER_WEIGHTS),
            model_type=config.get("model_type"),
            architecture=next(iter(config.get("architectures") or ()), None),
            base=None if base is None else str(base),
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: neither an adapter (no {ADAPTER_FILE}) nor a model (no config.json). Give a run's folder, one "
            "of its checkpoints, or a merged model."
        )
    config = read_settings(folder / "config.json")
    stored = config.get("quantization_config") or {}
    return Facts(
        folder=folder,
        settings=None,
        model_type=config.get("model_type"),
        architecture=next(iter(config.get("architectures") or ()), None),
        quantization=stored.get("quant_method"),
        dtype=config.get("dtype") or config.get("torch_dtype"),
    )


def _names(path: Path) -> tuple[str, ...]:
    try:
        with safe_open(path, framework="numpy") as file:
            return tuple(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}). Copy the adapter's folder again.") from error


@dataclass(frozen=True, kw_only=True)
class Server:
    """What is known of one server."""

    name: str
    version: str
    architectures: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    """By the class's name in config.json: whether it takes LoRA (`lora`), and beyond the language model (`tower`)."""
    adapters: bool = True
    """Whether it loads any."""
    refuses: Callable[[Facts], Iterator[str]] = lambda facts: iter(())
    """Why it does not take an adapter, whatever the architecture."""
    serve: Callable[[Facts], str] = lambda facts: ""
    """The command for a folder that it takes."""

    def judge(self, facts: Facts) -> Verdict:
        """Say what the server does with a folder."""
        if facts.settings is None:
            return self._whole(facts)
        if not self.adapters:
            return self._verdict(Answer.MERGE, ["whole models alone are loaded, no adapters"], merge_command(facts))
        reasons = list(self.refuses(facts))
        known = self.architectures.get(facts.architecture or "")
        if facts.architecture is None:
            unknown = [f"the base's configuration is not here ({facts.base}), so its architecture is not known"]
        elif known is None:
            unknown = [f"{facts.architecture} is not among the architectures whose LoRA was looked up"]
        else:
            unknown = []
            if not known["lora"]:
                reasons.append(f"{facts.architecture} takes no LoRA there")
            elif facts.outside and not known["tower"]:
                reasons.append(
                    f"{len(facts.outside)} changed modules lie outside of the language model ({facts.outside[0]}), and "
                    f"{facts.architecture} takes LoRA on the language model alone there"
                )
        if reasons:
            return self._verdict(Answer.MERGE, (*reasons, *unknown), merge_command(facts))
        if unknown:
            return self._verdict(Answer.UNKNOWN, unknown, merge_command(facts))
        return self._verdict(Answer.AS_IT_IS, (), self.serve(facts))

    def _whole(self, facts: Facts) -> Verdict:
        if "@" in str(facts.folder) and not self.adapters:
            why = ["what follows @ in a model's name is taken for a revision; move the folder"]
            return self._verdict(Answer.NO, why, None)
        if facts.architecture not in self.architectures:
            why = [f"{facts.architecture} is not among the architectures that were looked up"]
            return self._verdict(Answer.UNKNOWN, why, self.serve(facts))
        return self._verdict(Answer.AS_IT_IS, (), self.serve(facts))

    def _verdict(self, answer: Answer, why: Sequence[str], command: str | None) -> Verdict:
        return Verdict(server=self.name, version=self.version, answer=answer, why=tuple(why), command=command)


def merge_command(facts: Facts) -> str:
    """Return the command that makes one model of adapter and base."""
    merged = facts.folder.with_name(f"{facts.folder.name}-merged")
    return shlex.join(["vlm-lora", "merge", str(facts.folder), "--output_dir", str(merged)])


def _for_both(facts: Facts) -> Iterator[str]:
    """Yield what both vLLM and SGLang refuse."""
    settings = facts.settings or {}
    if settings.get("use_dora"):
        yield "DoRA is refused"
    saved = [name for name in settings.get("modules_to_save") or () if name not in ("classifier", "score")]
    if saved:
        yield f"modules that are saved whole are refused ({', '.join(saved)})"
    if settings.get("trainable_token_indices"):
        yield "rows of the embeddings that are trained alone (new tokens) are refused"
    if settings.get("target_parameters") or any(".experts." in f"{name}." for name in facts.modules):
        yield "adapters on experts have not been shown to be applied"


def _vllm_refuses(facts: Facts) -> Iterator[str]:
    settings = facts.settings or {}
    yield from _for_both(facts)
    if settings.get("lora_bias") or settings.get("bias", "none") != "none":
        yield "a trained bias is refused"
    start = settings.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        yield f"init_lora_weights {start} is refused: it changes the base when PEFT loads the adapter"
    if rank_of(settings) > RANKS[-1]:
        yield f"rank {rank_of(settings)} is above {RANKS[-1]}, the largest --max-lora-rank"
    strange = [name for name in facts.tensors if not _TENSOR.search(name)]
    if strange and not settings.get("use_dora") and not settings.get("modules_to_save"):
        yield f"{len(strange)} tensors are none of LoRA's ({strange[0]}), and refused"


def _sglang_refuses(facts: Facts) -> Iterator[str]:
    settings = facts.settings or {}
    yield from _for_both(facts)
    targets = settings.get("target_modules")
    if isinstance(targets, str) and targets not in WHOLE_WORDS:
        yield "target_modules is a regular expression; only a list of names is taken"
    if (facts.folder / "added_tokens.json").is_file():
        yield "adapters that add tokens are refused"


def rank_of(settings: Mapping[str, Any]) -> int:
    """Return an adapter's largest rank."""
    return max([int(settings.get("r") or 0), *map(int, (settings.get("rank_pattern") or {}).values())])


def _name(facts: Facts) -> str:
    return re.sub(r"[^\w.-]", "-", facts.folder.name) or "tuned"


def _vllm_serve(facts: Facts) -> str:
    if facts.settings is None:
        return shlex.join(["vllm", "serve", str(facts.folder)])
    rank = next(allowed for allowed in RANKS if allowed >= rank_of(facts.settings))
    words = ["vllm", "serve", str(facts.base), "--enable-lora", "--max-lora-rank", str(rank)]
    if facts.outside:
        words.append("--enable-tower-connector-lora")
    return shlex.join([*words, "--lora-modules", f"{_name(facts)}={facts.folder}"])


def _sglang_serve(facts: Facts) -> str:
    words = ["python", "-m", "sglang.launch_server", "--model-path"]
    if facts.settings is None:
        return shlex.join([*words, str(facts.folder)])
    rank = ["--max-lora-rank", str(rank_of(facts.settings))]
    return shlex.join(
        [*words, str(facts.base), "--enable-lora", "--lora-paths", f"{_name(facts)}={facts.folder}", *rank]
    )


def _transformers_serve(facts: Facts) -> str:
    return shlex.join(["transformers", "serve", str(facts.folder)])


@cache
def servers() -> tuple[Server, ...]:
    """Return the servers whose rules are known."""
    table = json.loads((files("vlm_lora.serving") / "servers.json").read_text(encoding="utf-8"))
    whole = table["transformers"]
    whole["architectures"] = {name: {} for name in whole["architectures"]}
    return (
        Server(name="vLLM", refuses=_vllm_refuses, serve=_vllm_serve, **table["vllm"]),
        Server(name="SGLang", refuses=_sglang_refuses, serve=_sglang_serve, **table["sglang"]),
        Server(name="transformers serve", adapters=False, serve=_transformers_serve, **whole),
    )


def facts_of(model: Any, folder: Path) -> Facts:
    """Return what the folder's files will say of an adapter that is about to be trained.

    Args:
        model: a `PeftModel` with one adapter.
        folder: where it will be saved.
    """
    settings = model.peft_config["default"].to_dict()
    config = model.get_base_model().config
    targets = settings.get("target_modules")
    return Facts(
        folder=folder,
        settings={**settings, "target_modules": targets if isinstance(targets, str) else list(targets or ())},
        tensors=tuple(name.replace(".default", "") for name, _ in model.named_parameters() if ".lora_" in name),
        model_type=config.model_type,
        architecture=type(model.get_base_model()).__name__,
        base=str(settings.get("base_model_name_or_path")),
    )


def in_one_line(facts: Facts) -> str:
    """Return the verdicts of all servers in one sentence."""
    verdicts = [server.judge(facts) for server in servers()]
    return "; ".join(f"{one.server} {one.version}: {one.answer.value}" for one in verdicts)


def judge(folder: Path) -> list[Verdict]:
    """Say what each server does with a folder.

    Raises:
        ModelError: it holds neither an adapter nor a model, or cannot be read.
    """
    facts = read_facts(folder)
    return [server.judge(facts) for server in servers()]
