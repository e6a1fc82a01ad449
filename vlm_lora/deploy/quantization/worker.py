"""Runs inside llm-compressor's environment, as a script: `python -I worker.py compress|prove JOB.json`.

Imports nothing of this package, which is not installed there; llm-compressor's modules are imported where they are
used, so that the arithmetic can be tested without them. What was found goes into a file that the job names, and a
refusal into the same file under `refused`.

`compress` loads a model, lets llm-compressor quantize it, writes its folder and AWQ's scales. `prove` is another
process: it loads both folders with transformers and compares them, tensor by tensor, by arithmetic written here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

BITS = 4
PER_WORD = 32 // BITS
"""Weights in one word of 32 bits, the first in its lowest bits."""
ROUNDINGS = 24
"""Roundings of the scales' dtype, each worth its epsilon in steps of 16 at most, between a weight and its division."""
SMALLEST_EXPONENT, MANTISSA = -6, 3
"""Of an 8-bit float (E4M3)."""
LARGEST_DEVIATION = 1e-3
"""How far AWQ's scales alone may move a logit in float32, in units of the largest logit."""
SCORED = 32
"""Rows that losses are measured on."""
BESIDE = ("labels", "supervised_positions")
"""What a sample holds that is the loss's, not the model's."""
CLOSING = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight"
"""Tensors that may stand for a quantized layer's weight."""


class RefusedError(Exception):
    """What the other process says in its own message."""


def unpack(words: torch.Tensor, count: int) -> torch.Tensor:
    """Return unsigned numbers of 4 bits out of words of 32, along the last dimension.

    Args:
        words: `(..., ceil(count / 8))` int32.
        count: how many numbers there are.

    Returns:
        `(..., count)` int64, 0 to 15.
    """
    shifts = torch.arange(PER_WORD, device=words.device) * BITS
    numbers = (words.long().unsqueeze(-1) >> shifts) & (2**BITS - 1)
    return numbers.flatten(-2)[..., :count]


