"""What is trained, and how: LoRA and its targets, full weights part by part, and a learning rate for each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vlm_lora.config.sections.checks import check_choice, check_positive
from vlm_lora.errors import ConfigError

FULLY = ("projector", "vision", "embeddings")
"""Parts that can be trained with all their weights beside LoRA on others."""


STARTS = ("default", "gaussian", "orthogonal", "pissa", "olora")
"""How LoRA's matrices may begin: with a change of zero, on a base that stays as it is."""
_FAST_PISSA = re.compile(r"pissa_niter_[1-9]\d*")
_CHANGES_BASE = "it begins by changing the base's weights, so that the adapter would not load on the base as it is"
_OTHER_STARTS: Mapping[str, str] = {
    **dict.fromkeys(("corda", "lora_ga"), _CHANGES_BASE),
    "loftq": "it makes quantized weights of its own; --load_in_4bit trains on those of bitsandbytes",
    "eva": "it needs a pass over the data before training, which is not made here",
}


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Which weights are trained, and how."""

    peft_method: str = "lora"
    """lora, or none for full weights."""
    lora_rank: int = 16
    """Rank r of the LoRA matrices."""
    lora_alpha: float = 32.0
    """LoRA scale: updates are multiplied by alpha / r (alpha / sqrt(r) with --use_rslora)."""
    lora_dropout: float = 0.0
    """Dropout on the LoRA input. 0 is faster and takes less memory."""
    lora_targets: str = field(default="language", metadata={"join": ","})
    """language, projector, vision, all, experts (those of a mixture that are one tensor a layer too; combine with
    commas), a regular expression, or module names."""
    use_rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (Liu et al. 2024)."""
    lora_init: str = "default"
    """How LoRA begins: default (A uniform as PEFT has it, B zero), gaussian (A normal, B zero), orthogonal (A and B
    whose product is zero; an even rank, linear layers), pissa (the largest singular values of each weight;
    pissa_niter_4 finds them faster), olora (by QR); the last two save twice the rank, as the base stays as it is."""
    train_fully: tuple[str, ...] = ()
    """Beside LoRA: parts of which all weights are trained and saved with the adapter: projector, vision, embeddings (a
    head tied to them too)."""
    new_tokens: str | None = None
    """With LoRA: text file of tokens to add, one a line. Of the embeddings (and an untied head) their rows alone are
    trained; embeddings without room for them grow."""
    router_aux_loss_coef: float = 0.0
    """Of a mixture of experts: how much of the model's own loss for an even load of its experts is added to that of a
    micro-batch, for example 0.001; 0 adds none."""
    freeze_language: bool = False
    """With --peft_method none: keep the language model frozen."""
    freeze_vision: bool = True
    """With --peft_method none: keep the vision tower frozen."""
    freeze_projector: bool = False
    """With --peft_method none: keep the projector frozen."""
    freeze_embeddings: bool | None = None
    """With --peft_method none: keep the token embeddings frozen; by default as the language model."""
    freeze_head: bool | None = None
    """With --peft_method none: keep the output head frozen; by default as the language model."""
    language_learning_rate: float | None = None
    """Learning rate of the language model, LoRA on it included; by default --learning_rate."""
    vision_learning_rate: float | None = None
    """Learning rate of the vision tower, LoRA on it included; by default --learning_rate."""
    projector_learning_rate: float | None = None
    """Learning rate of the projector, LoRA on it included; by default --learning_rate."""
    embeddings_learning_rate: float | None = None
    """Learning rate of the token embeddings (and of a head tied to them); by default --learning_rate."""
    head_learning_rate: float | None = None
    """Learning rate of an output head that is not tied to the embeddings; by default --learning_rate."""

    @property
    def frozen(self) -> Mapping[str, bool]:
        """By part: whether it stays as it is with full weights."""
        return {
            "language": self.freeze_language,
            "vision": self.freeze_vision,
            "projector": self.freeze_projector,
            "embeddings": self.freeze_language if self.freeze_embeddings is None else self.freeze_embeddings,
            "head": self.freeze_language if self.freeze_head is None else self.freeze_head,
        }

    @property
    def target_words(self) -> frozenset[str]:
        """The words or names of `lora_targets`; a regular expression is cut at its commas."""
        return frozenset(target.strip() for target in self.lora_targets.split(","))

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """By part: the rates that were given."""
        given = {part: getattr(self, f"{part}_learning_rate") for part in self.frozen}
        return {part: rate for part, rate in given.items() if rate is not None}

    def __post_init__(self) -> None:
        check_choice("peft_method", self.peft_method, ("lora", "none"))
        self._check_start()
        for part in self.train_fully:
            check_choice("train_fully", part, FULLY)
        if self.new_tokens is not None and "embeddings" in self.train_fully:
            raise ConfigError(
                "--train_fully embeddings trains all rows, and --new_tokens those of new tokens alone. Leave one out."
            )
        if self.lora_rank < 1:
            raise ConfigError(f"--lora_rank {self.lora_rank}: must be 1 or more, for example 16.")
        check_positive("lora_alpha", self.lora_alpha)
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"--lora_dropout {self.lora_dropout}: must be at least 0 and below 1.")
        if not 0 <= self.router_aux_loss_coef < math.inf:
            raise ConfigError(
                f"--router_aux_loss_coef {self.router_aux_loss_coef}: must be a finite number of 0 (no such loss) or "
                "more, for example 0.001."
            )
        for part, rate in self.learning_rates.items():
            if not (rate > 0 and math.isfinite(rate)):
                cure = f"--freeze_{part}" if self.peft_method == "none" else f"a --lora_targets without {part}"
                raise ConfigError(
                    f"--{part}_learning_rate {rate}: must be a finite number above 0. To keep the part as it is, "
                    f"type {cure}."
                )
        if self.peft_method == "none" and all(self.frozen.values()):
            raise ConfigError(
                "--freeze_language --freeze_vision --freeze_projector with --peft_method none: nothing is "
                "left to train. Leave one of them out."
            )

    @property
    def begins_with_weights(self) -> bool:
        """Whether LoRA begins with a part of the base's weights."""
        return self.lora_init.startswith("pissa") or self.lora_init == "olora"

    def _check_start(self) -> None:
        name = "pissa" if _FAST_PISSA.fullmatch(self.lora_init) else self.lora_init
        if name in _OTHER_STARTS:
            raise ConfigError(f"--lora_init {self.lora_init}: {_OTHER_STARTS[name]}. Allowed are {', '.join(STARTS)}.")
        check_choice("lora_init", name, STARTS)
        if self.begins_with_weights and self.use_dora:
            raise ConfigError(
                f"--lora_init {self.lora_init} with --use_dora true: not offered together. Leave one of them out."
            )
        if self.lora_init == "orthogonal" and self.lora_rank % 2:
            raise ConfigError(
                f"--lora_init orthogonal needs an even rank, and --lora_rank is {self.lora_rank}. Type another rank, "
                "or --lora_init default."
            )

    def _contradicts_lora(self, part: str) -> bool:
        """Say whether a part's --freeze_* asks for something else than what becomes of it with these LoRA targets."""
        frozen = getattr(self, f"freeze_{part}")
        if frozen == getattr(TuningConfig(), f"freeze_{part}"):
            return False
        targets = self.target_words
        every = targets & {"all", "all-linear"}
        if not targets <= {"language", "vision", "projector", "experts", *every}:
            return True
        return frozen == (part in targets or (bool(every) and part not in ("embeddings", "head")))

    @property
    def _beside_lora(self) -> bool:
        return bool(self.train_fully) or self.new_tokens is not None or self.lora_init != STARTS[0]

    def _refuse_rates_of_frozen_parts(self) -> None:
        """With LoRA: refuse a rate of embeddings and head where they do not train."""
        for part in ("embeddings", "head"):
            trains = self.new_tokens is not None or (part == "embeddings" and part in self.train_fully)
            if part not in self.learning_rates or trains:
                continue
            instead = {"embeddings": "type --train_fully embeddings or --new_tokens FILE"}
            cure = instead.get(part, "train full weights by --peft_method none")
            raise ConfigError(f"--{part}_learning_rate: embeddings and head carry no LoRA. Leave it out, or {cure}.")

    def refuse_what_has_no_effect(self) -> None:
        """Before training: refuse a setting of the other method, which would be ignored.

        Raises:
            ConfigError: names the settings and what to type instead.
        """
        if self.peft_method == "lora":
            if any(self._contradicts_lora(part) for part in self.frozen):
                raise ConfigError(
                    "--freeze_* and --train_vision are for --peft_method none. With LoRA type "
                    "--lora_targets language,vision (or projector, all) to choose the parts."
                )
            self._refuse_rates_of_frozen_parts()
        elif self.lora_targets != "language" or self.use_dora or self.use_rslora or self._beside_lora:
            raise ConfigError(
                "--lora_targets, --lora_init, --use_dora, --use_rslora, --train_fully and --new_tokens are for "
                "--peft_method lora. With full weights choose the parts by --freeze_language, --freeze_vision, "
                "--freeze_projector, --freeze_embeddings and --freeze_head."
            )
        else:
            for part in self.learning_rates:
                if self.frozen[part]:
                    raise ConfigError(
                        f"--{part}_learning_rate: the {part} part is frozen, so its rate would have no effect. Leave "
                        f"it out, or type --freeze_{part} false."
                    )
