"""How long a build will take on this machine, from shapes and a remembered speed. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hybridize.assembler.plan.planning import Plan
from hybridize.assembler.plan.stack import HEAD, Bridge
from hybridize.machine.precision import compute_dtype
from hybridize.machine.speed import Speed, has_gpu, known_speed
from hybridize.model.checkpoint import TORCH_NAMES
from hybridize.model.donors import Donor
from hybridize.model.states import State

# Of a ridge map in float64, as multiplications in the layers' dtype that take as long: sums over
# tokens; decomposition and lambdas, over cubes of the width.
FIT_TOKENS, FIT_CUBES = 6, 80


@dataclass(frozen=True)
class Seconds:
    """Of the parts of a build.

    Attributes:
        checking: a second process that starts, loads the result and runs it.
        fitting: bridges on calibration text; `measuring`: losses beside the controls.
    """

    copying: float
    checking: float
    fitting: float
    measuring: float

    @property
    def total(self) -> float:
        return self.copying + self.checking + self.fitting + self.measuring


def speed_of(plan: Plan) -> Speed | None:
    """What is remembered of this machine, in the dtype that it would compute in."""
    device, dtype = machine_of(plan)
    return known_speed(device, dtype)


def machine_of(plan: Plan) -> tuple[str, str]:
    """Device and dtype that fits of a plan probably run in."""
    stored = TORCH_NAMES[plan.main_dtype]
    if has_gpu():
        return "cuda", stored
    widened = sum(4 * donor.checkpoint.num_parameters for donor in plan.donors.values())
    return "cpu", compute_dtype(stored, "cpu", widened=widened)


def build_seconds(plan: Plan, speed: Speed, nbytes: int) -> Seconds:
    """Seconds of a build; `nbytes`: of its weights."""
    work = _Work(plan, speed)
    calibrated = plan.calibration is not None
    return Seconds(
        copying=nbytes / speed.copying,
        checking=speed.starting + 2 * nbytes / speed.copying,
        fitting=sum(work.fit(bridge) for bridge in plan.fitted) if calibrated else 0.0,
        measuring=work.measure() if calibrated else 0.0,
    )


class _Work:
    """Seconds of passes of text through a hybrid and its donors."""

    def __init__(self, plan: Plan, speed: Speed) -> None:
        self.plan, self.speed = plan, speed
        self.tokens = plan.calibration_tokens if plan.calibration else 0

    def fit(self, bridge: Bridge) -> float:
        """Both sides of a bridge on all text, sums, and the maps; and those of its null control."""
        below = len(self.plan.slots) if bridge.where == HEAD else int(bridge.where.split(".")[0])
        goals = [bridge.writes, *self._null_goal(bridge)]
        deepest: dict[str, int] = {}
        for donor, state in goals:
            deepest[donor] = max(deepest.get(donor, 0), state.slot)
        passes = self._slots(below)
        passes += sum(self._layers(self.plan.donors[d], depth) for d, depth in deepest.items())
        width, out = bridge.width_in, bridge.width_out
        sums = FIT_TOKENS * self.tokens * width * (width + out) / 2
        cubes = FIT_CUBES * width**2 * max(width, out)
        maps = self.speed.seconds(2 * len(goals) * (sums + cubes), width)
        return self.tokens * passes + maps

    def _null_goal(self, bridge: Bridge) -> list[tuple[str, State]]:
        """What a map in the place of the span behind a bridge is fitted to, if one is."""
        plan, at = self.plan, bridge.at
        if not plan.measured_tokens or at is None or at.module is not None:
            return []
        above = (b for b in plan.bridges.values() if b.at and not b.at.module)
        end = (plan.head, State(plan.donors[plan.head].depth))
        return [next((b.writes for b in above if b.at and b.at.slot > at.slot), end)]

    def measure(self) -> float:
        """The hybrid and its null controls, and each donor alone, on what losses are taken of."""
        plan = self.plan
        whole = self._slots(len(plan.slots)) + self._head(plan.donors[plan.head])
        alone = (self._layers(d, d.depth) + self._head(d) for d in plan.donors.values())
        return plan.measured_tokens * (whole * (1 + len(plan.fitted)) + sum(alone))

    def _slots(self, count: int) -> float:
        """Of a token through the lowest slots of the hybrid."""
        plan = self.plan
        return sum(
            self._matrices(
                (t.numel for t in plan.slot_tensors(slot)), plan.donors[slot.donor].anatomy.width
            )
            for slot in plan.slots[:count]
        )

    def _layers(self, donor: Donor, count: int) -> float:
        """Of a token through the lowest layers of a donor alone."""
        numbers = (layer.num_parameters for layer in donor.anatomy.layers[:count])
        return self._matrices(numbers, donor.anatomy.width)

    def _matrices(self, numbers: Iterator[int], width: int) -> float:
        return self.speed.seconds(2 * sum(numbers), width)

    def _head(self, donor: Donor) -> float:
        return self.speed.head_seconds(2 * donor.anatomy.vocabulary * donor.anatomy.width)
