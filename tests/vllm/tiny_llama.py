"""Make a Llama of a few hundred thousand random weights, with a tokenizer, for vLLM on CPU.

Its answers are noise, but its wire behaviour is that of any model. The weights are drawn from a fixed seed and stored,
so that `vllm serve DIR` needs no special options and greedy decoding repeats itself. Run by deploy/engine/vllm_cpu.sh
inside the engine's environment.
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY_TOKENS = 512
CORPUS = (
    "A router sends each question to the cheapest place that answers it well enough.",
    "Count the tokens before you pay for them, and count them again when the bill arrives.",
    "def add(first, second): return first + second",
    "What is the capital of France, and how far is it from Berlin?",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE: it can spell any text, in about two bytes a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        list(CORPUS) * 4,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_TOKENS,
            special_tokens=[PAD, BEGIN, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers of width 128; the sequence length leaves room above the served 2,048 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


def main(out_dir: str) -> None:
    """Write model and tokenizer into `out_dir`."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(out_dir)
    make_model(tokenizer).save_pretrained(out_dir)


if __name__ == "__main__":
    main(sys.argv[1])
