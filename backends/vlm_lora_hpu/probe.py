"""What Gaudi hardware and software this machine has, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping

from vlm_lora.backend import Probe

BRIDGE = {
    "habana_frameworks": "Habana's PyTorch (habana_frameworks is not installed): run inside a Gaudi container or "
    "install the Gaudi software",
}
"""What every road needs, and the cure."""

PRIORITY = 20
"""Before a GPU: a machine with both is a Gaudi machine whose host happens to have a display card."""


def probe_gaudi(needed: Mapping[str, str] | None = None, *, lacks: str = "") -> Probe:
    """Name everything that is missing, software first; or say what is there. Never raises.

    Args:
        needed: modules in addition to the bridge, and the cure for each that is not there.
        lacks: what else a road lacks, with the cure; empty where it lacks nothing.
    """
    modules = {**BRIDGE, **(needed or {})}
    missing = [cure for module, cure in modules.items() if not is_installed(module)] + [lacks] * bool(lacks)
    if missing and shutil.which("hl-smi") is None:
        missing.append("a Gaudi driver (hl-smi is not on the PATH)")
    if missing:
        reason = f"missing are {'; '.join(missing)}. To run elsewhere, type --backend cuda or --backend cpu."
        return Probe(usable=False, device="", reason=reason)
    try:
        import habana_frameworks.torch.hpu as hpu

        if not hpu.is_available():
            return Probe(usable=False, device="", reason=_no_card())
        name = hpu.get_device_name()
        device = f"{hpu.device_count()} x {name} ({hpu.memory_stats()['Limit'] / 2**30:.0f} GiB)"
    except Exception as error:  # the bridge raises what it likes; a probe never does
        return Probe(usable=False, device="", reason=f"habana_frameworks does not load ({error}); see hl-smi")
    return Probe(usable=True, device=device, priority=PRIORITY)


def card_count() -> int:
    """Return how many cards this machine has."""
    import habana_frameworks.torch.hpu as hpu

    count: int = hpu.device_count()
    return count


def is_installed(module: str) -> bool:
    """Say whether a module could be imported, without importing it."""
    # find_spec imports the parents of a dotted name, and raises when one is not there.
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def driver_version() -> str:
    """Return the driver's version as `hl-smi` gives it, or why there is none."""
    program = shutil.which("hl-smi")
    if program is None:
        return "hl-smi is not on the PATH"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else f"hl-smi failed ({done.returncode})"


def _no_card() -> str:
    return (
        f"no card can be used (driver: {driver_version()}). Other processes may hold the cards: `hl-smi` lists them; "
        "in a container, HABANA_VISIBLE_DEVICES chooses them."
    )
