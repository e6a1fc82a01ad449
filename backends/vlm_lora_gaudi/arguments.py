"""transformers' training arguments, with the flags of GaudiTrainer that keep their meaning without it."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class GaudiArguments(TrainingArguments):
    """See the module."""

    gaudi_config_name: str | None = field(default=None, metadata={"help": "A configuration file for GaudiTrainer."})
    use_lazy_mode: bool | None = field(default=None, metadata={"help": "Only false: this road has no lazy mode."})
    compile_dynamic: bool | None = field(default=None, metadata={"help": "Let torch.compile make dynamic shapes."})
    cache_size_limit: int | None = field(
        default=None, metadata={"help": "Graphs that torch.compile keeps of one code."}
    )
