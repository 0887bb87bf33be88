"""Writes the tiny random models of this folder with `transformers`, and what they compute.

    VENV/bin/python tests/data/hugging_face/make.py tests/data/hugging_face

needs an environment with `transformers` and `torch`, and nothing of this project. For each model it
writes the folder that `save_pretrained` makes, a tokenizer, and `expected.safetensors`: tokens, and
the logits of a causal model or the last hidden states of an encoder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

VOCABULARY, LENGTH = 272, 24
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def main(folder: Path) -> None:
    """Writes all models."""
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **GROUPED))
    write(folder / "llama", llama)

    # In bfloat16, tied and in several files, as larger models are published.
    tied = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA_3, tie_word_embeddings=True)
    )
    write(folder / "llama_tied", tied, torch.bfloat16, max_shard_size="8KB")

    encoder = transformers.EuroBertModel(
        transformers.EuroBertConfig(**SHAPE, **GROUPED, mask_token_id=3)
    )
    write(folder / "eurobert", encoder)


def write(
    folder: Path, model: Any, dtype: torch.dtype = torch.float32, max_shard_size: str = "1MB"
) -> None:
    """Writes a model, its tokenizer and what it computes."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)

    # Loaded again: a cast model has cast the frequencies of its rotary positions too.
    model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(4, VOCABULARY, (2, LENGTH))
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 7]])
    with torch.no_grad():
        output = model(input_ids=tokens, attention_mask=mask.long())
    computed = output.logits if "logits" in output else output.last_hidden_state
    save_file(
        {"tokens": tokens.int(), "lengths": mask.sum(1).int(), "computed": computed.contiguous()},
        folder / "expected.safetensors",
    )


def make_tokenizer() -> tokenizers.Tokenizer:
    """Returns a byte-level BPE of a few merges, which adds a special token to every text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 4,
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the then there other"], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
