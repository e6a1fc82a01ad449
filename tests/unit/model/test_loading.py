"""Loading works for every family, and each thing that can be wrong has one message that says what to do."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from support.tiny import available
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.compat import IS_5, image_backend, known_model_types
from vlm_lora.config.run_config import ModelConfig, TuningConfig
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.families import FAMILIES, family_of
from vlm_lora.model.loading import adapter_folder, base_config, load_adapter, load_config, load_model, load_processor
from vlm_lora.model.tuning import apply_tuning

NAMES = available()
REFUSED = {name: family.refused for name, family in FAMILIES.items() if family.refused and name in known_model_types()}
PLAIN = {"torch_dtype": torch.float32, "attn_implementation": "sdpa"}


def _config(place: Path | str, **settings: Any) -> ModelConfig:
    remote = Path(place).joinpath("modeling_phi3_v.py").exists()
    return ModelConfig(model_name_or_path=str(place), **{"trust_remote_code": remote, **settings})


@pytest.fixture
def copied(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny folder that a test may break."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(model_folder(name), tmp_path / name))

    return copy


def _edit(path: Path, **changes: Any) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, **changes}), encoding="utf-8")


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_an_image_processor_has_the_size_of_its_file(backend: str, copied: Callable[[str], Path]) -> None:
    """As 5.x writes it, without min_pixels and max_pixels; 4.55 alone would take a default size."""
    folder = copied("qwen2_5_vl")
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2_5_VLProcessor"}')  # 5.x nests it there
    path.write_text(json.dumps({name: settings[name] for name in settings if not name.endswith("_pixels")}))
    _edit(path, size={"shortest_edge": 1024, "longest_edge": 2048})
    processor = load_processor(_config(folder, image_backend=backend)).image_processor
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (1024, 2048)
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    patches = processor(images=[image], return_tensors="pt")["image_grid_thw"].prod() * processor.patch_size**2
    assert 1024 <= patches <= 2048
    _edit(path, size={"shortest_edge": 8192, "longest_edge": 16384})
    larger = load_processor(_config(folder, image_backend=backend)).image_processor
    assert larger(images=[image], return_tensors="pt")["image_grid_thw"].prod() * 64 >= 8192, "the control"


@pytest.mark.parametrize("name", NAMES)
def test_every_family_loads(name: str, model_folder: Callable[[str], Path]) -> None:
    config = _config(model_folder(name))
    loaded = load_config(config)
    assert loaded.model_type == name.partition("-")[0]
    processor = load_processor(config)
    assert processor.tokenizer.padding_side == "right"
    assert bool(processor.chat_template) == (name != "paligemma")
    # Phi-3-Vision brings its own; the others have two of which torchvision's is not the same in all versions.
    slower = ("gemma4", "idefics3", "smolvlm", "mllama", "llava", "llava-pixtral")
    others = {"phi3_v": "own", **dict.fromkeys(slower, "pil")}
    assert image_backend(processor.image_processor) == others.get(name, "torchvision")
    model = load_model(config, model_kwargs={} if name == "phi3_v" else PLAIN)
    plain_processor, plain = load_plainly(model_folder(name))
    batch = build_batch(processor)
    assert batch.keys() == build_batch(plain_processor).keys()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).logits, plain(**batch).logits)


def test_the_image_backend_can_be_chosen(model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    config = _config(model_folder("qwen2_vl"), image_backend="torchvision")
    assert image_backend(load_processor(config).image_processor) == "torchvision"
    with caplog.at_level(logging.WARNING):
        load_processor(_config(model_folder("phi4_multimodal"), image_backend="pil"))
    assert "--image_backend pil: this model has only Phi4MultimodalImageProcessor" in caplog.text


def test_no_model_is_named() -> None:
    with pytest.raises(ConfigError, match="--model_name_or_path is missing"):
        load_config(ModelConfig())


@pytest.mark.parametrize("place", ["/nowhere/model", "./model", "a/b/c"])
def test_a_folder_that_does_not_exist(place: str) -> None:
    with pytest.raises(ModelError, match=r"no such folder. Give an existing folder, or a Hub id"):
        load_config(_config(place))


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ModelError, match=r"no config\.json\. It holds: notes\.txt"):
        load_config(_config(tmp_path))


def test_a_hub_id_that_cannot_be_fetched() -> None:
    with pytest.raises(ModelError, match=r"could not be fetched.*hf auth login.*hf download nobody/nothing"):
        load_config(_config("nobody/nothing"))


def test_a_text_only_model(tmp_path: Path) -> None:
    transformers.LlamaConfig(vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'llama' is a text-only model"):
        load_config(_config(tmp_path))


def test_an_unknown_architecture(copied: Callable[[str], Path]) -> None:
    folder = copied("llava")
    _edit(folder / "config.json", model_type="llava_of_tomorrow")
    with pytest.raises(ModelError, match="does not know model_type 'llava_of_tomorrow'"):
        load_config(_config(folder))


def test_remote_code_is_not_run_unasked(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"brings its own Python code.*--trust_remote_code true"):
        load_config(_config(model_folder("phi3_v"), trust_remote_code=False))


def test_weights_that_are_missing(copied: Callable[[str], Path]) -> None:
    folder = copied("llava")
    weights = load_file(folder / "model.safetensors")
    gone = [key for key in weights if "multi_modal_projector" in key]
    save_file({k: v for k, v in weights.items() if k not in gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{len(gone)} weights are missing .*multi_modal_projector"):
        load_model(_config(folder), model_kwargs=PLAIN)


def test_weights_of_another_shape(copied: Callable[[str], Path]) -> None:
    folder = copied("llava")
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if key.endswith("multi_modal_projector.linear_1.weight"))
    weights[key] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="Copy the whole model folder again"):
        load_model(_config(folder), model_kwargs=PLAIN)


def test_no_weights_at_all(copied: Callable[[str], Path]) -> None:
    folder = copied("llava")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"llava: .*model\.safetensors"):
        load_model(_config(folder), model_kwargs=PLAIN)


def test_no_chat_template(copied: Callable[[str], Path]) -> None:
    folder = copied("llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template.*instruction-tuned"):
        load_processor(_config(folder))


@pytest.mark.parametrize("newer", [{"tokenizer_class": "TokenizersBackend"}, {"extra_special_tokens": []}])
def test_a_tokenizer_that_transformers_5_wrote(newer: dict[str, object], copied: Callable[[str], Path]) -> None:
    """Version 5 reads its own; 4.55 says what to change instead of calling it damaged."""
    folder = copied("gemma3")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **newer}), encoding="utf-8")
    if IS_5:
        assert load_processor(ModelConfig(model_name_or_path=str(folder))).tokenizer is not None
        return
    with pytest.raises(ModelError, match=f"{file}: written by transformers 5") as raised:
        load_processor(ModelConfig(model_name_or_path=str(folder)))
    assert '"tokenizer_class" there to "PreTrainedTokenizerFast"' in str(raised.value)


def test_no_image_processor(copied: Callable[[str], Path]) -> None:
    folder = copied("llava")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="llava"):
        load_processor(_config(folder))


def test_flash_attention_where_it_does_not_work(
    model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(
        _config(model_folder("mllama")), model_kwargs={**PLAIN, "attn_implementation": "flash_attention_2"}
    )
    assert "mllama does not support flash attention; sdpa is used instead" in caplog.text
    assert model.config._attn_implementation == "sdpa"


def _saved_adapter(base: Path, folder: Path, *, with_processor: bool = False) -> Any:
    config = _config(base)
    model = load_model(config, model_kwargs=PLAIN)
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=2))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    tuned.save_pretrained(folder)
    if with_processor:
        load_processor(config).save_pretrained(folder)
    return tuned.eval()


@pytest.mark.parametrize("with_processor", [False, True])
def test_an_adapter_folder_loads_its_base_and_itself(
    with_processor: bool, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = model_folder("qwen2_vl")
    tuned = _saved_adapter(base, tmp_path, with_processor=with_processor)
    config = _config(tmp_path)
    assert adapter_folder(config) == tmp_path
    assert base_config(config).model_name_or_path == str(base)
    assert load_config(config).model_type == "qwen2_vl"
    batch = build_batch(load_processor(config))
    model = load_model(config, model_kwargs=PLAIN).eval()
    _, plain = load_plainly(base)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, tuned(**batch).logits, atol=1e-5, rtol=1e-5)
        assert (plain(**batch).logits - tuned(**batch).logits).abs().max() > 1e-2


def test_an_adapter_whose_base_is_gone(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    _saved_adapter(model_folder("qwen2_vl"), tmp_path)
    _edit(tmp_path / "adapter_config.json", base_model_name_or_path="/moved/away")
    with pytest.raises(ModelError, match=r"/moved/away \(the base model of the adapter .*\): no such folder"):
        load_config(_config(tmp_path))


def test_an_adapter_that_names_no_base(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    _saved_adapter(model_folder("qwen2_vl"), tmp_path)
    _edit(tmp_path / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="names no base model"):
        load_config(_config(tmp_path))


def test_an_adapter_of_another_model(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    _saved_adapter(model_folder("qwen2_vl"), tmp_path)
    model = load_model(_config(model_folder("idefics3")), model_kwargs=PLAIN)
    with pytest.raises(ModelError, match="do not belong together"):
        load_adapter(model, tmp_path)


def test_an_adapter_with_tensors_that_have_no_place(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    _saved_adapter(model_folder("qwen2_vl"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    moved = next(iter(weights))
    weights[moved.replace("layers.", "tiers.")] = weights.pop(moved)
    save_file(weights, file)
    model = load_model(_config(model_folder("qwen2_vl")), model_kwargs=PLAIN)
    with pytest.raises(ModelError, match="1 adapter tensors of this model are not in the file"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_type_that_continues_no_chat_is_refused_by_name(model_type: str, tmp_path: Path) -> None:
    """Before anything but config.json is read: the folder holds nothing else."""
    parts = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}} if "decoder" in model_type else {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **parts}), encoding="utf-8")
    refusal = (
        f"a model of type {model_type!r} cannot be trained here: it {REFUSED[model_type]}. Use a model that answers"
    )
    with pytest.raises(ModelError) as raised:
        load_config(_config(tmp_path))
    assert refusal in str(raised.value)


def test_an_encoder_with_a_decoder_is_refused_whatever_its_type(tmp_path: Path) -> None:
    """BLIP-2 over T5 is one, over OPT it is none; so may be a type that nobody knows yet."""
    transformers.T5Config(vocab_size=64, d_model=8).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="type 't5' cannot be trained here: it is an encoder with a decoder"):
        load_config(_config(tmp_path))
