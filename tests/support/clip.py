"""A random, tiny CLIP model."""

import torch
from support import small
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from stepcache.commands.quiet import quiet


def save_clip(path):
    """A random, tiny CLIP model with the demo's tokenizer, as from_pretrained takes it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(f"{small.DEMO}/tokenizer")
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    with quiet("transformers"):
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return model, tokenizer