def restored(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a quantized layer's weight, and the step at each of its numbers: `(out, in)` each, float64.

    Args:
        tensors: `weight_packed`, `weight_scale`, `weight_zero_point`, `weight_shape`; or `weight` in 8-bit floats with
            `weight_scale`.
    """
    scale = tensors["weight_scale"].double()
    if "weight_packed" not in tensors:
        numbers = tensors["weight"].double()
        exponent = torch.floor(torch.log2(numbers.abs().clamp(min=2.0**SMALLEST_EXPONENT)))
        return numbers * scale, scale * 2.0 ** (exponent - MANTISSA)
    out, inputs = (int(size) for size in tensors["weight_shape"])
    zero = unpack(tensors["weight_zero_point"].T.contiguous(), out).T  # packed along the outputs
    every = inputs // scale.shape[1]
    steps = scale.repeat_interleave(every, dim=1)
    numbers = unpack(tensors["weight_packed"], inputs) - zero.repeat_interleave(every, dim=1)
    return numbers * steps, steps


def error_in_steps(tensors: Mapping[str, torch.Tensor], weight: torch.Tensor) -> float:
    """Return how far a quantized layer lies from a weight `(out, in)`, in steps; infinite where a number is none."""
    found, steps = restored(tensors)
    # A step of nothing stands for weights of nothing.
    off = (found - weight.double()).abs() / steps.clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.nan_to_num(off, nan=float("inf")).max())


def allowed(dtype: torch.dtype) -> float:
    """Return how many steps a weight may be moved: half of one, and what the scales' dtype rounds."""
    return 0.5 + ROUNDINGS * torch.finfo(dtype).eps


def scaled(weight: torch.Tensor, read: torch.Tensor | None, made: torch.Tensor | None) -> torch.Tensor:
    """Return a layer's weight `(out, in)` under AWQ's scales, in float64.

    Args:
        weight: before.
        read: `(in,)` what its inputs were divided by.
        made: `(n,)` what the inputs of the layer that reads its last n outputs are multiplied by.
    """
    weight = weight.double()
    if read is not None:
        weight = weight * read.double().unsqueeze(0)
    if made is not None:
        weight = weight.clone()
        weight[-made.numel() :] /= made.double().unsqueeze(1)
    return weight


def patterns(linears: Sequence[str], outside: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Return patterns that name every linear layer that stays whole and none that was quantized, however it is called.

    transformers, vLLM and the files themselves call one layer `model.visual.blocks.0.attn.qkv`,
    `visual.blocks.0.attn.qkv` or otherwise; a list of names that one of them does not use is taken for nothing there.

    Args:
        linears: names of all linear layers.
        outside: paths of vision tower and projector.
        chosen: names of the quantized layers.
    """
    found: dict[str, None] = {}
    for name in linears:
        if name not in chosen:
            path = next((path for path in outside if name == path or name.startswith(path + ".")), name)
            tail = re.escape(path.removeprefix("model."))
            found[rf"re:(.*\.)?{tail}$" if path == name else rf"re:(.*\.)?{tail}\..*"] = None
    wrong = [name for name in chosen if any(re.match(pattern[3:], name) for pattern in found)]
    if wrong:
        raise RefusedError(f"no pattern tells the layers that stay whole from {wrong[0]}")
    return list(found)


def chosen_layers(model: nn.Module, job: Mapping[str, Any]) -> list[str]:
    """Return the names of the language model's linear layers, but for those that the job keeps."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and any(name.startswith(path + ".") for path in job["language"])
        and name not in job["kept"]
    ]


def load(job: Mapping[str, Any], folder: str, **more: Any) -> Any:
    """Return a model in the dtype that it is stored in, and what transformers says of its keys."""
    import transformers

    automatic = getattr(transformers, job["auto_class"])
    return automatic.from_pretrained(folder, dtype="auto", output_loading_info=True, **more)


def load_samples(job: Mapping[str, Any], dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    """Return the rows, as batches of one."""
    from safetensors.torch import load_file

    samples = [load_file(file) for file in job["samples"]]
    return [
        {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in sample.items()}
        for sample in samples
    ]


def for_model(sample: Mapping[str, torch.Tensor], device: Any = None) -> dict[str, torch.Tensor]:
    """Return what of a row is the model's."""
    return {name: tensor.to(device) for name, tensor in sample.items() if name not in BESIDE}


@contextmanager
def noted_scales(noted: list[dict[str, Any]]) -> Iterator[None]:
    """While this lasts, note the scales that AWQ chooses: it returns them to itself alone."""
    from llmcompressor.modifiers.transform.awq import AWQModifier

    inner: Callable[..., torch.Tensor] = AWQModifier._compute_best_scale

    def noting(self: Any, mapping: Any, *rest: Any, **named: Any) -> torch.Tensor:
        scales = inner(self, mapping, *rest, **named)
        noted.append({"maker": mapping.smooth_name, "readers": list(mapping.balance_names), "scales": scales})
        return scales

    AWQModifier._compute_best_scale = noting
    try:
        yield
    finally:
        AWQModifier._compute_best_scale = inner


def recipe(job: Mapping[str, Any], whole: Sequence[str]) -> list[Any]:
    """Return llm-compressor's steps."""
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

    rounding = QuantizationModifier(targets="Linear", scheme=job["scheme"], ignore=list(whole))
    if not job["awq"]:
        return [rounding]
    if job["pairs"] is None:
        return [AWQModifier(), rounding]
    return [AWQModifier(mappings=[AWQMapping(maker, list(readers)) for maker, readers in job["pairs"]]), rounding]


def compress(job: Mapping[str, Any]) -> dict[str, Any]:
    """Quantize, and write the folder and AWQ's scales."""
    import llmcompressor
    import transformers
    from llmcompressor.pipelines.cache import IntermediatesCache
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader

    if not torch.accelerator.is_available():
        # Pinned memory is for copies to an accelerator; asked for without one, torch raises.
        IntermediatesCache.pin_memory = lambda *_, **__: None
    model, _ = load(job, job["model"])
    chosen = chosen_layers(model, job)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    whole = patterns(linears, job["outside"], chosen)
    rows = [for_model(sample) for sample in load_samples(job, model.dtype)] if job["awq"] else None
    noted: list[dict[str, Any]] = []
    with noted_scales(noted):
        llmcompressor.oneshot(
            model=model,
            processor=object(),  # rows are made already
            dataset=None if rows is None else DataLoader(rows, batch_size=None),  # type: ignore[arg-type]
            num_calibration_samples=len(rows or ()),
            recipe=recipe(job, [name for name in linears if name not in chosen]),
        )
    if job["awq"] and not noted:
        raise RefusedError("AWQ found no pair of modules in this model, so nothing was scaled")
    output = Path(job["output"])
    model.save_pretrained(output, save_compressed=True, max_shard_size=job["max_shard_size"])
    settings = json.loads((output / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"]["ignore"] = whole
    (output / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file({str(number): pair["scales"].contiguous() for number, pair in enumerate(noted)}, job["scales"])
    return {
        "pairs": [{"maker": pair["maker"], "readers": pair["readers"]} for pair in noted],
        "versions": {module.__name__: module.__version__ for module in (llmcompressor, transformers, torch)},
    }


def prove(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load both folders and compare them."""
    from safetensors.torch import load_file

    before, _ = load(job, job["model"])
    after, keys = load(job, job["output"])
    wrong = {kind: sorted(map(str, found)) for kind, found in keys.items() if found}
    if wrong:
        kind, names = next(iter(wrong.items()))
        raise RefusedError(f"the written folder does not load as a whole: {kind}, {names[0]} and {len(names) - 1} more")
    scales = load_file(job["scales"])
    noted = [(pair["maker"], pair["readers"], scales[str(number)]) for number, pair in enumerate(job["noted"])]
    made = {maker: scale for maker, _, scale in noted}
    read = {reader: scale for _, readers, scale in noted for reader in readers}
    chosen = chosen_layers(before, job)
    found = compare_layers(before, after, chosen, read, made)
    untouched, changed = compare_others(before, after, chosen, made)
    samples = load_samples(job, before.dtype)[:SCORED]
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    before.to(device).eval()
    loss_before, logits = measure(before, samples)
    deviation = None
    if noted:
        rescale(before, changed, read, made)
        deviation = distance(logits, measure(before, samples)[1])
        if before.dtype == torch.float32 and not deviation <= LARGEST_DEVIATION:
            raise RefusedError(
                f"AWQ's scales alone move a logit by {deviation:.2g} of the largest: they do not fit its layers"
            )
    del before
    loss_after, _ = measure(after.to(device).eval(), samples)
    return {
        "layers": len(chosen),
        "largest_error": found,
        "untouched": untouched,
        "scaled": len(changed),
        "deviation": deviation,
        "rows": len(samples),
        "loss_before": loss_before,
        "loss_after": loss_after,
    }


def compare_layers(
    before: nn.Module,
    after: nn.Module,
    chosen: Sequence[str],
    read: Mapping[str, torch.Tensor],
    made: Mapping[str, torch.Tensor],
) -> float:
    """Return the largest distance of a quantized weight from the one before, in steps.

    Raises:
        RefusedError: a layer is not quantized, another one is, or a weight was moved by more than rounding to a step.
    """
    modules: dict[str, Any] = dict(after.named_modules())
    quantized = {name for name, module in modules.items() if getattr(module, "weight_scale", None) is not None}
    if quantized != set(chosen):
        stray = sorted(quantized ^ set(chosen))
        raise RefusedError(f"{len(quantized)} layers are quantized instead of {len(chosen)}; {stray[0]} is the first")
    weights, largest = before.state_dict(), 0.0
    for name in chosen:
        held = {key: tensor for key, tensor in modules[name].state_dict().items() if key in CLOSING}
        expected = scaled(weights[f"{name}.weight"], read.get(name), made.get(name))
        off = error_in_steps(held, expected)
        if not off <= allowed(held["weight_scale"].dtype):
            raise RefusedError(f"{name}: a weight lies {off:.3g} steps from the model's before")
        largest = max(largest, off)
    return largest


def compare_others(
    before: nn.Module, after: nn.Module, chosen: Sequence[str], made: Mapping[str, torch.Tensor]
) -> tuple[int, dict[str, torch.Tensor]]:
    """Return how many tensors are as before, bit for bit, and those that AWQ has divided, as they are now.

    Raises:
        RefusedError: another tensor is not as before.
    """
    kept, changed = 0, {}
    held = after.state_dict()
    for name, tensor in before.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module in chosen and leaf == "weight":
            continue
        if name not in held:
            raise RefusedError(f"{name} is missing in the written folder")
        if module in made:
            changed[name] = held[name]
        elif not torch.equal(tensor, held[name]):
            raise RefusedError(f"{name} is not as it was before, and nothing was to change it")
        else:
            kept += 1
    return kept, changed


@torch.no_grad()
def rescale(
    model: nn.Module,
    changed: Mapping[str, torch.Tensor],
    read: Mapping[str, torch.Tensor],
    made: Mapping[str, torch.Tensor],
) -> None:
    """Give a model AWQ's scales, and round nothing to fewer bits: it must say what it said before."""
    for name in {*read, *made}:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(scaled(layer.weight.cpu(), read.get(name), made.get(name)))
    for name, tensor in changed.items():
        model.get_parameter(name).copy_(tensor)


@torch.no_grad()
def measure(model: Any, samples: Sequence[Mapping[str, torch.Tensor]]) -> tuple[float, list[torch.Tensor]]:
    """Return the mean negative log-likelihood of the rows' supervised tokens, and their logits, `(K, V)` float32 each.

    Logits are kept of the first four rows.
    """
    logits: list[torch.Tensor] = []
    total, tokens = 0.0, 0
    for sample in samples:
        wanted = sample["labels"][0, 1:]
        places = torch.nonzero(wanted >= 0).flatten()
        said = model(**for_model(sample, model.device)).logits[0].cpu().index_select(0, places).float()
        total += float(nn.functional.cross_entropy(said, wanted[places], reduction="sum"))
        tokens += places.numel()
        if len(logits) < 4:
            logits.append(said)
    return total / max(1, tokens), logits


def distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return the largest difference of two models' logits, in units of the largest; infinite where one is no number."""
    differences = [
        float(torch.nan_to_num((a - b).abs(), nan=float("inf")).max()) for a, b in zip(one, other, strict=True)
    ]
    return max(differences) / max(float(a.abs().max()) for a in one)


def main(arguments: Sequence[str]) -> int:
    """Do one step of a job, and write what came of it."""
    step, path = arguments
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        found = {"compress": compress, "prove": prove}[step](job)
    except RefusedError as error:
        found = {"refused": str(error)}
    Path(job["result"]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
