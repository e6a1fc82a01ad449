# mypy: ignore-errors
"""Configuration of a minimal stand-in for Phi-3-Vision's remote code: the same names and module layout."""

from transformers import PretrainedConfig


class Phi3VConfig(PretrainedConfig):
    model_type = "phi3_v"

    def __init__(
        self,
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        vision_hidden_size=32,
        vision_layers=3,
        image_side=32,
        patch_size=8,
        use_cache=False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.vision_hidden_size = vision_hidden_size
        self.vision_layers = vision_layers
        self.image_side = image_side
        self.patch_size = patch_size
        self.use_cache = use_cache
        super().__init__(**kwargs)
