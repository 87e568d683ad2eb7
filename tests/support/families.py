"""Which types of transformers can be donors."""

from __future__ import annotations

from hybridize.architectures.refused import refusal
from tests.support.tiny import all_causal_types

ACCEPTED = [name for name in all_causal_types() if refusal(name) is None]
