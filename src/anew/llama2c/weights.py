"""Weights of llama2.c: a header, then every matrix in fp32, heads rotated in pairs of neighbours.

Two layouts exist. Version 0 has a bare header of seven integers, and tables of cosines and sines that nobody reads;
version 1 begins with a magic number and has all norms first. ``run.c`` reads version 0, ``runq.c`` and exporters also
others, which are quantised and not read here. Source: llama2.c, export.py and run.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from anew.errors import UserError

MAGIC, HEADER_1 = 0x616B3432, 256
FIELDS = struct.Struct("<7i")
#: Largest value of a header's field that is taken for one: another file's bytes are mostly larger.
PLAUSIBLE = 1 << 24
#: What run.c computes with, whatever the model was trained with.
EPS, THETA = 1e-5, 10000.0

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = {
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "wq": "model.layers.{}.self_attn.q_proj.weight",
    "wk": "model.layers.{}.self_attn.k_proj.weight",
    "wv": "model.layers.{}.self_attn.v_proj.weight",
    "wo": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "w1": "model.layers.{}.mlp.gate_proj.weight",
    "w2": "model.layers.{}.mlp.down_proj.weight",
    "w3": "model.layers.{}.mlp.up_proj.weight",
}
#: The order of the sections by version; a name of LAYER stands for all layers one after another.
ORDER = {
    0: (EMBEDDING, "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", NORM, "tables", HEAD),
    1: ("attention_norm", "ffn_norm", NORM, EMBEDDING, "wq", "wk", "wv", "wo", "w1", "w2", "w3", HEAD),
}


@dataclass(frozen=True)
class Header:
    """What the header of a file says; ``start`` is where the weights begin, in bytes."""

    version: int
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    tied: bool
    start: int

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.heads

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one matrix or vector of a section."""
        kv = self.kv_heads * self.head_dim
        shapes = {
            "wq": (self.dim, self.dim),
            "wk": (kv, self.dim),
            "wv": (kv, self.dim),
            "wo": (self.dim, self.dim),
            "w1": (self.hidden, self.dim),
            "w2": (self.dim, self.hidden),
            "w3": (self.hidden, self.dim),
            "tables": (2, self.positions, self.head_dim // 2),
            EMBEDDING: (self.vocabulary, self.dim),
            HEAD: (self.vocabulary, self.dim),
        }
        return shapes.get(name, (self.dim,))

    def sections(self) -> Iterator[tuple[str, str]]:
        """Each tensor in the file's order: the name of its section, and that of the parameter."""
        for section in ORDER[self.version]:
            if section in LAYER:
                yield from ((section, LAYER[section].format(layer)) for layer in range(self.layers))
            elif section != HEAD or not self.tied:
                yield section, section

    def rotated_heads(self, section: str) -> int:
        """How many heads of a section's rows are rotated by position; 0 for none."""
        return {"wq": self.heads, "wk": self.kv_heads}.get(section, 0)

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self.start + 4 * sum(int(np.prod(self.shape(section))) for section, _ in self.sections())

    def config(self) -> dict[str, Any]:
        """The configuration of the model as transformers has it."""
        return {
            "model_type": "llama",
            "hidden_size": self.dim,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": EPS,
            "tie_word_embeddings": self.tied,
        }


def read_config(path: Path) -> dict[str, Any]:
    """Return the Hugging Face configuration of a file's model; raises UserError as :func:`read_model` does."""
    return _header(path).config()


def read_model(path: Path) -> Any:
    """Return a file's model as a ``LlamaForCausalLM`` in fp32.

    Raises UserError when the file cannot be read, is none of llama2.c's, is cut off or is quantised.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    header = _header(path)
    config = header.config()
    config.pop("model_type")
    model = LlamaForCausalLM(LlamaConfig(**config))
    parameters = dict(model.named_parameters())
    data = np.memmap(path, dtype="<f4", mode="r", offset=header.start)
    at = 0
    for section, name in header.sections():
        shape = header.shape(section)
        size = int(np.prod(shape))
        if section != "tables":
            found = torch.from_numpy(np.array(data[at : at + size])).view(shape)
            with torch.no_grad():
                parameters[name].copy_(_to_halves(found, header.rotated_heads(section)))
        at += size
    return model.eval()


def write_model(model: Any, path: Path, version: int = 0) -> None:
    """Write a ``LlamaForCausalLM`` as a file of llama2.c, whole or not at all.

    Raises UserError for a model that llama2.c cannot compute, naming what it lacks, and when the disk takes no more.
    """
    header = _header_of(model.config, version)
    parameters = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(file, header, parameters)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another file") from error
    finally:
        partial.unlink(missing_ok=True)


def _write(file: BinaryIO, header: Header, parameters: dict[str, Tensor]) -> None:
    vocabulary = header.vocabulary if header.tied or header.version else -header.vocabulary
    fields = FIELDS.pack(
        header.dim, header.hidden, header.layers, header.heads, header.kv_heads, vocabulary, header.positions
    )
    if header.version:
        fields = struct.pack("<Ii", MAGIC, header.version) + fields + struct.pack("<B", header.tied)
    file.write(fields.ljust(header.start, b"\0"))
    for section, name in header.sections():
        values = _tables(header) if section == "tables" else parameters[name]
        pairs = _to_pairs(values, header.rotated_heads(section))
        file.write(pairs.contiguous().numpy().astype("<f4", copy=False).tobytes())


def _tables(header: Header) -> Tensor:
    """Cosines and sines by position and pair; run.c skips them, and older programs read them."""
    frequencies = THETA ** (-torch.arange(0, header.head_dim, 2).double() / header.head_dim)
    angles = torch.outer(torch.arange(header.positions).double(), frequencies)
    return torch.stack([angles.cos(), angles.sin()]).float()


def _to_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of heads whose neighbours rotate together, in the order of transformers: a half with the other half."""
    return weight if not heads else weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _to_pairs(weight: Tensor, heads: int) -> Tensor:
    """The inverse of :func:`_to_halves`."""
    return weight if not heads else weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _header(path: Path) -> Header:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(HEADER_1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    header = _parse(start, path)
    if size != header.nbytes:
        what = "cut off" if size < header.nbytes else "no model of llama2.c"
        raise UserError(f"{path} is {what}: its header asks for {header.nbytes} bytes, and it has {size}")
    return header


def _parse(start: bytes, path: Path) -> Header:
    version, at = 0, 0
    if len(start) >= 8 and struct.unpack_from("<I", start)[0] == MAGIC:
        version, at = struct.unpack_from("<i", start, 4)[0], 8
        if version != 1:
            raise UserError(
                f"{path} is version {version} of llama2.c's files, quantised: only 0 and 1, in fp32, are read"
            )
    if len(start) < at + FIELDS.size:
        raise UserError(f"{path} is no model of llama2.c: it has {len(start)} bytes")
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = FIELDS.unpack_from(start, at)
    sizes = (dim, hidden, layers, heads, kv_heads, abs(vocabulary), positions)
    if not all(0 < n < PLAUSIBLE for n in sizes) or dim % heads or heads % kv_heads or dim // heads % 2:
        raise UserError(f"{path} is no model of llama2.c: its header would mean {sizes}")
    tied = bool(start[at + FIELDS.size]) if version else vocabulary > 0
    return Header(version, *sizes, tied=tied, start=HEADER_1 if version else FIELDS.size)


def _header_of(config: Any, version: int) -> Header:
    """The header of a model; raises UserError naming what llama2.c's programs do not compute."""
    rope = config.rope_parameters if config.model_type == "llama" else {}
    wanted = {
        "model_type": (config.model_type, "llama"),
        "hidden_act": (getattr(config, "hidden_act", None), "silu"),
        "attention_bias": (getattr(config, "attention_bias", False), False),
        "mlp_bias": (getattr(config, "mlp_bias", False), False),
        "head_dim": (getattr(config, "head_dim", None), config.hidden_size // config.num_attention_heads),
        "rms_norm_eps": (getattr(config, "rms_norm_eps", None), EPS),
        "rope_type": (rope.get("rope_type"), "default"),
        "rope_theta": (rope.get("rope_theta"), THETA),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise UserError(f"llama2.c computes with {name} {needed}, and the model has {found}: it cannot be written")
    return Header(
        version,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.max_position_embeddings,
        tied=config.tie_word_embeddings,
        start=HEADER_1 if version else FIELDS.size,
    )
