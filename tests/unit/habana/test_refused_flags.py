"""What no road to Gaudi can honour is refused by the flag's name, whichever road it is."""

from __future__ import annotations

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora_gaudi.backend import GaudiBackend
from vlm_lora_habana.backend import HabanaBackend


@pytest.mark.parametrize("backend", [GaudiBackend, HabanaBackend])
def test_cards_talk_by_hccl_alone(backend: type[GaudiBackend] | type[HabanaBackend]) -> None:
    with pytest.raises(ConfigError, match="--ddp_backend gloo cannot be used on Gaudi: Gaudi cards talk"):
        backend().refuse({"ddp_backend": "gloo"})
    backend().refuse({"ddp_backend": "hccl"})
    backend().refuse({})
