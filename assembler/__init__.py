"""Recipe to model: plan, assemble, verify. Here stands what other stages use of it."""

if __name__ != "hybridize.assembler":
    raise ImportError("this folder is a part of the package: import hybridize.assembler")

from typing import TYPE_CHECKING

from hybridize.lazily import lazily

if TYPE_CHECKING:
    from hybridize.assembler.assembly.fit_report import Fit as Fit
    from hybridize.assembler.assembly.fit_report import beside_controls as beside_controls
    from hybridize.assembler.assembly.fit_report import best_donor as best_donor
    from hybridize.assembler.fit.controls import Losses as Losses
    from hybridize.assembler.fit.fitting import fit_and_measure as fit_and_measure
    from hybridize.assembler.fit.fitting import reader_of as reader_of
    from hybridize.assembler.fit.fitting import tokenizer_of as tokenizer_of
    from hybridize.assembler.fit.hybrid_with_donors import HybridWithDonors as HybridWithDonors
    from hybridize.assembler.plan.outputs import hybrid_config as hybrid_config
    from hybridize.assembler.plan.planning import HELD_OUT as HELD_OUT
    from hybridize.assembler.plan.planning import Plan as Plan
    from hybridize.assembler.plan.planning import make_plan as make_plan
    from hybridize.assembler.plan.resolving import resolve_donor as resolve_donor
    from hybridize.assembler.plan.stack import GATE as GATE
    from hybridize.assembler.plan.stack import TOKENS_PER_INPUT as TOKENS_PER_INPUT

MODULES = {
    "Fit": "assembler.assembly.fit_report",
    "GATE": "assembler.plan.stack",
    "HELD_OUT": "assembler.plan.planning",
    "HybridWithDonors": "assembler.fit.hybrid_with_donors",
    "Losses": "assembler.fit.controls",
    "Plan": "assembler.plan.planning",
    "TOKENS_PER_INPUT": "assembler.plan.stack",
    "beside_controls": "assembler.assembly.fit_report",
    "best_donor": "assembler.assembly.fit_report",
    "fit_and_measure": "assembler.fit.fitting",
    "hybrid_config": "assembler.plan.outputs",
    "make_plan": "assembler.plan.planning",
    "reader_of": "assembler.fit.fitting",
    "resolve_donor": "assembler.plan.resolving",
    "tokenizer_of": "assembler.fit.fitting",
}

__getattr__ = lazily(__name__, MODULES)
