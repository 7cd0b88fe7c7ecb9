"""An operation of one's own runs on the host, in the open; strict refuses it: python examples/custom_operation.py."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

import anew
from anew.frontend.placement import PlacementWarning


@torch.library.custom_op("examples::wave", mutates_args=())
def wave(x: Tensor) -> Tensor:
    """An activation function that no engine knows: x + sin(x)^2."""
    return x + x.sin().square()


@wave.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


wave.register_autograd(
    lambda ctx, gradient: gradient * (1 + (2 * ctx.saved_tensors[0]).sin()),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Layer(nn.Module):
    """Two matmuls with the operation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, [rows, 32] as its input."""
        return x + self.down(wave(self.up(x)))


def main() -> tuple[list[str], str]:
    """Take a training step with the operation on the host, then ask for strict; return the warnings and the error."""
    torch.manual_seed(0)
    x = torch.randn(8, 32)
    model = nn.Sequential(Layer(), Layer())
    reference = nn.Sequential(Layer(), Layer())
    reference.load_state_dict(model.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PlacementWarning)
        anew.compile(model, device="emulator")(x).square().mean().backward()
    said = [str(warning.message) for warning in caught if warning.category is PlacementWarning]
    print("Warned once for each graph:", *said, sep="\n  ")
    reference(x).square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        print(f"gradient of {name}: {error:.1e} from plain PyTorch's")
    refused = ""
    try:
        anew.compile(nn.Sequential(Layer(), Layer()), device="emulator", strict=True)(x)
    except Exception as error:  # Dynamo wraps what a backend raises
        refused = str(error).splitlines()[0]
    print(f"With strict=True: {refused}")
    return said, refused


if __name__ == "__main__":
    main()
