"""Keep transformers' models from reading tensors on the host in every step.

Each read waits for the card, cuts the lazy graph, and makes the rest of it depend on values, so that it
compiles anew. What models read is known before the batch goes to the card: it stays on the host, or is
computed there. The numbers are those of the models' own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from vlm_lora_hpu.host_reads import TOKENS, OnHost, check_placeholders_once

if TYPE_CHECKING:
    import torch

ROTARY = {
    "qwen2_vl": ("transformers.models.qwen2_vl.modeling_qwen2_vl", "Qwen2VLModel"),
    "qwen2_5_vl": ("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLModel"),
}
"""Families that make position ids from token ids and grids, and the class whose method does it."""

ON_HOST = {
    "qwen2_vl": ("image_grid_thw",),
    "qwen2_5_vl": ("image_grid_thw",),
    "llava_next": ("image_sizes",),
    "llava_onevision": ("image_sizes",),
}
"""Inputs whose values a family's forward pass reads: they never go to the card."""


class HostReads:
    """A collator that counts supervised tokens, adds position ids, and keeps what models read on the host.

    Args:
        collator: makes the batch.
        config: the model's configuration.
    """

    def __init__(self, collator: Callable[[Any], dict[str, torch.Tensor]], config: Any) -> None:
        self._collator = collator
        self._config = config

    def __call__(self, rows: Any) -> dict[str, Any]:
        """Return the batch of `collator` with its token count, and `position_ids` `(3, B, T)` for rotary grids."""
        # Not at the top: an adapter is imported before torch is.
        from vlm_lora.batching.encoded import IGNORE_INDEX

        batch: dict[str, Any] = dict(self._collator(rows))
        batch[TOKENS] = OnHost(batch["labels"].ne(IGNORE_INDEX).sum())
        if self._config.model_type in ROTARY:
            batch["position_ids"] = self._positions(batch)
        for name in ON_HOST.get(self._config.model_type, ()):
            if name in batch:
                batch[name] = OnHost(batch[name])
        return batch

    def _positions(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from importlib import import_module

        module, name = ROTARY[self._config.model_type]
        method = getattr(import_module(module), name).get_rope_index
        # The method needs nothing of the model but its configuration.
        positions: torch.Tensor = method(
            SimpleNamespace(config=self._config),
            batch["input_ids"],
            image_grid_thw=batch.get("image_grid_thw"),
            attention_mask=batch["attention_mask"],
        )[0]
        return positions


def keep_reads_on_host(model: Any) -> None:
    """Replace, on this model, the methods that read the card in every forward pass."""
    check_placeholders_once(model)
    for module in model.modules():
        if type(module).__name__ == "Qwen2_5_VisionTransformerPretrainedModel":
            module.forward = MethodType(_windowed_vision_forward, module)


def _windowed_vision_forward(tower: Any, hidden_states: Any, grid_thw: Any, **kwargs: Any) -> Any:
    """Run Qwen2.5-VL's vision tower with all indices and segment ends computed on the host.

    Args:
        tower: the vision transformer.
        hidden_states: `(patches, channels * patch volume)`.
        grid_thw: `(images, 3)`, frames, rows and columns of patches; a host tensor costs no read.
        kwargs: handed to the blocks.

    Returns:
        `(patches / merge**2, hidden)` on the device of `hidden_states`.
    """
    import torch

    grid = grid_thw.cpu()
    order, window_ends = tower.get_window_index(grid)
    segments = {
        True: torch.cat([grid.new_zeros(1), (grid[:, 1] * grid[:, 2]).repeat_interleave(grid[:, 0]).cumsum(0)]),
        False: torch.unique_consecutive(torch.tensor(window_ends)),
    }
    unit = tower.spatial_merge_unit
    # The frequencies live on the card: only the table's length and the rows taken from it come from the grid.
    angles = _rotary_angles(tower, grid).unflatten(0, (-1, unit))[order].flatten(0, 1)
    device = hidden_states.device
    angles = torch.cat([angles, angles], dim=-1).to(device)
    positions = (angles.cos(), angles.sin())
    order = order.to(device)
    states = tower.patch_embed(hidden_states).unflatten(0, (-1, unit))[order].flatten(0, 1)
    for number, block in enumerate(tower.blocks):
        ends = segments[number in tower.fullatt_block_indexes]
        states = block(states, cu_seqlens=ends, position_embeddings=positions, **kwargs)
    return tower.merger(states)[torch.argsort(order)]


def _rotary_angles(tower: Any, grid: Any) -> Any:
    """Return `(patches, head_dim / 2)` on the host: the tower's own method, its frequencies read once."""
    import torch

    table = tower.rotary_pos_emb
    if not hasattr(tower, "_host_frequencies"):
        tower._host_frequencies = table.inv_freq.detach().float().cpu()

    def on_host(length: int) -> Any:
        return torch.outer(torch.arange(int(length), dtype=torch.float), tower._host_frequencies)

    stand_in = SimpleNamespace(spatial_merge_size=tower.spatial_merge_size, rotary_pos_emb=on_host)
    return type(tower).rot_pos_emb(stand_in, grid)
