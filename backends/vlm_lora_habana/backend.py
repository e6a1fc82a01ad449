"""Says what a machine lacks for Gaudi. The rest of the Backend protocol comes with the Gaudi release."""

from __future__ import annotations

import importlib.util
import shutil
from typing import ClassVar

from vlm_lora.backend import Probe, Traits

INSTALL = {
    "habana_frameworks": "Habana's PyTorch (habana_frameworks is not installed): run inside a Gaudi container or "
    "install the Gaudi software",
    "optimum.habana": "optimum-habana: pip install -r requirements-hpu.txt",
}


class HabanaBackend:
    """Found by `--use_habana`; never usable in this version, and its probe says why."""

    name: ClassVar[str] = "habana"
    traits: ClassVar[Traits] = Traits(static_shapes=True)

    def probe(self) -> Probe:
        """Name everything that is missing, software first. Never raises."""
        missing = [cure for module, cure in INSTALL.items() if not _installed(module)]
        if shutil.which("hl-smi") is None:
            missing.append("a Gaudi driver (hl-smi is not on the PATH)")
        if missing:
            reason = f"missing are {'; '.join(missing)}. Without --use_habana this command runs on CUDA or the CPU."
        else:
            reason = (
                "Gaudi is there, but this version of vlm-lora cannot train on it yet (see docs/gaudi.md). "
                "Without --use_habana this command runs on the CPU."
            )
        return Probe(usable=False, device="", reason=reason)


def _installed(module: str) -> bool:
    # find_spec imports the parents of a dotted name, and raises when one is not there.
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
