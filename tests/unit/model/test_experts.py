"""Experts get LoRA where it is asked for, in whatever layout; how much of a model no adapter reaches is said."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import AutoConfig

from support.tiny import available, build_processor
from support.tiny.configurations import CONFIGURATIONS
from support.tiny.folders import model_class
from vlm_lora.backend import Precision, Traits
from vlm_lora.compat import IS_5, known_model_types
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.deploy.folding import fold
from vlm_lora.errors import BackendError, ConfigError, ModelError
from vlm_lora.memory.trace import Step, trace_step
from vlm_lora.model.adapters.experts import out_of_reach, routers
from vlm_lora.model.adapters.requirements import check_before_loading
from vlm_lora.model.adapters.targets import resolve_targets
from vlm_lora.model.families import family_of
from vlm_lora.model.loading import load_adapter
from vlm_lora.model.parts import find_parts
from vlm_lora.model.tuning import apply_tuning
from vlm_lora_torch.backend import TorchBackend

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 8,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e4}
WHOLE_ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, "partial_rotary_factor": 1.0}
FULL = {"layer_types": ["full_attention"] * 2}


def qwen3_vl_moe() -> Any:
    text = {**TEXT, **EXPERTS, "rope_parameters": ROPE, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return transformers.Qwen3VLMoeConfig(
        text_config=text, vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0]}
    )


def qwen3_5_moe() -> Any:
    text = {**TEXT, **EXPERTS, **FULL, "rope_parameters": ROPE, "shared_expert_intermediate_size": 16}
    return transformers.Qwen3_5MoeConfig(text_config=text, vision_config=QWEN_VISION)


def glm4v_moe() -> Any:
    numbers = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1}
    text = {**TEXT, **numbers, "topk_group": 1, "first_k_dense_replace": 1, "rope_parameters": WHOLE_ROPE}
    return transformers.Glm4vMoeConfig(text_config=text, vision_config={**QWEN_VISION, "image_size": 32})


def llama4() -> Any:
    text = {**TEXT, "num_local_experts": 6, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
    vision = {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    return transformers.Llama4Config(text_config={**text, "interleave_moe_layer_step": 1}, vision_config=vision)


def aria() -> Any:
    text = {**TEXT, "moe_num_experts": 6, "moe_topk": 2, "moe_num_shared_experts": 1, "model_type": "aria_text"}
    vision = {**VISION, "model_type": "idefics3_vision"}
    return transformers.AriaConfig(
        text_config=text, vision_config=vision, projector_patch_to_query_dict={16: 4}, tie_word_embeddings=False
    )


def llava() -> Any:
    """A decoder whose experts are linear layers in transformers 4.55, and one tensor in 5.x."""
    text = {**TEXT, **EXPERTS, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 16}
    return transformers.LlavaConfig(text_config=text, vision_config={**VISION, "model_type": "clip_vision_model"})


SHAPES: dict[str, Callable[[], Any]] = {
    shape.__name__: shape
    for shape in (qwen3_vl_moe, qwen3_5_moe, glm4v_moe, llama4, aria, llava)
    if shape.__name__ in known_model_types()
}
"""No matrix of an expert is square: transformers decides by shape whether to transpose some when it loads them."""
IN_ONE_TENSOR = [name for name in SHAPES if name != "llava" or IS_5]


def built(config: Any) -> Any:
    with torch.device("meta"):
        return model_class(config).from_config(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a shape's name to a folder with its weights."""

    @cache
    def made(name: str) -> Path:
        place = tmp_path_factory.mktemp(name)
        config = SHAPES[name]()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = model_class(config).from_config(config)
            for tensor in model.parameters():
                tensor.normal_(std=0.3 if tensor.ndim > 1 else 1.0)
        model.save_pretrained(place)
        return place

    return made


def loaded(place: Path) -> Any:
    return model_class(AutoConfig.from_pretrained(place)).from_pretrained(place).eval()


def tuned_on_experts(model: Any, wanted: str = "language,experts") -> Any:
    """Attach LoRA to a model's experts, with matrices B that are not zero."""
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=2, lora_targets=wanted))
    with torch.no_grad():
        for name, tensor in tuned.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return tuned.eval()


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


IDS = torch.tensor([[7, 31, 12, 55]])


