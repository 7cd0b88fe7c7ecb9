"""Generation: transformers keeps the keys and values, a compiled layer sees them as tensors of few fixed sizes.

``model.generate`` hands one cache object to all layers and grows it with every token. As arguments of a graph the
object would give each layer a graph of its own, and the growing tensors a program for each length. So where a layer is
called, this layer's part of the cache is padded to a bucket and handed over as two tensors; the padding is masked. The
keys and values of the new tokens come back, and the cache takes them up itself: what transformers does with a cache
between calls (beams, sliding windows, cropping, going on from an earlier one) is left to transformers.

An answer takes two programs: one for the prompt, whose length is padded likewise, one for every token after it; and
one more each time the length outgrows a bucket, or stays in a smaller one in layers with a sliding window.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from anew.compiler.custom_ops import MASKED
from anew.errors import UserError

#: Tokens are padded to this many, or to the next power of two.
SMALLEST_BUCKET = 64
#: Arguments of transformers' layers that have the new tokens along axis 1, alone or in a tuple.
TOKENS_ALONG_AXIS_1 = ("hidden_states", "position_embeddings", "position_ids")
#: What to do instead, at the end of an error.
WITHOUT = "generate with use_cache=False, at one program for each length"


def bucket(length: int) -> int:
    """The size that a length is padded to."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


class LayerCache:
    """Stands for transformers' cache in one call of one layer.

    Holds nothing that tells one layer from another, or Dynamo would guard on it.

    Attributes:
        past: padded keys and values of the tokens before, [batch, heads, bucket, head size] each; None without any.
        new: keys and values of this call's tokens, as the layer gave them.
    """

    def __init__(self, past: tuple[Tensor, Tensor] | None) -> None:
        self.past = past
        self.new: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take up the keys and values of new tokens; returns those of all tokens."""
        if self.new is not None:
            raise UserError(f"a layer updates its cache twice in one call; {WITHOUT}")
        self.new = key, value
        if self.past is None:
            return key, value
        return torch.cat([self.past[0], key], dim=-2), torch.cat([self.past[1], value], dim=-2)


def with_fixed_sizes(layer: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the call of a compiled layer: given a cache of transformers, it runs on padded sizes.

    Without a cache among its arguments the call is left alone. With one, it raises UserError unless that is
    transformers' default cache and the layer takes arguments that can be padded. Forward hooks inside the layer see
    the padded sizes.
    """
    parameters = inspect.signature(layer.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    kind = type(layer).__name__
    numbers = [getattr(m, "layer_idx", None) for m in layer.modules()]
    index = next((number for number in numbers if isinstance(number, int)), None)

    def called(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        name = next((n for n, x in given.items() if hasattr(x, "get_mask_sizes")), None)
        if name is None:
            return call(*args, **kwargs)
        cache = given.pop(name)
        if index is None or "hidden_states" not in given or len(args) > len(names):
            raise UserError(f"{kind} has no layer_idx or does not name its arguments as transformers does; {WITHOUT}")
        _check_cache(kind, cache, index)
        step = _Step(kind, cache, index, given)
        fitted = step.arguments | {name: step.view}
        result = call(*[fitted.pop(n) for n in names[: len(args)]], **fitted)
        return step.finish(result)

    return called


class _Step:
    """One call of one layer with a cache: its arguments padded, its results cut to size."""

    def __init__(self, kind: str, cache: Any, index: int, given: Mapping[str, Any]) -> None:
        self.kind, self.cache, self.index = kind, cache, index
        self.batch, self.tokens = given["hidden_states"].shape[:2]
        self.seen = cache.get_mask_sizes(self.tokens, index)[0] - self.tokens  # as the layer sees it: windows are less
        self.padded_tokens = 1 if self.seen and self.tokens == 1 else bucket(self.tokens)
        self.padded_seen = bucket(self.seen) if self.seen else 0
        self.view = LayerCache(self._past())
        self.arguments = {name: self._padded(name, x) for name, x in given.items()}
        self.arguments["attention_mask"] = self._mask(given.get("attention_mask"), given.get("is_causal"))

    def finish(self, result: Any) -> Any:
        """Give the new keys and values to the cache; returns the layer's result for the tokens that there are."""
        hidden, *others = result if isinstance(result, tuple) else (result,)
        if self.view.new is None or any(x is not None for x in others):
            raise UserError(f"{self.kind} leaves its cache as it was or returns more than hidden states; {WITHOUT}")
        self.cache.update(*(x[..., : self.tokens, :] for x in self.view.new), self.index)
        hidden = hidden[:, : self.tokens]
        return (hidden, *others) if isinstance(result, tuple) else hidden

    def _past(self) -> tuple[Tensor, Tensor] | None:
        if not self.seen:
            return None
        stored, tail = self.cache.layers[self.index], self.padded_seen - self.seen
        keys, values = (F.pad(x[..., -self.seen :, :], (0, 0, 0, tail)) for x in (stored.keys, stored.values))
        return keys, values

    def _padded(self, name: str, argument: Any) -> Any:
        """Append zeros to the tensors of an argument, along the new tokens."""

        def padded(x: Any) -> Any:
            if not isinstance(x, Tensor) or name == "attention_mask":
                return x
            if name not in TOKENS_ALONG_AXIS_1:
                raise UserError(f"{self.kind} takes a tensor '{name}' that anew cannot fit to a cache; {WITHOUT}")
            return F.pad(x, (*(0, 0) * (x.dim() - 2), 0, self.padded_tokens - self.tokens))

        return tree_map(padded, argument)

    def _mask(self, given: Tensor | None, is_causal: bool | None) -> Tensor:
        """The additive fp32 mask over padded past and padded new tokens: what is padding is masked.

        ``given`` is as transformers makes it, [batch or 1, heads or 1, tokens, seen + tokens], bool or additive; None
        stands for a causal one, or for none at all where ``is_causal`` is False.
        """
        width = self.seen + self.tokens
        if given is None:
            everything = torch.ones(1, 1, self.tokens, width, dtype=torch.bool)
            given = everything if is_causal is False else everything.tril(self.seen)
        if given.dim() != 4 or given.shape[-2:] != (self.tokens, width):
            raise UserError(
                f"{self.kind}: an attention mask of {list(given.shape)}, but {self.tokens} tokens with {self.seen} in "
                f"the cache take [batch, heads, {self.tokens}, {width}]"
            )
        if given.dtype == torch.bool:
            given = torch.zeros(given.shape).masked_fill_(~given, MASKED)
        size = (self.batch, given.shape[1], self.padded_tokens, self.padded_seen + self.padded_tokens)
        mask = torch.full(size, MASKED)
        mask[:, :, : self.tokens, : self.seen] = given[..., : self.seen]
        mask[:, :, : self.tokens, self.padded_seen : self.padded_seen + self.tokens] = given[..., self.seen :]
        return mask


def _check_cache(kind: str, cache: Any, index: int) -> None:
    """Raise UserError unless a cache holds the keys and values that attention reads, in their order."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    stored = [type(layer) for layer in getattr(cache, "layers", ())[index : index + 1]]  # none before the first token
    if not isinstance(cache, DynamicCache) or not set(stored) <= {DynamicLayer, DynamicSlidingWindowLayer}:
        given = " of ".join(cls.__name__ for cls in (type(cache), *stored))
        raise UserError(
            f"{kind} was given a {given}; anew takes transformers' DynamicCache of full or sliding attention, which "
            f"generate makes by itself: name no cache_implementation, or {WITHOUT}"
        )
