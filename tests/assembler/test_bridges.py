"""The contract of every bridge kind: files, shapes, the runtime's module, maps, determinism."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridize.assembler.fit.bridge_fit import closest
from hybridize.assembler.plan.bridge_kind import BridgeKind, bridge_kind
from hybridize.assembler.plan.stack import Bridge
from hybridize.errors import HybridizeError
from hybridize.model.states import State
from hybridize.plugins import plugin_names
from hybridize.runtime import bridges as runtime
from hybridize.torch_model.regression import Affine, Sums, ridge
from tests.support.arrows import ROOT, modules

KINDS = plugin_names("bridges")
WIDTHS = [(4, 4), (4, 6), (6, 4)]
CASES = [
    (kind, widths)
    for kind in KINDS
    for widths in WIDTHS
    if widths[0] == widths[1] or not bridge_kind(kind).NEEDS_EQUAL_WIDTHS
]


def bridge(kind: str, widths: tuple[int, int] = (4, 4), **fields: Any) -> Bridge:
    given: dict[str, Any] = {"where": "3", "init": "random", "norm": True, "bias": True, "seed": 0}
    ends = {"reads": ("a", State(3)), "writes": ("b", State(3))}
    width_in, width_out = widths
    return Bridge(
        kind=kind, width_in=width_in, width_out=width_out, **{"rank": 2, **ends, **given, **fields}
    )


def module_of(planned: Bridge) -> Any:
    """The runtime's module, as a hybrid's config has it made."""
    return runtime.BRIDGES[planned.kind](planned.options())


def loaded(planned: Bridge, values: dict[str, Tensor]) -> Any:
    module = module_of(planned)
    module.load_state_dict(values)
    return module


def states(widths: tuple[int, int], tokens: int = 400) -> tuple[Tensor, Tensor]:
    """Two streams with means, unequal directions, and noise; float64."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(tokens, widths[0]) * torch.logspace(-1, 1, widths[0], dtype=torch.float64) + 3
    return x, x @ normal(*widths) + normal(tokens, widths[1]) - 5


def fitted(planned: Bridge) -> tuple[Affine, Tensor]:
    """A map that no kind but the linear ones can have, and the covariance of its inputs."""
    x, y = states((planned.width_in, planned.width_out))
    sums = Sums(planned.width_in, planned.width_out)
    sums.add(x, y)
    (affine,) = ridge(sums, bias=planned.bias, lambdas=[1e-10])
    return affine, sums.covariances(bias=planned.bias)[0]


def test_the_folder_is_the_list() -> None:
    assert KINDS == ["block", "identity", "linear", "lowrank"]
    assert set(runtime.BRIDGES) == set(KINDS)
    with pytest.raises(HybridizeError, match="did you mean 'linear'"):
        bridge_kind("linaer")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_fits_the_protocol(kind: str) -> None:
    """Members and names of arguments: whoever writes a kind reads `BridgeKind` alone."""
    module = bridge_kind(kind)
    assert all(isinstance(getattr(module, flag), bool) for flag in BridgeKind.__annotations__)
    for name, method in inspect.getmembers(BridgeKind, inspect.isfunction):
        if name.startswith("_") or (name == "obstacle" and not module.LAYER):
            continue
        expected = list(inspect.signature(method).parameters)[1:]
        assert list(inspect.signature(getattr(module, name)).parameters) == expected


@pytest.mark.parametrize("kind", ["lowrank", "block"])
def test_no_other_module_names_a_kind(kind: str) -> None:
    """`linear` and `identity` name other things, too: a perturbation, a way to begin."""
    named = {
        str(module)
        for module in modules()
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
        if isinstance(node, ast.Constant) and node.value == kind
    }
    assert named == {"hybridize/runtime/bridges.py"}


