"""`vlm-lora quantize`: a run or a whole model in fewer bits, proven next to the model before.

1. Layers, sizes and environment are looked at: no weight is read.
2. A run's adapter is merged into its base (`deploy.merge`).
3. Rows are made here by the model's own preprocessing, and written.
4. `worker.py compress` quantizes, in the environment of llm-compressor.
5. `worker.py prove` loads both folders in a process of its own and compares them.

Whatever does not agree ends it, with nothing left behind but the other process's words in a log.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_lora.compat import IS_5, TRANSFORMERS
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.whole_files import write_json
from vlm_lora.deploy.merge import merge, refuse_taken
from vlm_lora.deploy.merge_report import MergeRequest
from vlm_lora.deploy.placing import seal_and_place
from vlm_lora.deploy.quantization.calibration import write_samples
from vlm_lora.deploy.quantization.card import write_card
from vlm_lora.deploy.quantization.environment import python_of
from vlm_lora.deploy.quantization.layers import check_layers
from vlm_lora.deploy.quantization.request import Proof, QuantizeReport, QuantizeRequest, as_json
from vlm_lora.deploy.quantization.schemes import Scheme, pairs_of, scheme_of
from vlm_lora.deploy.trained_rows import NAME_DATA, drawn_rows, with_trained_rows
from vlm_lora.errors import BackendError, ConfigError, ModelError
from vlm_lora.model.families import Family, family_of
from vlm_lora.model.loading import adapter_folder, load_config
from vlm_lora.model.processor.trained_boxes import RECORDS
from vlm_lora.model.quantization import Layers
from vlm_lora.model.stored_weights import stored_weights
from vlm_lora.session import Preprocessing, open_preprocessing, open_session
from vlm_lora.training.inference_only import without_engine
from vlm_lora.training.outputs import save_processor

logger = logging.getLogger(__name__)

REPORT = "quantize_report.json"
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where things are while a model is quantized."""

    output: Path
    part: Path
    """The folder that gets the output's name."""
    scratch: Path
    """The merged model, rows, jobs: gone at the end."""
    log: Path
    """What llm-compressor says; gone where all went well."""

    @classmethod
    def of(cls, output: Path) -> _Places:
        hidden = output.with_name(f".{output.name}")
        return cls(
            output=output,
            part=hidden.with_name(f"{hidden.name}.partial"),
            scratch=hidden.with_name(f"{hidden.name}.scratch"),
            log=output.with_name(f"{output.name}.quantize.log"),
        )

    def clear(self) -> None:
        """Take away what is not the output."""
        for folder in (self.part, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)


def quantize(run: RunConfig, request: QuantizeRequest) -> QuantizeReport:
    """Quantize a run or a whole model, and write the folder to `output_dir`.

    Args:
        run: names the folder and the output folder; `dataset_name` for other rows than those of its training.
        request: how, from how many rows, and in which environment.

    Raises:
        ConfigError: the scheme is not known, AWQ does not know the model's class, there are no rows, or the folder is
            taken.
        ModelError: a layer cannot be quantized, or what was written is not the model.
        BackendError: there is no environment, or llm-compressor fails there.
    """
    scheme = scheme_of(request.scheme)
    places = _Places.of(Path(str(run.raw["output_dir"])).expanduser())
    refuse_taken(places.output)
    if not IS_5:
        raise BackendError(
            f"transformers {'.'.join(map(str, TRANSFORMERS))}: its processors leave out what the quantizing process, "
            "which has 5.17, reads of a row. Merge here (vlm-lora merge), and quantize the merged folder where "
            "vlm-lora is installed with transformers 5."
        )
    layers, family = _check(run, scheme)
    python = python_of(request.environment)
    places.clear()
    places.scratch.mkdir(parents=True)
    try:
        return _quantize(run, request, scheme, layers, family, python, places)
    finally:
        places.clear()


def _check(run: RunConfig, scheme: Scheme) -> tuple[Layers, Family]:
    """Refuse what cannot be quantized, before anything heavy."""
    name = str(run.model.model_name_or_path)
    if run.model.load_in_4bit:
        raise ConfigError("--load_in_4bit: whole weights are quantized. Leave it out.")
    if run.model.trust_remote_code:
        raise ConfigError("--trust_remote_code: quantize runs no model's own code. Leave it out.")
    if not Path(name).expanduser().is_dir():
        raise ModelError(f"{name}: no folder here. Give a run's folder, or a whole model's: hf download {name}")
    config = load_config(run.model)
    stored = stored_weights(config)
    if stored is not None:
        raise ConfigError(f"{name}: stored in {stored.words} already. Name the model whose weights are whole.")
    family = family_of(config)
    return check_layers(name, config, family, scheme), family


