"""The table of model families: where their parts are and what is special about each, as data.

A model whose `model_type` is not in the table still trains: `infer_family` finds its parts by
looking at its modules and says what it found.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from vlm_lora.batching.packing.style import NOT_PROVEN, PackingStyle, packing_for
from vlm_lora.batching.style import CHAT, RenderingStyle, style_for
from vlm_lora.errors import ModelError
from vlm_lora.model.features.style import (
    BY_GRID,
    CROSS_ATTENTION,
    DEEPSTACK,
    LISTED,
    NO_ENTRY,
    ONE_TENSOR,
    FeatureStyle,
)
from vlm_lora.model.head.after import NOTHING, AfterHead

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

IMAGE_TEXT = "AutoModelForImageTextToText"
CAUSAL = "AutoModelForCausalLM"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture. Paths are module names from the top of the model; the longest that fits wins.

    A path that a version of transformers does not have is passed over, so one entry serves all versions.
    """

    model_type: str
    """`config.model_type`."""
    refused: str = ""
    """Why no model of this type is trained here, as the end of a sentence that begins with "it"; empty where one is."""
    published: tuple[str, ...] = ()
    """Models of this family, as examples for messages and documentation."""
    auto_class: str = IMAGE_TEXT
    """Automatic class that loads it."""
    since: str = "4.55"
    """First supported version of transformers that has it."""
    language: tuple[str, ...] = ("model.language_model",)
    """The decoder, without embeddings and head, which are found by asking the model."""
    vision: tuple[str, ...] = ("model.vision_tower",)
    """The vision tower."""
    projector: tuple[str, ...] = ("model.multi_modal_projector",)
    """What turns the tower's features into embeddings of the decoder."""
    feature_layer: str | int | None = None
    """Which hidden state of the tower is read, or the key of the configuration that says so: layers above
    it, and what follows the last layer, never get a gradient. None: the tower's own output is read."""
    never_used: tuple[str, ...] = ()
    """Regular expressions (found anywhere in the name) of parameters that never get a gradient."""
    never_called: tuple[str, ...] = ()
    """Regular expressions (found anywhere in the name) of linear layers whose weight the model reads
    without calling them: LoRA there would change nothing."""
    kv_shared: str | None = None
    """Key of the text configuration that counts the last layers that borrow keys and values."""
    media_only_layers: str | None = None
    """Key of the text configuration that lists decoder layers which run only where there is an image."""
    flash_attention: bool = True
    """Whether flash attention works."""
    both_directions: bool = False
    """Whether the language model lets images or the prompt see later tokens of theirs, by a mask that flash
    attention never reads: it would train them as causal without a word."""
    skips_media_ids: bool = False
    """Whether placeholders of media are replaced before ids are looked up, so that embeddings need no row for them."""
    after_head: AfterHead = NOTHING
    """What it does to its logits; of a family outside the table that is not known."""
    image_backend: Literal["pil", "torchvision"] = "pil"
    """What `--image_backend auto` takes. `torchvision` where its pixels are bit for bit the same with transformers 4.55
    and 5.23 (photo-like images, shown larger and smaller, tiled; default settings: 0 in all values), or where the model
    has nothing else. LLaVA's is another pixel's crop where the margin is odd (up to 3.0), Idefics 3 and SmolVLM differ
    by up to 0.15 (LANCZOS became BICUBIC), Mllama has none on 4.55 (`tests/gaudi/test_same_pixels.py`)."""
    rendering: RenderingStyle = CHAT
    """How conversations become tokens and batches."""
    packing: PackingStyle = NOT_PROVEN
    """How several rows share a sequence, or why they do not."""
    features: FeatureStyle = NO_ENTRY
    """How features of a frozen tower are taken and handed back."""

    @property
    def is_inferred(self) -> bool:
        """True until the parts of a family outside the table have been found by `infer_family`."""
        return not self.language


def _family(model_type: str, **facts: Any) -> tuple[str, Family]:
    return model_type, Family(
        model_type=model_type, rendering=style_for(model_type), packing=packing_for(model_type), **facts
    )


