"""The modules that stand between the donors' layers, by the kind of bridge.

Part of the code of every hybrid: see `modeling_hybridize`.
"""

# transformers has few types, and torch says of a module's attributes only that they are modules or
# tensors.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return, union-attr, operator"

from torch import Tensor, nn

from .donor_parts import Arguments


class LinearBridge(nn.Module):
    """An affine map from one donor's stream to the next one's, after an optional RMS norm."""

    def __init__(self, options: Arguments) -> None:
        super().__init__()
        width, eps = options["in"], options.get("eps", 1e-6)
        self.norm = nn.RMSNorm(width, eps=eps) if options.get("norm") else None
        self.proj = nn.Linear(width, options["out"], bias=bool(options.get("bias")))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.proj(hidden_states if self.norm is None else self.norm(hidden_states))


class IdentityBridge(nn.Module):
    """Nothing: the next donor reads the stream as it is."""

    def __init__(self, options: Arguments) -> None:
        super().__init__()
        if options["in"] != options["out"]:
            raise ValueError(f"an identity bridge from width {options['in']} to {options['out']}")

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class LowRankBridge(nn.Module):
    """An affine map of low rank; at equal widths it is added to the stream."""

    def __init__(self, options: Arguments) -> None:
        super().__init__()
        width, rank, eps = options["in"], options["rank"], options.get("eps", 1e-6)
        self.norm = nn.RMSNorm(width, eps=eps) if options.get("norm") else None
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, options["out"], bias=bool(options.get("bias")))
        self.adds = width == options["out"]

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = hidden_states if self.norm is None else self.norm(hidden_states)
        change = self.up(self.down(hidden))
        return hidden + change if self.adds else change


# A bridge of kind `block` is the linear map; the layer behind it stands in a slot of its own.
BRIDGES = {
    "linear": LinearBridge,
    "block": LinearBridge,
    "lowrank": LowRankBridge,
    "identity": IdentityBridge,
}