def tensors_of_experts(model: nn.Module) -> set[str]:
    parts = find_parts(model)
    return {n for n, p in model.named_parameters() if p.ndim == 3 and "experts" in n and parts.part_of(n) == "language"}


@pytest.mark.parametrize("name", IN_ONE_TENSOR)
@pytest.mark.parametrize("wanted", ["language", "all-linear"])
def test_the_share_of_experts_that_stays_frozen_is_said_once(
    name: str, wanted: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = built(SHAPES[name]())
    parts = find_parts(model)
    caplog.set_level(logging.WARNING, logger="vlm_lora.model.adapters.experts")
    targets = resolve_targets(model, parts, wanted)
    assert targets.modules
    assert targets.parameters == ()
    language = {n: p for n, p in model.named_parameters() if parts.part_of(n) == "language"}
    tensors = tensors_of_experts(model)
    assert tensors
    share = sum(language[n].numel() for n in tensors) / sum(p.numel() for p in language.values())
    said = [record.getMessage() for record in caplog.records if "stays frozen" in record.getMessage()]
    assert len(said) == 1
    assert f"--lora_targets {wanted}: {100 * share:.1f} % of the language model stays frozen" in said[0]
    assert f"To tune them too, type --lora_targets {wanted},experts." in said[0]


@pytest.mark.parametrize("name", IN_ONE_TENSOR)
def test_the_word_experts_names_all_of_them_and_no_router(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = built(SHAPES[name]())
    parts = find_parts(model)
    alone = resolve_targets(model, parts, "experts")
    assert alone.modules == ()
    assert set(alone.parameters) == tensors_of_experts(model)
    both = resolve_targets(model, parts, "language,experts")
    assert both.parameters == alone.parameters
    assert both.modules == resolve_targets(model, parts, "language").modules
    assert not any(re.search(r"\.(router|gate)$", name) for name in both.modules)
    # By their own names, and by patterns over these.
    assert resolve_targets(model, parts, ",".join(alone.parameters)).parameters == alone.parameters
    assert resolve_targets(model, parts, r".*\.experts\..*").parameters == alone.parameters
    assert resolve_targets(model, parts, r"q_proj,experts").parameters == alone.parameters


@pytest.mark.parametrize("name", IN_ONE_TENSOR)
def test_each_expert_that_a_token_reached_gets_a_gradient_and_no_other(
    name: str, folder: Callable[[str], Path]
) -> None:
    tuned = tuned_on_experts(loaded(folder(name)))
    reached: dict[str, set[int]] = {}
    handles = [
        module.register_forward_hook(partial(_note_reached, reached, path.rpartition(".")[0]))
        for path, module in tuned.named_modules()
        if path.endswith((".gate", ".router")) or type(module).__name__ == "Llama4TextExperts"
    ]
    ids = IDS[:, :2]
    logits = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    logits.square().mean().backward()
    assert handles
    assert len(reached) >= 1
    wrapped = [(path, module) for path, module in tuned.named_modules() if hasattr(module, "parameter_name")]
    assert len(wrapped) == len(tensors_of_experts(loaded(folder(name))))
    for path, module in wrapped:
        block = next(block for block in reached if path.startswith(block + "."))
        count = module.num_experts
        a = module.lora_A["default"].weight.grad.reshape(count, -1)
        b = module.lora_B["default"].weight.grad.reshape(-1, count).T
        for gradient in (a, b):
            assert {number for number in range(count) if gradient[number].any()} == reached[block]
        assert 0 < len(reached[block]) < count  # the control: not all were
    frozen = [n for n, p in tuned.named_parameters() if p.grad is not None and "lora_" not in n]
    assert frozen == []


def _note_reached(found: dict[str, set[int]], block: str, module: nn.Module, args: Any, output: Any) -> None:
    """Note which experts get tokens, by what each family's router returns, or by what Llama 4's experts are given."""
    block = block.removesuffix(".experts.base_layer").removesuffix(".base_layer")
    if type(module).__name__ == "Llama4Router":
        return  # transformers 4.55 sends tokens elsewhere than it says
    if type(module).__name__.endswith("Llama4TextExperts"):  # PEFT makes it a subclass while it computes
        indices = args[0].view(6, -1).any(dim=1).nonzero()
    elif isinstance(output, torch.Tensor):  # Aria of transformers 4.55: a plain layer
        indices = output.topk(2).indices
    else:
        indices = output[-1]
    found[block] = set(indices.flatten().tolist())


@pytest.mark.parametrize("name", IN_ONE_TENSOR)
def test_reloaded_by_plain_peft_and_merged_it_computes_the_same(
    name: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    untouched = logits_of(loaded(folder(name)), IDS)
    tuned = tuned_on_experts(loaded(folder(name)))
    ours = logits_of(tuned, IDS)
    tuned.save_pretrained(tmp_path / "adapter")
    assert (untouched - ours).abs().max() > 1e-2
    reloaded = PeftModel.from_pretrained(loaded(folder(name)), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits_of(reloaded, IDS), ours)
    plain, folded = fold(reloaded)
    assert folded.recomputed == len(folded.layers)
    assert sum(".experts." in name for name in folded.layers) > 1
    plain.save_pretrained(tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged, IDS), ours, atol=1e-4, rtol=1e-4)
    again = load_adapter(loaded(folder(name)), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(again, IDS), ours)
    # The control: without one expert's adapter they are others.
    module = next(module for _, module in again.named_modules() if hasattr(module, "parameter_name"))
    changed = [float((_without(again, module, one) - ours).abs().max()) for one in range(module.num_experts)]
    assert max(changed) > 1e-4


@pytest.mark.parametrize("name", IN_ONE_TENSOR[:1])
def test_one_expert_that_is_merged_wrongly_is_named(
    name: str, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora.layer import ParamWrapper

    delta = ParamWrapper.get_delta_weight

    def wrongly(self: Any, adapter: str) -> torch.Tensor:
        change: torch.Tensor = delta(self, adapter)
        change[-1] *= 1.01
        return change

    monkeypatch.setattr(ParamWrapper, "get_delta_weight", wrongly)
    with pytest.raises(ModelError, match=r"\.experts\.\S+: its merged weight is off"):
        fold(tuned_on_experts(loaded(folder(name))))


def _without(model: Any, module: Any, expert: int) -> torch.Tensor:
    """Return the logits with one expert's adapter zeroed, and put it back."""
    matrix = module.lora_B["default"].weight
    before = matrix.detach().clone()
    with torch.no_grad():
        matrix.reshape(matrix.shape[0], -1, module.num_experts)[:, :, expert] = 0
        logits = logits_of(model, IDS)
        matrix.copy_(before)
    return logits


def test_experts_that_are_linear_layers_get_lora_as_any(caplog: pytest.LogCaptureFixture) -> None:
    model = built(llava())
    parts = find_parts(model)
    language = resolve_targets(model, parts, "language")
    assert any(".experts." in name for name in language.modules) is not IS_5
    assert ("stays frozen" in caplog.text) is IS_5
    experts = resolve_targets(model, parts, "experts")
    assert bool(experts.parameters) is IS_5
    assert all(".experts." in name for name in (*experts.modules, *experts.parameters))
    assert not any(name.endswith(".gate") for name in language.modules)


@pytest.mark.parametrize("name", [name for name in available() if name != "phi3_v"])
def test_no_dense_family_has_weights_out_of_reach(name: str) -> None:
    model = built(CONFIGURATIONS[name](build_processor(name).tokenizer))
    parts = find_parts(model)
    assert out_of_reach(model, parts) == {}
    assert routers(model, parts) == []
    with pytest.raises(ConfigError, match=r"this model has no experts\. Type --lora_targets language,vision\."):
        resolve_targets(model, parts, "language,experts,vision")


@pytest.mark.parametrize("wanted", ["gate", r".*\.gate", "router", r".*feed_forward\.router"])
def test_routers_that_are_named_are_refused(wanted: str) -> None:
    """As layers (Llama 4's, and those of transformers 4.55), and as bare matrices."""
    name = "llama4" if "router" in wanted else "llava"
    model = built(SHAPES[name]())
    with pytest.raises(ConfigError, match=r"routers?.* stay frozen"):
        resolve_targets(model, find_parts(model), wanted)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"lora_dropout": 0.05}, "--lora_dropout 0.05 with LoRA on experts in one tensor .* Type --lora_dropout 0, or"),
        ({"use_dora": True}, "--use_dora true with LoRA on experts in one tensor .* Type --use_dora false, or"),
        (
            {"lora_init": "orthogonal"},
            "--lora_init orthogonal with LoRA on .* Type --lora_init default or gaussian, or",
        ),
    ],
)
def test_what_peft_has_not_for_experts_is_refused_by_name_without_weights(setting: Any, said: str) -> None:
    config = llama4()
    for wanted in ("experts", "language,experts", ".*experts.*"):
        tuning = TuningConfig(lora_targets=wanted, **setting)
        with pytest.raises(
            ConfigError, match=said + r" leave (the experts|them) out, for example by --lora_targets language"
        ):
            check_before_loading(tuning, config, family_of(config), backend=TorchBackend())
    check_before_loading(TuningConfig(**setting), config, family_of(config), backend=TorchBackend())