_FAST: Mapping[str, Any] = {"image_backend": "torchvision"}
_QWEN: Mapping[str, Any] = {
    **_FAST,
    "vision": ("model.visual",),
    "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
}
_IDEFICS: Mapping[str, Any] = {
    "language": ("model.text_model",),
    "vision": ("model.vision_model",),
    "projector": ("model.connector",),
    "features": ONE_TENSOR,
}
_LLAVA_NEXT: Mapping[str, Any] = {
    **_FAST,
    "projector": ("model.multi_modal_projector", "model.image_newline"),
    "feature_layer": "vision_feature_layer",
    "features": LISTED,
}
_BOTH: Mapping[str, Any] = {"flash_attention": False, "both_directions": True}
_GOOGLE: Mapping[str, Any] = {"skips_media_ids": True, **_BOTH}
_CAPPED: Mapping[str, Any] = {"after_head": AfterHead(softcap="final_logit_softcapping")}
BOTH_DIRECTIONS = frozenset(
    [
        *("deepseek_ocr2", "diffusion_gemma", "gemma4_unified", "git", "molmo2", "pi0", "shieldgemma2"),
        *("step3p7", "t5gemma2", "unlimited_ocr"),
    ]
)
"""Families outside the table that are `both_directions`, or mask by functions that flash attention never reads."""
NEVER_USED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    # What an indexer says chooses the tokens to attend to, and a choice has no gradient.
    dict.fromkeys(("dots3_note", "glm5_next", "mistral_large4", "qwen4_exp"), (r"\.indexer\.",))
)
"""`Family.never_used` of families outside the table."""
_GEMMA: Mapping[str, Any] = {"projector": ("model.embed_vision",), "kv_shared": "num_kv_shared_layers"}
ENCODER_DECODER = "is an encoder with a decoder, which does not continue a chat from left to right"
"""Why such a model is refused, whether it is in the table or not."""
_QUERIES = "puts the queries of an image in front of one text and has no chat"
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), ENCODER_DECODER
    ),
    **dict.fromkeys(("blip", "git"), "writes captions and has no chat"),
    "blip-2": _QUERIES,
    "instructblip": f"{_QUERIES}; its Q-Former would read that text whole, the answer included",
    "instructblipvideo": "takes videos alone, and its Q-Former would read the answer with the question",
    **dict.fromkeys(
        ("kosmos-2", "kosmos-2.5"), "continues a text whose places for the image the caller counts, and has no chat"
    ),
    "fuyu": "puts one image in front of the whole text and marks where its answer begins by itself, and has no chat",
    "idefics": "takes texts and images as one list, counts itself which image a word may look at, and has no chat",
    "diffusion_gemma": "writes an answer block by block by removing noise, not from left to right",
    "mistral4": "is a language model and takes no images",
    "pixtral": "is a vision tower without a language model; models with it are of type llava or mistral3",
    "evolla": "answers about proteins and takes no images",
    "pi0": "moves robots: it puts out actions, not text",
    "shieldgemma2": "says how likely one of its policies is broken, and puts out no text",
}
"""Types that no chat with images is continued by from left to right, with the reason."""

