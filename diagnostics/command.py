"""The command `diagnose`: from what the user names to trace.json and report.html (torch side)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import hybridize
from hybridize.console import share_progress
from hybridize.diagnostics.measure.budget import BUDGET
from hybridize.diagnostics.measure.diagnosis import diagnose_models
from hybridize.diagnostics.report.html import report_html
from hybridize.diagnostics.subject.target import Options, find_target
from hybridize.diagnostics.subject.trace import Document
from hybridize.files.publishing import check_writable, publish
from hybridize.machine.device import use_device
from hybridize.machine.precision import AUTO
from hybridize.recipe.sections.fields import parse_size, parse_time

TRACE, REPORT = "trace.json", "report.html"
LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis, written down."""

    document: Document
    folder: Path
    seconds: float

    def summary(self) -> str:
        files = f"{self.folder / REPORT} (open it in a browser) and {self.folder / TRACE}"
        return f"written: {files}; {self.seconds:.0f} s"


def diagnose(
    target: str,
    *,
    text: Sequence[str] = (),
    probes: Sequence[str] = (),
    perturb: Sequence[str] = (),
    part: Sequence[str] = (),
    seeds: int | None = None,
    tokens: int | None = None,
    perturbed: int | None = None,
    budget: str | None = None,
    layer_by_layer: bool = False,
    device: str = "auto",
    compute_dtype: str = AUTO,
    memory: str | None = None,
    built: Path | None = None,
    out: Path | None = None,
    offline: bool = False,
) -> Diagnosis:
    """Diagnose a model, or a recipe's donors and hybrid; see the command's help.

    Raises:
        HybridizeError: what was asked for cannot be found, read or run.
        CheckFailed: a model gives what is no number.
    """
    started = time.monotonic()
    wanted = Options(text, probes, perturb, part, seeds, tokens, perturbed)
    found = find_target(target, wanted, built=built, offline=offline)
    folder = out or Path("out") / "diagnosis" / found.name
    check_writable(folder)
    where = use_device(device)
    with share_progress("diagnosing") as tell:
        traces = diagnose_models(
            found.recipe,
            found.subjects,
            device=where,
            streamed=layer_by_layer,
            memory=parse_size(memory, "--memory") if memory else None,
            compute=compute_dtype,
            budget=BUDGET if budget is None else parse_time(budget, "--budget"),
            offline=offline,
            progress=tell,
        )
    for subject in found.subjects:
        subject.checkpoint.refuse_changed()
    document = Document(
        hybridize=hybridize.__version__,
        versions={name: version(name) for name in LIBRARIES},
        models=traces,
    )
    write_files(document, folder)
    return Diagnosis(document, folder, time.monotonic() - started)


def write_files(document: Document, folder: Path) -> None:
    """Both files, each at once."""
    publish(folder / TRACE, document.model_dump_json(indent=1) + "\n")
    publish(folder / REPORT, report_html(document))
