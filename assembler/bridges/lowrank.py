"""Bridge `lowrank`: an affine map of low rank; at equal widths, what it adds to the stream.

At equal widths y = x + U V x + b: a correction of the identity, for donors that nearly share their
basis. Between different widths y = U V x + b: whatever passes, passes through `rank` dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybridize.assembler.bridges import linear

if TYPE_CHECKING:
    from torch import Tensor

    from hybridize.assembler.plan.stack import Bridge
    from hybridize.torch_model.regression import Affine

NEEDS_EQUAL_WIDTHS = False
AROUND_MODULES = True
LAYER = False


def shapes(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    """Parameters by name: V is (rank, width in), U is (width out, rank)."""
    assert bridge.rank is not None
    found: dict[str, tuple[int, ...]] = {}
    if bridge.norm:
        found["norm.weight"] = (bridge.width_in,)
    found["down.weight"] = (bridge.rank, bridge.width_in)
    found["up.weight"] = (bridge.width_out, bridge.rank)
    if bridge.bias:
        found["up.bias"] = (bridge.width_out,)
    return found


def options(bridge: Bridge) -> dict[str, Any]:
    """As of `linear`, and the rank."""
    return linear.options(bridge) | {"rank": bridge.rank}


def initial(bridge: Bridge) -> dict[str, Tensor]:
    """Parameters that no text has a part in, in fp32.

    At equal widths the bridge begins as the identity: V is random with orthonormal rows, U zero.
    Elsewhere both are random and orthonormal, or for `identity` rectangular identities.
    """
    import torch

    values = {name: torch.zeros(shape) for name, shape in shapes(bridge).items()}
    if bridge.norm:
        values["norm.weight"] += 1
    generator = linear.generator(bridge)
    if bridge.width_in == bridge.width_out:
        torch.nn.init.orthogonal_(values["down.weight"], generator=generator)
        return values
    for part in (values["down.weight"], values["up.weight"]):
        if bridge.init == "random":
            torch.nn.init.orthogonal_(part, generator=generator)
        else:
            torch.nn.init.eye_(part)
    return values


def closest(bridge: Bridge, affine: Affine, moment: Tensor) -> Affine:
    """The map of this kind that is closest to an affine one, over inputs with this covariance.

    Args:
        moment: covariance of the inputs, (width in, width in).

    Source: Izenman, "Reduced-rank regression" (1975): the map projected onto the directions in
    which its output varies most.
    """
    import torch

    assert bridge.rank is not None
    skip = _skip(bridge, affine)
    change = affine.weight - skip
    _, vectors = torch.linalg.eigh(change @ moment @ change.T)
    kept = vectors[:, -bridge.rank :]
    return type(affine)(skip + kept @ (kept.T @ change), affine.bias)


def parameters(bridge: Bridge, affine: Affine) -> dict[str, Tensor]:
    """Parameters that make the bridge compute an affine map of its rank, in fp32."""
    import torch

    u, s, vh = torch.linalg.svd(affine.weight - _skip(bridge, affine), full_matrices=False)
    root = s[: bridge.rank].sqrt()  # both factors of one length: neither learns faster
    values = initial(bridge)
    values["up.weight"] = (u[:, : bridge.rank] * root).float()
    # Of a direction that is not used one factor stays: two zeros would never learn.
    alive = torch.where(root > 0, root, 1.0)
    values["down.weight"] = (alive[:, None] * vh[: bridge.rank]).float()
    if bridge.bias:
        values["up.bias"] = affine.bias.float()
    return values


def _skip(bridge: Bridge, affine: Affine) -> Tensor:
    import torch

    if bridge.width_in != bridge.width_out:
        return torch.zeros_like(affine.weight)
    return torch.eye(bridge.width_in).to(affine.weight)
