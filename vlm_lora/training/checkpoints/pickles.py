"""Which Python names a checkpoint's files would look up when they are loaded: found without looking any of them up.

A file that `torch.save` wrote is a pickle, and a pickle is a program. torch and transformers load most of them with
`weights_only=True`, which runs none; DeepSpeed, and PyTorch's sharded checkpoints, load theirs as they are. So all of a
checkpoint's files are read here first, with something inert in the place of every name.

`torch.serialization.get_unsafe_globals_in_checkpoint` only disassembles: by its own documentation it does not see a
name that is put together while the pickle runs. Hence this scan.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vlm_lora.errors import ConfigError

LOADED = ("*.pt", "*.pth", "*.bin")
"""What a resumed run may load, anywhere below the checkpoint's folder."""
NEVER_LOADED = frozenset({"training_args.bin"})
"""Written for the record; the run's arguments come from the command line."""
SHARDED = ("*.distcp", ".metadata")
"""PyTorch's sharded checkpoints."""

_HARMLESS = re.compile(
    r"collections\.(OrderedDict|defaultdict)"
    r"|(builtins|__builtin__)\.(set|frozenset|bytearray|complex|int|float|bool|str|list|dict|tuple|slice)"
    r"|_codecs\.encode"
    r"|torch\.(\w*Storage|Size|Tensor|device|b?float\d+\w*|u?int\d+|bool|half|complex\d+)"
    r"|torch\.storage\.(TypedStorage|UntypedStorage)"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|numpy\.(dtype|ndarray)|numpy\.dtypes\.\w+DType"
    r"|numpy\.(core|_core)\.multiarray\.(_reconstruct|scalar)"
    r"|deepspeed\.runtime\.fp16\.loss_scaler\.(LossScaler|DynamicLossScaler)"
    r"|deepspeed\.runtime\.zero\.config\.ZeroStageEnum"
    r"|deepspeed\.utils\.tensor_fragment\.fragment_address"
)
"""Types and functions that build tensors and numbers; none of them imports, opens or calls what it is given, but for
`_rebuild_from_type_v2`, which calls one of the others."""


def refuse_programs(checkpoint: Path) -> None:
    """Make sure that nothing in a checkpoint's folder could run when a resumed run loads it.

    Raises:
        ConfigError: names the file and what it would look up, or the file that cannot be read.
    """
    for pattern in SHARDED:
        sharded = next(checkpoint.rglob(pattern), None)
        if sharded is not None:
            raise ConfigError(
                f"--resume_from_checkpoint {checkpoint}: {sharded} belongs to a sharded checkpoint, which PyTorch "
                "loads by running what it holds. Save with fsdp_state_dict_type FULL_STATE_DICT and resume from that."
            )
    _check_tag(checkpoint)
    for path in sorted(path for pattern in LOADED for path in checkpoint.rglob(pattern)):
        if path.is_file() and path.name not in NEVER_LOADED:
            _check(path, checkpoint)


def _check(path: Path, checkpoint: Path) -> None:
    try:
        with path.open("rb") as stream:
            names = names_in(stream)
    except OSError as error:
        raise ConfigError(f"--resume_from_checkpoint {checkpoint}: {path} cannot be read: {error}.") from error
    except Exception as error:  # whatever the bytes of a file make of an unpickler
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {path} is damaged, or no file that torch.save writes ({error}). "
            "Resume from another checkpoint."
        ) from error
    strange = sorted(name for name in names if not _HARMLESS.fullmatch(name))
    if strange:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {path} holds more than tensors and numbers: loading it would "
            f"call on {', '.join(strange[:3])}. It is not loaded. Resume only from checkpoints of your own."
        )


def _check_tag(checkpoint: Path) -> None:
    """DeepSpeed's `latest` names the folder to load from; it must be one of the checkpoint's own."""
    tag = checkpoint / "latest"
    if tag.is_file() and not re.fullmatch(r"[\w.-]*\w[\w.-]*\s*", tag.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {tag} names no folder of this checkpoint. Resume from another one."
        )


def names_in(stream: BinaryIO) -> frozenset[str]:
    """Return every `module.name` that loading a file of `torch.save` would look up.

    The pickle runs with inert objects for all of them, so a name that it puts together from what a call returns ends
    in an error rather than unseen.

    Raises:
        Exception: not a file of `torch.save`, or a broken one.
    """
    # By torch's own rules, or something could look harmless here and be something else to torch: these four bytes
    # decide for it, and its reader of archives is not Python's.
    if stream.read(4) != b"PK\x03\x04":
        raise ValueError("it has the format of before torch 1.6")
    stream.seek(0)
    archive = torch._C.PyTorchFileReader(stream)
    if "constants.pkl" in archive.get_all_records():
        raise ValueError("it is a TorchScript archive")
    unpickler = _Inspector(io.BytesIO(archive.get_record("data.pkl")))
    unpickler.load()
    return frozenset(unpickler.names)


class _Inert:
    """Stands for any class, function or result; does nothing whatever is done with it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Inspector(pickle.Unpickler):
    """Notes the names that a pickle looks up, and gives it something inert for each."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.names.add(f"{module}.{name}")
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        return _Inert()
