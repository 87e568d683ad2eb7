"""The contract of every bridge kind: files, shapes, the runtime's module, determinism."""

from __future__ import annotations

import pytest
import torch

from hybridize.assembler.runtime import modeling_hybridize as runtime
from hybridize.assembler.stack import Bridge
from hybridize.errors import HybridizeError
from hybridize.plugins import load_plugin, plugin_names

KINDS = plugin_names("bridges")


def bridge(kind: str, **fields: object) -> Bridge:
    wide = 6 if not load_plugin("bridges", kind).NEEDS_EQUAL_WIDTHS else 4
    given = {"where": "3", "init": "random", "width_in": 4, "width_out": wide}
    return Bridge(kind=kind, **{"norm": True, "bias": True, "seed": 0, **given, **fields})  # type: ignore[arg-type]


def test_the_folder_is_the_list() -> None:
    assert KINDS == ["identity", "linear"]
    with pytest.raises(HybridizeError, match="did you mean 'linear'"):
        load_plugin("bridges", "linaer")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_those_of_the_runtimes_module(kind: str, norm: bool, bias: bool) -> None:
    planned = bridge(kind, norm=norm, bias=bias)
    module = runtime.BRIDGES[kind](
        {"kind": kind, "in": planned.width_in, "out": planned.width_out, "norm": norm, "bias": bias}
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == planned.shapes()
    initial = load_plugin("bridges", kind).initial(planned)
    assert {name: tuple(tensor.shape) for name, tensor in initial.items()} == shapes
    assert planned.num_parameters == sum(p.numel() for p in module.parameters())
    module.load_state_dict(initial)
    out = module(torch.randn(2, 3, planned.width_in))
    assert out.shape == (2, 3, planned.width_out)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_values_depend_on_seed_and_place_alone(kind: str) -> None:
    make = load_plugin("bridges", kind).initial
    torch.manual_seed(5)
    one = make(bridge(kind))
    torch.manual_seed(6)
    two = make(bridge(kind))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for other in (make(bridge(kind, seed=1)), make(bridge(kind, where="head"))):
        assert all(not torch.equal(one[name], other[name]) for name in one if name == "proj.weight")


@pytest.mark.parametrize("kind", KINDS)
def test_identity_at_equal_widths_changes_nothing(kind: str) -> None:
    planned = bridge(kind, init="identity", width_in=4, width_out=4, norm=False, bias=False)
    module = runtime.BRIDGES[kind]({"kind": kind, "in": 4, "out": 4, "norm": False, "bias": False})
    module.load_state_dict(load_plugin("bridges", kind).initial(planned))
    x = torch.randn(2, 3, 4)
    assert torch.equal(module(x), x)