FAMILIES: Mapping[str, Family] = MappingProxyType(
    dict(
        [
            _family("gemma3", published=("google/gemma-3-4b-it",), features=ONE_TENSOR, **_FAST, **_GOOGLE),
            _family(
                "gemma3n",
                published=("google/gemma-3n-E2B-it",),
                never_called=(r"\.altup\.correction_coefs$",),
                features=ONE_TENSOR,
                **_FAST,
                **_GEMMA,
                **_CAPPED,
            ),
            # Where its text is causal (E2B), flash attention fails on heads of 512.
            _family(
                "gemma4",
                published=("google/gemma-4-E2B-it",),
                since="5.5",
                features=LISTED,
                **_GEMMA,
                **_GOOGLE,
                **_CAPPED,
            ),
            _family(
                "paligemma",
                published=("google/paligemma2-3b-pt-224",),
                features=ONE_TENSOR,
                **_FAST,
                **_GOOGLE,
                **_CAPPED,
            ),
            _family("qwen2_vl", published=("Qwen/Qwen2-VL-2B-Instruct",), features=BY_GRID, **_QWEN),
            _family("qwen2_5_vl", published=("Qwen/Qwen2.5-VL-3B-Instruct",), features=BY_GRID, **_QWEN),
            _family("qwen3_vl", published=("Qwen/Qwen3-VL-2B-Instruct",), since="4.57", features=DEEPSTACK, **_QWEN),
            _family("qwen3_5", published=("Qwen/Qwen3.5-4B",), since="5.2", features=BY_GRID, **_QWEN),
            _family(
                "llava",
                published=("llava-hf/llava-1.5-7b-hf", "mistral-community/pixtral-12b"),
                feature_layer="vision_feature_layer",
                features=LISTED,
            ),
            _family(
                "llava_next",
                published=("llava-hf/llava-v1.6-mistral-7b-hf", "ibm-granite/granite-vision-3.2-2b"),
                # Granite's own code divides; that of LLaVA around it does not in any version known here.
                after_head=AfterHead(divisor="logits_scaling"),
                **_LLAVA_NEXT,
            ),
            _family("llava_onevision", published=("llava-hf/llava-onevision-qwen2-0.5b-ov-hf",), **_LLAVA_NEXT),
            _family("idefics3", published=("HuggingFaceM4/Idefics3-8B-Llama3",), **_IDEFICS),
            _family("smolvlm", published=("HuggingFaceTB/SmolVLM2-256M-Video-Instruct",), **_IDEFICS),
            _family(
                "mllama",
                published=("meta-llama/Llama-3.2-11B-Vision-Instruct",),
                vision=("model.vision_model",),
                media_only_layers="cross_attention_layers",
                features=CROSS_ATTENTION,
                flash_attention=False,
            ),
            _family(
                "internvl",
                published=("OpenGVLab/InternVL3-1B-hf",),
                feature_layer="vision_feature_layer",
                features=ONE_TENSOR,
                **_FAST,
            ),
            _family(
                "mistral3",
                published=("mistralai/Mistral-Small-3.1-24B-Instruct-2503",),
                feature_layer="vision_feature_layer",
                features=LISTED,
                **_FAST,
            ),
            _family("lfm2_vl", published=("LiquidAI/LFM2-VL-450M",), since="4.57", features=LISTED, **_FAST),
            _family(
                "phi4_multimodal",
                published=("microsoft/Phi-4-multimodal-instruct",),
                auto_class=CAUSAL,
                language=("model.layers", "model.norm"),
                vision=("model.embed_tokens_extend.image_embed.img_processor",),
                projector=("model.embed_tokens_extend.image_embed",),
                feature_layer="vision_config.feature_layer",
                **_FAST,
            ),
            _family(
                "phi3_v",
                published=("microsoft/Phi-3-vision-128k-instruct",),
                auto_class=CAUSAL,
                language=("model.layers", "model.norm"),
                vision=("model.vision_embed_tokens.img_processor",),
                projector=("model.vision_embed_tokens",),
                # Its code reads the state before the last layer's, and no setting says so.
                feature_layer=-2,
            ),
            *(_family(model_type, refused=reason) for model_type, reason in _REFUSED.items()),
        ]
    )
)
"""The families this project knows, by `model_type`; those that it refuses (`Family.refused`) are among them."""


def family_of(config: Any) -> Family:
    """Return the family of a configuration; one outside the table comes without parts (`is_inferred`)."""
    known = FAMILIES.get(config.model_type)
    if known is not None:
        return known
    both = _BOTH if config.model_type in BOTH_DIRECTIONS else {}
    return Family(
        model_type=config.model_type,
        **both,
        auto_class=_auto_class(config),
        language=(),
        vision=(),
        projector=(),
        never_used=NEVER_USED.get(config.model_type, ()),
        feature_layer="vision_feature_layer" if hasattr(config, "vision_feature_layer") else None,
        rendering=style_for(config.model_type),
    )


def _auto_class(config: Any) -> str:
    """The class that loads a family outside the table: what its own code says, or the general one."""
    own = getattr(config, "auto_map", None) or {}
    return CAUSAL if CAUSAL in own and IMAGE_TEXT not in own else IMAGE_TEXT


