"""A language model and sentences for transformers' Trainer."""

from __future__ import annotations

import torch
import transformers

VOCABULARY = 32


def language_model(seed=0):
    """A llama of 2,000 random parameters."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config).double()


def sentences():
    tokens = torch.randint(VOCABULARY, (24, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]
