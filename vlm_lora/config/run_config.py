"""What one run is: frozen values, one class per concern, each field a flag and a configuration key.

Everything the backend's own `TrainingArguments` class knows (learning rate, batch size, logging, ...)
is not repeated here: it travels as `RunConfig.raw` until the backend is known and is checked then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vlm_lora.config.reporting import GuardConfig, ReportConfig
from vlm_lora.config.scoring import ScoringConfig
from vlm_lora.config.sections.checks import check_choice, check_positive
from vlm_lora.config.sections.tuning import TuningConfig as TuningConfig
from vlm_lora.errors import ConfigError

BOX_FORMATS = ("xywh", "xyxy", "cxcywh", "relative_xywh", "relative_xyxy", "relative_cxcywh")
BOX_COORDINATES = ("auto", "pixels", "resized_pixels", "per_mille")
OVERFLOW_POLICIES = ("error", "drop", "shrink_images", "trim_turns")


_NEEDED_KEYS = ("role", "content", "from", "value", "type", "text", "parts")
_NAMED_COLUMNS = ("prompt", "context", "response", "messages", "boxes", "page")


def _check_ignored(config: DataConfig) -> None:
    """Refuse what is ignored and read at once."""
    needed = [key for key in config.ignore_keys if key in _NEEDED_KEYS]
    if needed:
        raise ConfigError(f"--ignore_keys {needed[0]}: without it no chat can be read. Leave it out.")
    named = {f"--{role}_column": getattr(config, f"{role}_column") for role in _NAMED_COLUMNS}
    named |= {"--image_column": None if config.image_column in (None, "no_pictures") else config.image_column}
    for flag, column in named.items():
        if column is not None and column in config.ignore_columns:
            raise ConfigError(f"{flag} {column} and --ignore_columns {column} contradict each other. Leave one out.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows come from and which columns mean what."""

    dataset_name: str | None = field(default=None, metadata={"join": " + "})
    """Hub id, file, folder, glob, {000..007} or list of files with training data (and validation, if it has it); or
    several data sets."""
    dataset_weights: tuple[float, ...] = ()
    """With several data sets: how often an epoch the rows of each are seen; by default each once."""
    dataset_config_name: str | None = None
    """Configuration name of a Hub data set."""
    validation_name: str | None = None
    """Hub id, file, folder, glob, {000..007} or list of files of separate validation data."""
    image_root: str | None = None
    """Folder that relative image paths start from; by default the folder of the data file."""
    image_column: str | None = field(default=None, metadata={"join": ","})
    """Column that holds the image or list of images, or several in the order of their images; detected when not given.
    no_pictures trains on text alone."""
    prompt_column: str | None = None
    """Column that holds the question; detected when not given."""
    default_prompt: str | None = None
    """What is asked of every row where no column asks; by default for a description where the answers are captions.
    One `<image>` in it is the place of the row's images."""
    context_column: str | None = None
    """Column whose text continues the question on a new line where it is not empty, such as a hint; Alpaca's `input` is
    detected."""
    response_column: str | None = None
    """Column that holds the answer or the list of accepted answers; detected when not given."""
    messages_column: str | None = None
    """Column that holds chat messages; detected when not given."""
    boxes_column: str | None = None
    """Column that holds an object of `bbox` and `category` (boxes as answers); detected when not given."""
    ignore_columns: tuple[str, ...] = ()
    """Columns that are not read although they hold something. Ids, sources, sizes and the like need not be named."""
    ignore_keys: tuple[str, ...] = ()
    """Keys of chat turns and their parts, of boxes and OCR pages, that are not read although they hold something."""
    choices: str = "shown"
    """What becomes of choices in columns of their own that a question does not show: shown behind it (one a line, as
    `A. text`); or refuse, where the answer is a letter alone. An answer that is none of them makes a bad row."""
    box_format: str = "xywh"
    """What a box's four numbers are: xywh (left, top, width, height, as COCO has it), xyxy or cxcywh (the centre) in
    pixels; or relative_xywh, relative_xyxy, relative_cxcywh (as YOLO has it) in shares of the image's sides."""
    box_coordinates: str = "auto"
    """How boxes are counted in questions and answers: auto (as the model's makers do, else per_mille; a trained model
    as it was trained), pixels (of the image before resizing), resized_pixels, per_mille (0 to 1000)."""
    box_labels: tuple[str, ...] = ()
    """Names of the boxes' categories, number 0 first; by default those that the data declares."""
    box_prompt: str | None = None
    """What is asked where boxes are the answer; by default for all of them, counted as --box_coordinates says. One
    `<image>` in it is the image's place."""
    page_column: str | None = None
    """Column that holds OCR JSON (words, lines, paragraphs, latex, text, text2d); detected when not given."""
    task_file: str | None = None
    """CSV of OCR tasks (task, input_type, output_type, question); by default our own, its plain reading alone."""
    tasks: tuple[str, ...] = ()
    """OCR tasks of these categories only, for example reading detection; by default all of the task file."""
    output_types: tuple[str, ...] = ()
    """OCR tasks with these output types only, for example text lines,box; by default all of the task file."""
    task_seed: int = 42
    """Seed of the OCR task that each page gets in each epoch."""
    answer_style: str = "auto"
    """How answers about OCR pages are written: bbox (as the OCR tool has it whose task files these are: text and bbox,
    boxes alone as bare lists, from top to bottom), bbox_2d (ours), or auto: bbox with --task_file, unless its questions
    say bbox_2d."""
    system_prompt: str | None = None
    """System turn put before every conversation that has none, of its own or in a column `system`;
    --system_prompt_file FILE reads it from a file."""
    validation_fraction: float = 0.05
    """Share of the training rows held out, by seed, when the data names no validation split; 0 trains on all."""
    split_seed: int = 42
    """Seed of that hold-out."""
    streaming: bool = False
    """Read the training rows front to back while training (Hub id, Parquet, JSONL), for data larger than the disk.
    Needs --max_steps, and --validation_name for evaluation."""
    shuffle_buffer: int = 1000
    """With --streaming: rows held, not decoded, of which the next one is drawn by seed; 1 keeps the stream's order."""
    max_train_samples: int | None = None
    """Use only the first N training rows."""
    max_eval_samples: int | None = None
    """Use only the first N validation rows."""
    allow_urls: bool = False
    """Fetch images that rows name by http or https URL, from public addresses only; they are kept on disk."""
    max_image_pixels: int = 64_000_000
    """Images with more pixels are refused, from the header, before they are decoded."""
    max_image_bytes: int = 256 * 1024 * 1024
    """Image files with more bytes are refused before they are decoded."""
    skip_check: bool = False
    """Train without reading every row first; only the first row of each split is tried."""
    on_bad_sample: str = "error"
    """A row that cannot be used: error (stop before training) or skip (leave it out, into quarantine.jsonl)."""
    max_bad_fraction: float = 0.01
    """With --on_bad_sample skip: stop where more than this share of a split's rows is bad."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"--validation_fraction {self.validation_fraction}: must be at least 0 and below 1, such as 0.05."
            )
        for weight in self.dataset_weights:
            check_positive("dataset_weights", weight)
        for flag in ("default_prompt", "box_prompt"):
            if (getattr(self, flag) or "").count("<image>") > 1:
                raise ConfigError(
                    f"--{flag} {getattr(self, flag)!r}: <image> is the place of all of a row's images and "
                    "stands there once at most. Type one, or none (images then go first)."
                )
        _check_ignored(self)
        check_choice("choices", self.choices, ("shown", "refuse"))
        check_choice("box_format", self.box_format, BOX_FORMATS)
        check_choice("box_coordinates", self.box_coordinates, BOX_COORDINATES)
        check_choice("answer_style", self.answer_style, ("auto", "bbox", "bbox_2d"))
        for flag in ("max_train_samples", "max_eval_samples", "max_image_pixels", "max_image_bytes", "shuffle_buffer"):
            check_positive(flag, getattr(self, flag))
        check_choice("on_bad_sample", self.on_bad_sample, ("error", "skip"))
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"--max_bad_fraction {self.max_bad_fraction}: must be from 0 to 1, such as 0.01.")
        if self.streaming and self.on_bad_sample == "skip":
            raise ConfigError(
                "--on_bad_sample skip does not go with --streaming true: bad rows are left out before training, and a "
                "stream is not read before. Leave one of them out; `vlm-lora check` on a local copy finds the bad rows."
            )
        if self.skip_check and self.on_bad_sample == "skip":
            raise ConfigError(
                "--on_bad_sample skip needs the check that --skip_check leaves out: bad rows are found by it, before "
                "the rows are divided among processes. Leave --skip_check out, or type --on_bad_sample error."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights and processor are loaded."""

    model_name_or_path: str | None = None
    """Hub id or folder of the model."""
    model_revision: str = "main"
    """Branch, tag or commit of a Hub model."""
    model_type: str | None = None
    """The `model_type` that the model's configuration must name; checked when it is loaded, else not used."""
    token: str | None = field(default=None, repr=False)
    """Hub token for gated models; by default the one that `hf auth login` stored."""
    cache_dir: str | None = None
    """Where Hub files are kept; by default the Hub's own cache."""
    accept_changed_files: bool = False
    """Load a model or adapter folder of which files are not those that its run wrote (MANIFEST.json), as after an edit
    on purpose; the log says which."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along. Only for models whose code you have read."""
    dtype: str = "auto"
    """Dtype of the frozen weights: auto (the backend chooses and says why), float32, bfloat16, float16."""
    attn_implementation: str = "auto"
    """Attention: auto (the backend chooses for each part and says why), sdpa, eager,
    flash_attention_2 (_3, _4), flex_attention."""
    load_in_4bit: bool = False
    """QLoRA: load the language model's linear layers in 4 bits (bitsandbytes); the rest stays as it is."""
    bnb_4bit_quant_type: str = "nf4"
    """With --load_in_4bit: nf4 or fp4."""
    bnb_4bit_compute_dtype: str = "auto"
    """With --load_in_4bit: what 4-bit weights are unpacked to: auto (autocast's), float32, bfloat16, float16."""
    bnb_4bit_use_double_quant: bool = False
    """With --load_in_4bit: quantize the scales too, which saves another 0.4 bits per weight."""
    image_backend: str = "auto"
    """Image processor: auto (torchvision for families where its pixels are equal in all versions, else pil; as trained,
    for an adapter or checkpoint), pil, torchvision (faster; one to four gray levels from pil)."""
    min_pixels: int | None = None
    """Images with fewer pixels are shown larger, by the model's own means; by default as its processor has it."""
    max_pixels: int | None = None
    """Images with more pixels are shown smaller, by the model's own means; by default as its processor has it."""
    image_size: int | None = None
    """Images are shown with a longest side of at most so many pixels; where a model counts pixels or tiles, with
    those of a square of that side. In place of --max_pixels."""
    enable_thinking: bool | None = None
    """Whether the chat template prompts for thoughts, where it reads `enable_thinking` (Qwen3.5, GLM); saved with it,
    so that ask, eval and serving prompt alike. By default as the template has it."""

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        check_choice("bnb_4bit_quant_type", self.bnb_4bit_quant_type, ("nf4", "fp4"))
        check_choice("bnb_4bit_compute_dtype", self.bnb_4bit_compute_dtype, ("auto", "float32", "bfloat16", "float16"))
        check_choice("image_backend", self.image_backend, ("auto", "pil", "torchvision"))
        for flag in ("min_pixels", "max_pixels", "image_size"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise ConfigError(f"--{flag} {value}: must be a whole number from 1.")


CACHE_GB = 20.0
"""Gigabytes that kept images may take, and kept features, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How a row becomes tensors."""

    max_length: int | None = None
    """Longest row in tokens, image tokens included; by default what the model's positions allow."""
    on_overflow: str = "error"
    """What happens to a longer row: error (stop, naming the row), drop (leave it out before the run), shrink_images
    (scale its images down until it fits), trim_turns (leave out its oldest questions with their answers)."""
    static_shapes: bool | None = None
    """Pad batches to a few shapes planned from the data; by default where the hardware compiles each new shape."""
    max_shapes: int | None = None
    """At most so many planned shapes; by default 4, or 16 where an image's size changes its number of tokens."""
    packing: bool = False
    """Put several rows into one sequence, each computed as if it stood alone. --per_device_train_batch_size then counts
    such packs. Evaluation stays unpacked."""
    pack_length: int | None = None
    """With --packing true: most tokens of a pack; by default --max_length, else 2048, and never less than the longest
    row. No row is ever cut."""
    cache_vision_features: Literal["auto", "on", "off"] = "auto"
    """Run a frozen vision tower once for each image and keep its features: auto (where images are used again and they
    fit), on, off. The first process of each machine says which, with its reason."""
    vision_cache_gb: float | None = None
    """With --cache_vision_features: gigabytes that kept features may take, by default 20, and never more than a tenth
    of what is free."""
    dataloader_timeout: int = 1800
    """Seconds to wait for a batch of the data loader's workers before the run ends and says which one delivers none;
    0 waits for ever. By default as long as ranks wait for each other (--ddp_timeout)."""

    image_cache: Literal["auto", "on", "off"] = "auto"
    """Keep each image on disk as the model's processor made it, for its other questions, epochs and runs: auto (where
    it is read more than once and all fit), on (as many as fit) or off. The tensors are the same bit for bit."""
    image_cache_gb: float | None = None
    """With --image_cache: GB that all kept images together may take, by default 20; never more than a tenth of the
    free disk."""

    def __post_init__(self) -> None:
        for flag in ("max_length", "max_shapes", "pack_length", "image_cache_gb", "vision_cache_gb"):
            check_positive(flag, getattr(self, flag))
        if self.dataloader_timeout < 0:
            raise ConfigError(
                f"--dataloader_timeout {self.dataloader_timeout}: must be a number of seconds, or 0 to wait for ever."
            )
        check_choice("on_overflow", self.on_overflow, OVERFLOW_POLICIES)
        for flag, size in (("image_cache", "image_cache_gb"), ("cache_vision_features", "vision_cache_gb")):
            if getattr(self, flag) == "off" and getattr(self, size) is not None:
                raise ConfigError(
                    f"--{size} {getattr(self, size):g} says how much may be kept, and --{flag} off keeps nothing. "
                    "Leave one of them out."
                )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How answers are generated when evaluating or asking."""

    predict_with_generate: bool = False
    """Also generate answers to validation rows and score them (--metrics): to some at each evaluation during training
    (--eval_generate_samples), to all at the end."""
    max_new_tokens: int = 64
    """Longest generated answer in tokens."""

    def __post_init__(self) -> None:
        check_positive("max_new_tokens", self.max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """What is tried before training."""

    dry_run: bool = False
    """Show the first training rows as training would see them, with the model's loss on each; train nothing. They are
    printed and written to dry_run.html in the output folder."""
    dry_run_samples: int = 10
    """With --dry_run: how many rows."""
    no_model: bool = False
    """With --dry_run: load no weights, so there is no loss."""
    dry_run_generate: bool = False
    """With --dry_run: also generate the model's answer to each row's last question."""
    dry_run_max_new_tokens: int | None = None
    """With --dry_run_generate: longest answer in tokens; by default --max_new_tokens."""

    def __post_init__(self) -> None:
        check_positive("dry_run_samples", self.dry_run_samples)
        check_positive("dry_run_max_new_tokens", self.dry_run_max_new_tokens)
        for flag in ("no_model", "dry_run_generate"):
            if getattr(self, flag) and not self.dry_run:
                raise ConfigError(f"--{flag} is for --dry_run: add it, or leave --{flag} out.")
        if self.no_model and self.dry_run_generate:
            raise ConfigError("--no_model loads no weights and --dry_run_generate needs them. Leave one of them out.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that was asked for. `raw` holds the keys that only the backend's class knows."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    dry_run_options: DryRunConfig = field(default_factory=DryRunConfig)
    reporting: ReportConfig = field(default_factory=ReportConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    backend: str = "auto"
    """auto (the best that this machine has), or the name of an installed backend; cpu is what --use_cpu means."""
    overwrite_output_dir: bool = False
    """Train into an output folder that holds a run already: what run_files.json lists there is removed, no more."""
    allow_changed: tuple[str, ...] = ()
    """With --resume_from_checkpoint: settings that may differ from the checkpoint's run though the result changes, by
    the names of their flags, for example learning_rate weight_decay. Without it such a run is refused."""
    end_within: float | None = None
    """Seconds after a signal (SIGTERM, SIGUSR1, Ctrl-C) in which step and save must be done: then the run ends without,
    and not with exit code 75. By default as long as they take."""
    output_model_name: str | None = None
    """Register the trained model by this name in MLflow's registry (extra `mlflow`) once the run has ended; without
    --output_dir the results go to ./NAME."""
    tracking_uri: str | None = None
    """MLflow's store, for --output_model_name and for models:/NAME/VERSION as a model's name: a server's address or
    sqlite:///FILE. By default MLFLOW_TRACKING_URI, else a file in ~/.local/share/vlm-lora."""
    from_run: str | None = None
    """Repeat a run: its folder, a checkpoint, or their run.json. Settings that are given win; what differs is said.
    Without --output_dir the results go to its folder's name with -repeat behind it."""
    list_checkpoints: str | None = None
    """Print the checkpoints in this folder, by step, with their date and whether they are complete, and end."""
    debug: bool = False
    """Show the traceback of an error."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to set before the backend is prepared, for example WANDB_PROJECT."""
    accelerate_launch_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for `accelerate launch`; a run that is already started keeps them only for the record."""

    def __post_init__(self) -> None:
        check_positive("end_within", self.end_within)

    raw: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = field(default=frozenset(), compare=False)  # names of our settings that were given

    def replaced(self, **raw: Any) -> RunConfig:
        """Return this run with other values for keys of the trainer."""
        return replace(self, raw={**self.raw, **raw})
