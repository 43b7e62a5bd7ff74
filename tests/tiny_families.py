"""Tiny random models of many families, with weights so large that a wrong mask or a lost cap shows in the numbers."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from accord import bundled
from accord.models.references import Model
from accord.preflight.families import spread_weights

WINDOW = 16
SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MHA = SIZES | {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING = {"sliding_window": WINDOW, "num_hidden_layers": 4}
MIXED = SLIDING | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_ssm": 128, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_chunk_size": 8, "mamba_expand": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "mistral": ("MistralConfig", SIZES | SLIDING),
    "qwen2": ("Qwen2Config", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SIZES),
    "gemma": ("GemmaConfig", SIZES),
    "gemma2": ("Gemma2Config", SIZES | SLIDING | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0}),
    "gemma3_text": ("Gemma3TextConfig", SIZES | MIXED),
    "gemma3": (
        "Gemma3Config",
        {"text_config": SIZES | MIXED, "mm_tokens_per_image": 4, "boi_token_id": 256, "eoi_token_id": 257,
         "image_token_id": 258,
         "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
                           "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False}},
    ),
    "phi3": ("Phi3Config", SIZES | {"sliding_window": None}),
    "phi": ("PhiConfig", MHA | {"partial_rotary_factor": 0.5}),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 259, "n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": 256, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "opt": ("OPTConfig", SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "falcon": (
        "FalconConfig",
        {key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")},
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": 259, "hidden_size": 64, "n_layer": 3, "n_head": 2, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2},
    ),
    "olmo2": ("Olmo2Config", MHA),
    "olmo3": ("Olmo3Config", MHA | MIXED),
    "granite": ("GraniteConfig", SIZES | {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "stablelm": ("StableLmConfig", MHA),
    "cohere": ("CohereConfig", SIZES),
    "cohere2": ("Cohere2Config", SIZES | MIXED),
    "smollm3": ("SmolLM3Config", SIZES | {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "glm4": ("Glm4Config", SIZES),
    "exaone4": ("Exaone4Config", SIZES | MIXED),
    "starcoder2": ("Starcoder2Config", SIZES | SLIDING),
    "qwen3_moe": ("Qwen3MoeConfig", SIZES | EXPERTS),
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("OlmoeConfig", MHA | EXPERTS),
    "gpt_oss": ("GptOssConfig", SIZES | SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "DeepseekV3Config",
        MHA
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
           "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 16,
           "qk_nope_head_dim": 16, "v_head_dim": 24, "head_dim": 16},
    ),
    "mamba2": (
        "Mamba2Config",
        {"vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 4, "head_dim": 32, "state_size": 16,
         "n_groups": 1, "chunk_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "falcon_h1": ("FalconH1Config", SIZES | MAMBA),
    "lfm2": ("Lfm2Config", SIZES | {"layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 96}),
    "qwen3_next": (
        "Qwen3NextConfig",
        SIZES | EXPERTS
        | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 2,
           "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
           "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        SIZES | MAMBA
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32,
           "layer_types": ["mamba", "attention", "mamba"], "layers_block_type": ["mamba", "attention", "mamba"]},
    ),
}  # fmt: skip
"""By name, the configuration's class and its settings."""


def make_family(name: str, folder: Path, **settings: Any) -> Model:
    """Write a tiny model of a family, with a tokenizer of bytes and a chat template."""
    kind, of_family = FAMILIES[name]
    config = getattr(transformers, kind)(**(of_family | settings))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    spread_weights(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Model(name, folder, name)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte, the bundled model's special tokens and its chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], bos_token=special[1], eos_token=special[2],
        model_max_length=1024,
    )  # fmt: skip
    tokenizer.chat_template = (Path(bundled.__file__).parent / "smollm2_chat_template.jinja").read_text()
    return tokenizer
