"""Assembles hybrid language models from pretrained modules.

What the command line does, a program does with these functions; torch is imported when one of them
needs it:

    recipe = hybridize.load_recipe("recipes/demo/swap.yaml")
    plan = hybridize.plan(recipe)                      # reads configs and headers only
    built = hybridize.build(plan, "out/swap")          # copies, fits bridges, checks, publishes
    assert hybridize.verify(built.folder).ok
    trained = hybridize.train(built.folder)            # as the recipe's section `cpt` says
"""

from typing import TYPE_CHECKING

from hybridize.lazily import lazily
from hybridize.registration import install

if TYPE_CHECKING:
    from hybridize.assembler.assembly.assemble import Built as Built
    from hybridize.assembler.assembly.assemble import build as build
    from hybridize.assembler.assembly.verify import Verification as Verification
    from hybridize.assembler.assembly.verify import verify as verify
    from hybridize.assembler.plan.planning import Plan as Plan
    from hybridize.assembler.plan.planning import make_plan as plan  # noqa: F401
    from hybridize.cpt.command import Forecasts as Forecasts
    from hybridize.cpt.command import forecast as forecast
    from hybridize.cpt.command import train as train
    from hybridize.cpt.train.training import Trained as Trained
    from hybridize.diagnostics.command import Diagnosis as Diagnosis
    from hybridize.diagnostics.command import diagnose as diagnose
    from hybridize.diagnostics.recommendation.command import recommend as recommend
    from hybridize.diagnostics.recommendation.trial.recommending import (
        Recommendation as Recommendation,
    )
    from hybridize.errors import CheckFailed as CheckFailed
    from hybridize.errors import HybridizeError as HybridizeError
    from hybridize.recipe.file import RecipeFile as RecipeFile
    from hybridize.recipe.file import load_recipe as load_recipe

__version__ = "0.1.0"

MODULES = {
    "Built": "assembler.assembly.assemble",
    "CheckFailed": "errors",
    "Diagnosis": "diagnostics.command",
    "Forecasts": "cpt.command",
    "HybridizeError": "errors",
    "Plan": "assembler.plan.planning",
    "RecipeFile": "recipe.file",
    "Recommendation": "diagnostics.recommendation.trial.recommending",
    "Trained": "cpt.train.training",
    "Verification": "assembler.assembly.verify",
    "build": "assembler.assembly.assemble",
    "diagnose": "diagnostics.command",
    "forecast": "cpt.command",
    "load_recipe": "recipe.file",
    "plan": "assembler.plan.planning:make_plan",
    "recommend": "diagnostics.recommendation.command",
    "train": "cpt.command",
    "verify": "assembler.assembly.verify",
}

__getattr__ = lazily(__name__, MODULES)

install()
