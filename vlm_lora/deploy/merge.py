"""`vlm-lora merge`: an adapter and its base as one whole model, proven before its folder gets its name.

1. The adapter answers some rows of the data that it was trained on.
2. It is folded into the base, layer by layer, each weight computed twice (`folding`).
3. The folder is written under another name, loaded afresh, and compared tensor by tensor with what was folded.
4. The loaded model answers the same rows, and what both said is compared.

Whatever does not agree ends it, with nothing left behind.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlm_lora.assembly import answerer_of, load_for_answers
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.whole_files import write_json
from vlm_lora.data.conversation import Conversation
from vlm_lora.deploy.card import write_card
from vlm_lora.deploy.configuration import keep_settings
from vlm_lora.deploy.folding import fold
from vlm_lora.deploy.merge_report import MergeReport, MergeRequest, as_json
from vlm_lora.deploy.placing import seal_and_place
from vlm_lora.deploy.readings import Deviation, Reading, deviation, largest_difference, logits_of, nudge, read
from vlm_lora.deploy.stored_dtype import stored_dtype
from vlm_lora.deploy.trained_rows import NAME_DATA, first_rows, with_trained_rows
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.loading import adapter_folder, base_config, load_config, load_model
from vlm_lora.model.processor.trained_boxes import RECORDS, trained_settings
from vlm_lora.model.stored_weights import stored_weights
from vlm_lora.session import Preprocessing, Session, open_preprocessing, open_session
from vlm_lora.training.inference_only import without_engine
from vlm_lora.training.outputs import save_processor

logger = logging.getLogger(__name__)

REPORT = "merge_report.json"
SAME = 1e-5
"""How far logits may lie from the adapter's in float32, in units of the largest, whatever the model."""
ROUNDINGS = 10
"""How much further than one rounding error in each weight moves them, where a model is that sensitive to rounding."""
FURTHEST = 1e-2
"""How far at most."""
IN_16_BITS = 1.0
"""How far in bf16 and float16, where they prove little; what is wrong there is found by folding, which computes each
weight twice."""


