"""Tiny pretrained models on disk: a Llama, a tokenizer with a chat template, and adapters for it."""

import gguf
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKS = ["<end>", "<system>", "<user>", "<assistant>"]


def make_tokenizer():
    """A tokenizer of bytes and one merge, 261 pieces; the first are the marks of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: i for i, piece in enumerate([*MARKS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=pieces | {"th": len(pieces)}, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(MARKS)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=CHAT_TEMPLATE)


def save_pretrained(model, folder):
    """Write a model and the tokenizer of bytes as a Hugging Face folder; return it."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def adapt(model, seed=1, **config):
    """The model with an adapter whose matrices are drawn at random, so that it has an effect."""
    arguments = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**(arguments | config)))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter += 0.2 * torch.randn(parameter.shape)
    return adapted.eval()


def save_gguf(model, path):
    """Write a Llama and the tokenizer of bytes as a GGUF file in fp32, the way llama.cpp's converter does."""
    config, tokenizer = model.config, make_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3] * len(MARKS) + [1] * (len(tokenizer) - len(MARKS)))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            tensor = _interleaved(tensor, config.hidden_size // config.num_attention_heads)
        writer.add_tensor(_gguf_name(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name):
    """The name that GGUF has for a tensor of a Llama."""
    parts = {
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


def _interleaved(weight, head_dim):
    """Order the rows of each head as GGUF does, whose rotary embedding pairs neighbours instead of halves."""
    out, width = weight.shape
    return weight.reshape(-1, 2, head_dim // 2, width).transpose(1, 2).reshape(out, width).contiguous()
