"""The trainer's state as a file that is JSON, and that is there whole or not at all."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlm_lora.config.whole_files import write_json


class ValidState(TrainerCallback):
    """Has figures that are no numbers written as null.

    transformers writes `Infinity`, for example as the best metric until there is one, which most readers refuse. It
    reads null as well: then there is none yet.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Replace how this state is saved; every training has a state of its own."""
        state.save_to_json = partial(_save, state)


def _save(state: Any, path: str) -> None:
    write_json(Path(path), dataclasses.asdict(state))