_VISION = re.compile(r"vision|visual|siglip|clip|vit|image_encoder|img_processor|vqmodel|vqvae", re.IGNORECASE)
_PROJECTOR = re.compile(
    r"projector|connector|merger|resampler|adapter|aligner|mlp1|img_projection|multimodalembedder",
    re.IGNORECASE,
)
_OTHER = re.compile(r"audio|speech", re.IGNORECASE)


def infer_family(model: nn.Module, family: Family | None = None) -> Family:
    """Find language model, vision tower and projector by looking at the modules, and log what was found.

    The language model is the module that holds the input embeddings and the decoder layers; the tower is
    the highest other module whose name, class or configuration speaks of vision; the projector is what
    else has parameters and does not speak of audio.

    Raises:
        ModelError: no vision tower is found, so this is no vision-language model.
    """
    family = family or family_of(model.config)
    names = {module: name for name, module in model.named_modules()}
    embeddings = names[model.get_input_embeddings()]  # type: ignore[operator]
    head = names.get(model.get_output_embeddings(), embeddings)  # type: ignore[operator]
    language = _language_paths(model, embeddings)
    vision = _vision_paths(model, (*language, embeddings))
    if not vision:
        raise ModelError(
            f"No vision tower was found in {type(model).__name__} (model_type {family.model_type!r}): none of its "
            "modules speaks of vision. Use a vision-language model, for example Qwen/Qwen2.5-VL-3B-Instruct."
        )
    merged = [
        name
        for name, _ in model.named_modules()
        if _inside(name, vision) and name not in vision and _PROJECTOR.search(name.rpartition(".")[2])
    ]
    known = (*language, *vision, embeddings, head)
    rest = [name for name in _roots(model, known) if not _OTHER.search(name)]
    projector = [*rest, *(name for name in merged if not _inside(name.rpartition(".")[0], merged))]
    found = replace(family, language=tuple(language), vision=tuple(vision), projector=tuple(projector))
    logger.warning(
        "model_type %r is not in the table of families; parts found by looking at the modules: language model %s, "
        "vision tower %s, projector %s. Check them in the table of trainable parameters.",
        family.model_type,
        ", ".join(found.language),
        ", ".join(found.vision),
        ", ".join(found.projector) or "none",
    )
    return found


def _inside(name: str, paths: tuple[str, ...] | list[str]) -> bool:
    return any(name == path or name.startswith(path + ".") for path in paths)


def _speaks(name: str, module: nn.Module) -> str:
    """What a module says about itself: the last step of its name, its class, its configuration."""
    config = getattr(module, "config", None)
    return f"{name.rpartition('.')[2]} {type(module).__name__} {getattr(config, 'model_type', '')}"


def _language_paths(model: nn.Module, embeddings: str) -> list[str]:
    """Return the module around the embeddings, or its layers and norm where it holds the tower as well."""
    parent = embeddings.rpartition(".")[0]
    holder = model.get_submodule(parent)
    inner = [_speaks(name, module) for name, module in holder.named_modules() if name]
    if parent and not any(_VISION.search(spoken) for spoken in inner):
        return [parent]
    prefix = parent + "." if parent else ""
    kept = ("layers", "h", "blocks", "norm", "ln_f", "final_layernorm")
    return [prefix + name for name, _ in holder.named_children() if name in kept]


def _vision_paths(model: nn.Module, known: tuple[str, ...]) -> list[str]:
    """Return the highest modules with parameters that speak of vision and hold nothing of `known`."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not name or _inside(name, found) or _inside(name, known):
            continue
        if any(path.startswith(name + ".") for path in known) or next(module.parameters(), None) is None:
            continue
        spoken = _speaks(name, module)
        if _VISION.search(spoken) and not _PROJECTOR.search(spoken) and not _OTHER.search(name):
            found.append(name)
    return found


def _roots(model: nn.Module, known: tuple[str, ...]) -> list[str]:
    """Return the highest modules and loose parameters outside `known`."""
    found: list[str] = []
    for name, _ in model.named_parameters():
        if _inside(name, known):
            continue
        steps = name.split(".")
        paths = [".".join(steps[:count]) for count in range(1, len(steps) + 1)]
        root = next(path for path in paths if not any(other.startswith(path + ".") for other in known))
        if root not in found:
            found.append(root)
    return found
