"""The command line: a file for each command, which parses, calls and prints."""

from hybridize.cli.build import build
from hybridize.cli.cpt import cpt
from hybridize.cli.demo import demo
from hybridize.cli.diagnose import diagnose
from hybridize.cli.group import main
from hybridize.cli.inspect import inspect
from hybridize.cli.plan import plan
from hybridize.cli.recommend import recommend
from hybridize.cli.schema import schema
from hybridize.cli.verify import verify

__all__ = [
    "build",
    "cpt",
    "demo",
    "diagnose",
    "inspect",
    "main",
    "plan",
    "recommend",
    "schema",
    "verify",
]
