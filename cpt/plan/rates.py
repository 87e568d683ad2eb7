"""Learning rates of roles, where the recipe names none: by how much learns. No torch.

Measured on SmolLM2-135M and Gemma 3 270M (benchmarks/RESULTS.md): the more of a model learns, the
lower is the best rate. A model that has hardly been trained wants more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridize.cpt.plan.model_tensors import Role
from hybridize.cpt.plan.policy import Policy
from hybridize.recipe.sections.cpt import CptSpec

# Share of the parameters that learn, at most -> highest rate of AdamW.
BY_SHARE = ((0.25, 3e-4), (1.0, 1e-4))
BRIDGE = 1e-3  # nothing else reads what a bridge gives: little is forgotten
EMBEDDINGS = 1 / 3  # of the rate of the rest: most rows are seen seldom


@dataclass(frozen=True)
class Rate:
    """The highest learning rate of a role, and why."""

    value: float
    reason: str


def rates_of(policy: Policy, spec: CptSpec) -> Mapping[Role, Rate]:
    """A rate for each role of which anything learns, in the model's order."""
    return {role: _rate(role, policy, spec) for role in dict.fromkeys(policy.roles.values())}


def _rate(role: Role, policy: Policy, spec: CptSpec) -> Rate:
    if role in spec.learning_rates:
        return Rate(spec.learning_rates[role], f"learning_rates: {role}")
    if spec.learning_rate is not None:
        return Rate(spec.learning_rate, "learning_rate")
    if role == "bridge":
        return Rate(BRIDGE, "default of bridges")
    share = policy.num_trained / (policy.num_trained + policy.num_frozen)
    limit, value = next(pair for pair in BY_SHARE if share <= pair[0])
    reason = f"default: {share:.0%} of the parameters learn ("
    reason += f"up to {limit:.0%})" if limit < 1 else "more than a quarter)"
    if role == "embeddings":
        return Rate(round(value * EMBEDDINGS, 10), f"{reason}, a third of it for embeddings")
    return Rate(value, reason)


def rate_lines(rates: Mapping[Role, Rate]) -> list[str]:
    """Roles with their rates and reasons, those that are alike on one line."""
    alike: dict[Rate, list[str]] = {}
    for role, rate in rates.items():
        alike.setdefault(rate, []).append(role)
    return [
        f"learning rate of {', '.join(roles)}: {rate.value:g} ({rate.reason})"
        for rate, roles in alike.items()
    ]