@pytest.mark.parametrize(("kind", "widths"), CASES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("init", ["random", "identity", "auto"])
def test_parameters_are_those_of_the_runtimes_module(
    kind: str, widths: tuple[int, int], norm: bool, bias: bool, init: str
) -> None:
    planned = bridge(kind, widths, norm=norm, bias=bias, init=init)
    initial = bridge_kind(kind).initial(planned)
    module = loaded(planned, initial)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == planned.shapes()
    assert list(initial) == list(shapes)
    assert planned.num_parameters == sum(p.numel() for p in module.parameters())
    out = module(torch.randn(2, 3, widths[0]))
    assert out.shape == (2, 3, widths[1])
    assert out.isfinite().all()


@pytest.mark.parametrize(("kind", "widths"), CASES)
def test_initial_values_depend_on_seed_and_place_alone(kind: str, widths: tuple[int, int]) -> None:
    make = bridge_kind(kind).initial
    torch.manual_seed(5)
    one = make(bridge(kind, widths))
    torch.manual_seed(6)
    two = make(bridge(kind, widths))
    assert all(torch.equal(one[name], two[name]) for name in one)
    drawn = {"proj.weight", "down.weight"} & one.keys()
    assert bool(drawn) == (kind != "identity")
    for other in (make(bridge(kind, widths, seed=1)), make(bridge(kind, widths, where="head"))):
        assert not any(torch.equal(one[name], other[name]) for name in drawn)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_identity_at_equal_widths_changes_nothing(kind: str, bias: bool) -> None:
    planned = bridge(kind, init="identity", norm=False, bias=bias)
    module = loaded(planned, bridge_kind(kind).initial(planned))
    x = torch.randn(2, 3, 4)
    assert torch.equal(module(x), x)


def test_low_rank_begins_as_the_identity_at_equal_widths() -> None:
    """Random or not: what it adds to the stream is zero, and yet every matrix gets a gradient."""
    planned = bridge("lowrank", norm=False)
    module = loaded(planned, bridge_kind("lowrank").initial(planned))
    x = torch.randn(2, 3, 4)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.up.weight.grad.abs().sum() > 0
    assert module.down.weight.norm() > 0


@pytest.mark.parametrize("kind", ["block", "linear"])
@pytest.mark.parametrize("widths", [(4, 6), (6, 4)])
def test_between_widths_identity_keeps_the_first_dimensions(
    kind: str, widths: tuple[int, int]
) -> None:
    planned = bridge(kind, widths, init="identity", norm=False)
    module = loaded(planned, bridge_kind(kind).initial(planned))
    x = torch.randn(2, 3, widths[0])
    assert torch.equal(module(x)[..., :4], x[..., :4])
    assert not module(x)[..., 4:].any()


@pytest.mark.parametrize(("kind", "widths"), CASES)
def test_a_norm_stands_before_the_map(kind: str, widths: tuple[int, int]) -> None:
    planned = bridge(kind, widths)
    plain = bridge(kind, widths, norm=False)
    affine, moment = fitted(plain)
    plugin = bridge_kind(kind)
    nearest = plugin.closest(plain, affine, moment)
    x = torch.randn(5, widths[0])
    normed = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() if plain.shapes() else x
    out = loaded(planned, plugin.parameters(planned, nearest))(x)
    torch.testing.assert_close(out, nearest(normed))


@pytest.mark.parametrize(("kind", "widths"), CASES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_module_computes_the_map_that_was_fitted(
    kind: str, widths: tuple[int, int], bias: bool
) -> None:
    """What held-out text judges is what the model will do."""
    planned = bridge(kind, widths, norm=False, bias=bias)
    plugin = bridge_kind(kind)
    affine, moment = fitted(planned)
    nearest = plugin.closest(planned, affine, moment)
    x, _ = states(widths)
    module = loaded(planned, plugin.parameters(planned, nearest))
    torch.testing.assert_close(module(x.float()), nearest(x).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "widths"), CASES)
def test_the_closest_of_the_closest_is_itself(kind: str, widths: tuple[int, int]) -> None:
    planned = bridge(kind, widths)
    plugin = bridge_kind(kind)
    affine, moment = fitted(planned)
    once = plugin.closest(planned, affine, moment)
    twice = plugin.closest(planned, once, moment)
    torch.testing.assert_close(twice.weight, once.weight)
    torch.testing.assert_close(twice.bias, once.bias)


@pytest.mark.parametrize("kind", ["block", "linear"])
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_linear_bridge_is_whatever_map_was_fitted(kind: str, widths: tuple[int, int]) -> None:
    planned = bridge(kind, widths)
    affine, moment = fitted(planned)
    assert bridge_kind(kind).closest(planned, affine, moment) is affine


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_block_bridge_maps_as_a_linear_one(widths: tuple[int, int]) -> None:
    """The layer that it brings stands in a slot of its own."""
    block, linear = (bridge_kind(kind) for kind in ("block", "linear"))
    assert (block.LAYER, linear.LAYER) == (True, False)
    one = block.initial(bridge("block", widths))
    other = linear.initial(bridge("linear", widths))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert one.keys() == other.keys()


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_low_rank_is_the_best_of_its_rank(widths: tuple[int, int], bias: bool, rank: int) -> None:
    """Reduced-rank regression on the data themselves, by the singular vectors of the fitted values.

    At equal widths it regresses what is to be added to the stream.
    """
    planned = bridge("lowrank", widths, norm=False, bias=bias, rank=rank)
    x, y = states(widths)
    sums = Sums(*widths)
    sums.add(x, y)
    (affine,) = ridge(sums, bias=bias, lambdas=[0.0])
    found = closest(planned, affine, sums)

    skip = x if widths[0] == widths[1] else torch.zeros_like(y)
    a, b = (x - x.mean(0), (y - skip) - (y - skip).mean(0)) if bias else (x, y - skip)
    full = torch.linalg.lstsq(a, b).solution
    _, _, vh = torch.linalg.svd(a @ full, full_matrices=False)
    reduced = full @ vh[:rank].T @ vh[:rank]
    best = skip + a @ reduced + ((y - skip).mean(0) if bias else 0)

    torch.testing.assert_close(found(x), best, rtol=1e-7, atol=1e-7)
    change = found.weight - (torch.eye(widths[0]) if widths[0] == widths[1] else 0)
    assert torch.linalg.matrix_rank(change, rtol=1e-9) == rank
    module = loaded(planned, bridge_kind("lowrank").parameters(planned, found))
    torch.testing.assert_close(module(x.float()), best.float(), rtol=1e-4, atol=1e-4)


def test_a_lowrank_bridge_that_is_the_identity_can_still_learn() -> None:
    kind = bridge_kind("lowrank")
    planned = replace(bridge("lowrank"), width_in=6, width_out=6)
    eye = Affine(torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64))
    values = kind.parameters(planned, eye)
    assert not values["up.weight"].any()
    assert values["down.weight"].norm(dim=1).min() > 0.5