def _quantize(
    run: RunConfig,
    request: QuantizeRequest,
    scheme: Scheme,
    layers: Layers,
    family: Family,
    python: Path,
    places: _Places,
) -> QuantizeReport:
    merged = adapter_folder(run.model) is not None
    folder = _merge(run, places) if merged else Path(str(run.model.model_name_or_path)).expanduser()
    whole = replace(run, model=replace(run.model, model_name_or_path=str(folder)))
    session = open_session(without_engine(with_trained_rows(whole, f"to quantize it with, {NAME_DATA}")))
    preprocessing = open_preprocessing(session.run)
    rows = drawn_rows(session.run, request.rows)
    samples = write_samples(preprocessing, rows, places.scratch / "rows")
    job = {
        "model": str(folder.absolute()),
        "output": str(places.part.absolute()),
        "auto_class": family.auto_class,
        "scheme": scheme.compressor,
        "awq": scheme.awq,
        "pairs": pairs_of(layers.model_class, family.language) if scheme.awq else None,
        "language": list(family.language),
        "outside": [*family.vision, *family.projector],
        "kept": [name for name in layers.kept if name.startswith(tuple(f"{path}." for path in family.language))],
        "samples": [str(file.absolute()) for file in samples],
        "max_shard_size": request.max_shard_size,
        "scales": str((places.scratch / "scales.safetensors").absolute()),
    }
    done = _step("compress", job, python, places)
    proof = _step("prove", {**job, "noted": done["pairs"]}, python, places)
    report = QuantizeReport(
        model=str(run.model.model_name_or_path),
        merged=merged,
        scheme=request.scheme,
        meaning=scheme.meaning,
        folder=str(places.output),
        calibration_rows=len(rows) if scheme.awq else 0,
        size_before=_size(folder),
        size_after=_size(places.part),
        proof=Proof(**proof),
        versions=done["versions"],
    )
    _finish(folder, places, report, preprocessing)
    return report


def _merge(run: RunConfig, places: _Places) -> Path:
    """Merge a run's adapter, proven as `vlm-lora merge` proves it."""
    folder = places.scratch / "merged"
    merge(replace(run, raw={**run.raw, "output_dir": str(folder)}), MergeRequest())
    return folder


def _step(step: str, job: Mapping[str, Any], python: Path, places: _Places) -> dict[str, Any]:
    """Run a step of the worker, and return what it found.

    Raises:
        ModelError: it refuses what it found.
        BackendError: it failed.
    """
    result, file = places.scratch / f"{step}.json", places.scratch / f"{step}.job.json"
    write_json(file, {**job, "result": str(result.absolute())})
    # Not ours: paths and settings of this environment, which are for other versions.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    logger.info("Quantizing: %s, in %s; its words are in %s.", step, python.parents[1], places.log)
    with places.log.open("ab") as log:
        words = [str(python), "-I", str(WORKER), step, str(file.absolute())]
        code = subprocess.run(words, stdout=log, stderr=log, env=environment, check=False).returncode
    if code or not result.is_file():
        raise BackendError(
            f"llm-compressor's process failed at {step} (exit code {code}): {_last_line(places.log)}. All of its words "
            f"are in {places.log}; nothing else was kept."
        )
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "refused" in found:
        raise ModelError(
            f"{job['model'] if step == 'compress' else places.output}: {found['refused']}. Nothing was kept but "
            f"{places.log}. Please report it with the versions that `vlm-lora doctor` shows."
        )
    return found


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it said nothing"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def _finish(base: Path, places: _Places, report: QuantizeReport, preprocessing: Preprocessing) -> None:
    """Put beside the weights what belongs to them, seal the folder, and give it its name."""
    part, output = places.part, places.output
    save_processor(preprocessing.processor, part)
    for name in RECORDS:
        if (base / name).is_file():
            shutil.copyfile(base / name, part / name)  # how it counts boxes, and which rows it was trained on
    write_card(part, report, preprocessing.family)
    write_json(part / REPORT, as_json(report))
    seal_and_place(part, output)
    places.log.unlink()