@pytest.mark.parametrize("engine", ["FSDP", "ZeRO-3"])
def test_engines_that_share_out_weights_are_refused_by_name(engine: str) -> None:
    config = llama4()
    tuning = TuningConfig(lora_targets="experts")
    check_before_loading(tuning, config, family_of(config), backend=TorchBackend())
    with pytest.raises(ConfigError, match=f"--lora_targets experts with {engine}: .* Type --deepspeed zero2"):
        check_before_loading(tuning, config, family_of(config), backend=TorchBackend(), partitioned=engine)


def test_hardware_on_which_it_is_not_proven_is_refused_by_name() -> None:
    config = llama4()
    backend = SimpleNamespace(name="mycard", traits=Traits(static_shapes=False))
    with pytest.raises(BackendError, match=r"with the mycard backend: .* has not been proven on this hardware"):
        check_before_loading(TuningConfig(lora_targets="experts"), config, family_of(config), backend=backend)


@pytest.mark.parametrize("name", IN_ONE_TENSOR)
@pytest.mark.parametrize("wanted", ["language", "language,experts"])
def test_the_table_says_what_no_adapter_reaches(name: str, wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    model = built(SHAPES[name]())
    parts = find_parts(model)
    language = {n: p.numel() for n, p in model.named_parameters() if parts.part_of(n) == "language"}
    targets = resolve_targets(model, parts, wanted)
    reached = sum(language[f"{module}.weight"] for module in targets.modules)
    reached += sum(language[parameter] for parameter in targets.parameters)
    experts = sum(language[n] for n in tensors_of_experts(model))
    caplog.set_level(logging.INFO, logger="vlm_lora.model.audit")
    apply_tuning(model, family_of(model.config), TuningConfig(lora_targets=wanted))
    total = sum(language.values())
    assert f"No adapter reaches {1 - reached / total:.3%} of the language model's weights: " in caplog.text
    assert (f"experts {experts / total:.3%}" in caplog.text) is ("experts" not in wanted)
    assert "routers 0" in caplog.text or "routers 1" in caplog.text


@pytest.mark.parametrize("name", [name for name in IN_ONE_TENSOR if name in ("qwen3_vl_moe", "llama4")])
def test_the_memory_plan_counts_the_copies_of_experts(name: str) -> None:
    """All layers' until the backward pass, one layer's where activations are computed again."""
    config = SHAPES[name]()
    batch = {
        "input_ids": IDS,
        "attention_mask": torch.ones_like(IDS),
        "labels": IDS,
        "supervised_positions": torch.tensor([[0, 1, 2]]),
    }

    def peak(wanted: str, *, checkpointing: bool) -> int:
        step = Step(
            tuning=TuningConfig(lora_rank=1, lora_targets=wanted),
            checkpointing=checkpointing,
            precision=Precision(weights="float32"),
            attention="eager",
            fused_attention=False,
        )
        trace = trace_step(step, config=config, family=family_of(config), batch=batch, trust_remote_code=False)
        return max(moment.gradients + moment.passing_bytes for moment in trace.moments)

    model = built(config)
    sizes = [p.numel() * 4 for n, p in model.named_parameters() if n in tensors_of_experts(model)]
    plain, whole = peak("language", checkpointing=False), peak("language,experts", checkpointing=False)
    assert whole - plain >= sum(sizes)
    assert peak("language,experts", checkpointing=True) < whole - sum(sizes) / 3


def test_full_weights_train_experts_and_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = built(SHAPES[IN_ONE_TENSOR[0]]())
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(peft_method="none"))
    experts = out_of_reach(tuned, find_parts(tuned))
    assert experts
    assert all(parameter.requires_grad for parameter in experts.values())
    assert "stays frozen" not in caplog.text
    assert "No adapter reaches" not in caplog.text