def merge(run: RunConfig, request: MergeRequest) -> MergeReport:
    """Merge an adapter into its base and write the whole model to `output_dir`.

    Args:
        run: names the adapter's folder and the output folder; `dataset_name` for other rows than those of its training.
        request: how many rows prove it, and how large files are.

    Raises:
        ConfigError: there is nothing to merge, no rows to prove it with, or the folder is taken.
        ModelError: adapter and base do not fit, or the merged model is not the adapter's.
    """
    adapter = adapter_folder(run.model)
    if adapter is None:
        raise ConfigError(
            f"{run.model.model_name_or_path}: not an adapter's folder, so there is nothing to merge: a whole model is "
            "loaded as it is. Give the --output_dir of a LoRA run, or one of its checkpoints."
        )
    output = Path(str(run.raw["output_dir"])).expanduser()
    refuse_taken(output)
    quantized = (trained_settings(run.model) or {}).get("load_in_4bit") is True
    session, preprocessing = _open(run, request)
    rows = first_rows(session.run, request.rows)
    part = output.with_name(f".{output.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    model = load_for_answers(session, preprocessing).to(session.backend.device())
    before = _read(model, session, preprocessing, rows)
    plain, folded = fold(model)
    try:
        hashes = _write(plain, preprocessing, part, request, adapter)
        _keep_settings(part, run, plain)
        del model, plain
        again = _load(session, part)
        _compare_tensors(hashes, _hashes(again))
        found = _prove(before, again, session, preprocessing, rows) if rows else None
        weights = list(part.glob("model*.safetensors"))
        report = MergeReport(
            adapter=str(adapter),
            base=str(base_config(run.model).model_name_or_path),
            folder=str(output),
            dtype=str(again.dtype).removeprefix("torch."),
            folded=folded,
            tensors=len(hashes),
            files=len(weights),
            size=sum(path.stat().st_size for path in weights),
            deviation=found,
            quantized=quantized,
        )
        _finish(part, output, report, preprocessing)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return report


def refuse_taken(output: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        ConfigError: it does, or it is a file.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output_dir {output} is there already and would be written over. Name a new folder.")


def _open(run: RunConfig, request: MergeRequest) -> tuple[Session, Preprocessing]:
    """Open session and preprocessing, with the base's weights whole and in the dtype that they are stored in."""
    if run.model.load_in_4bit:
        raise ConfigError("--load_in_4bit: an adapter is merged onto the whole base. Leave it out.")
    config = load_config(run.model)
    stored = stored_weights(config)
    if stored is not None and stored.is_packed:
        raise ConfigError(
            f"{base_config(run.model).model_name_or_path}: the base is stored in {stored.words}, and an adapter's "
            "changes would be rounded away in it. Name the whole base as base_model_name_or_path in "
            f"{run.model.model_name_or_path}/adapter_config.json, and merge onto that."
        )
    dtype = stored_dtype(config, Path(str(base_config(run.model).model_name_or_path)).expanduser())
    if run.model.dtype == "auto":
        run = replace(run, model=replace(run.model, dtype=dtype))
    if request.rows:
        run = with_trained_rows(run, f"to prove the merge with, {NAME_DATA}, or merge without that proof: --rows 0")
    session = open_session(without_engine(run))
    return session, open_preprocessing(session.run)


def _load(session: Session, folder: Path) -> Any:
    """Load a merged model as anybody would, onto the session's device."""
    model = replace(session.run.model, model_name_or_path=str(folder))
    return load_model(model, model_kwargs=session.model_keywords).eval().to(session.backend.device())


def _read(model: Any, session: Session, preprocessing: Preprocessing, rows: Sequence[Conversation]) -> Reading:
    return read(model, answerer_of(session, preprocessing, model), preprocessing, rows)


def _hashes(model: Any) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes, with its dtype and shape, by its name in the model."""
    return {name: _hash(tensor) for name, tensor in model.state_dict().items()}


def _hash(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten()
    said = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(said + flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def _compare_tensors(written: Mapping[str, str], loaded: Mapping[str, str]) -> None:
    """Refuse a folder that does not give back every tensor, and no other.

    Raises:
        ModelError: names the first of them.
    """
    wrong = sorted(name for name in {*written, *loaded} if written.get(name) != loaded.get(name))
    if wrong:
        raise ModelError(
            f"{len(wrong)} of {len(written)} tensors do not come back from the written folder as they were merged, "
            f"{wrong[0]} first. Nothing was kept. Please report it with the versions that `vlm-lora doctor` shows."
        )


def _prove(
    before: Reading, model: Any, session: Session, preprocessing: Preprocessing, rows: Sequence[Conversation]
) -> Deviation:
    """Return how far the merged model lies from the adapter's; its weights may be moved by this.

    Raises:
        ModelError: further than rounding explains, or it answers differently in float32.
    """
    after, dtype = _read(model, session, preprocessing, rows), str(model.dtype).removeprefix("torch.")
    found, whole = deviation(before, after), model.dtype == torch.float32
    bound = (SAME if whole else IN_16_BITS) * found.size
    if whole and bound < found.largest < float("inf"):
        nudge(model)
        found = replace(found, rounding=largest_difference(after.logits, logits_of(model, preprocessing, rows)))
        bound = min(max(bound, ROUNDINGS * (found.rounding or 0.0)), FURTHEST * found.size)
    different = found.rows - found.equal_answers
    if not found.largest <= bound or (different and whole):
        raise ModelError(
            f"The merged model is not the adapter's: on {found.rows} rows its logits lie up to {found.largest:.3g} "
            f"apart (the largest is {found.size:.3g}; rounding of {dtype} explains {bound:.3g}), and {different} "
            "answers differ. Nothing was kept. Please report it with the versions that `vlm-lora doctor` shows."
        )
    if different:
        logger.warning(
            "%d of %d greedy answers differ from the adapter's: %s rounds its weights once more when merged.",
            different,
            found.rows,
            dtype,
        )
    return found


def _write(
    model: Any, preprocessing: Preprocessing, part: Path, request: MergeRequest, adapter: Path
) -> dict[str, str]:
    """Write a merged model's folder; return the hashes of its tensors."""
    hashes = _hashes(model)
    try:
        model.save_pretrained(part, max_shard_size=request.max_shard_size)
    except ValueError as error:
        raise ConfigError(f"--max_shard_size {request.max_shard_size}: {error}. For example 5GB.") from error
    save_processor(preprocessing.processor, part)
    record = next((adapter / name for name in RECORDS if (adapter / name).is_file()), None)
    if record is not None:
        shutil.copyfile(record, part / record.name)  # how it counts boxes, and which rows it was trained on
    return hashes


def _keep_settings(part: Path, run: RunConfig, model: Any) -> None:
    """Let the base's own config.json stand, with what merging has changed, where there is one on this machine."""
    base = Path(str(base_config(run.model).model_name_or_path)).expanduser() / "config.json"
    keep_settings(
        part / "config.json", base, load_config(run.model), model.config, str(model.dtype).removeprefix("torch.")
    )


def _finish(part: Path, output: Path, report: MergeReport, preprocessing: Preprocessing) -> None:
    """Write what is said of a folder, seal it, and give it its name."""
    write_card(part, report, preprocessing.family)
    write_json(part / REPORT, as_json(report))
    seal_and_place(part, output)
