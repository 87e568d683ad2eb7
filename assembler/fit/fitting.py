"""Fit the bridges of a hybrid on text, then measure it beside its controls (torch side)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from hybridize.assembler.fit.bridge_fit import Fitted, fit_bridges
from hybridize.assembler.fit.controls import Losses, measure
from hybridize.assembler.fit.hybrid_with_donors import HybridWithDonors
from hybridize.assembler.fit.pace import Told, Work
from hybridize.assembler.plan.stack import GATE, Bridge
from hybridize.errors import HybridizeError
from hybridize.model.donors import Donor
from hybridize.torch_model.loading import Weights
from hybridize.torch_model.stream import Stream
from hybridize.torch_model.windows import AUTO, DomainText, Reader, Windows, cut


def run(
    weights: Weights,
    config: Mapping[str, Any],
    bridges: Sequence[Bridge],
    *,
    tokenizers: Mapping[str, Tokenizer],
    tokenizer: Tokenizer,
    text: Mapping[str, Any],
    parameters: Path,
    progress: Told,
) -> dict[str, Any]:
    """Fit what is to be fitted, write the parameters, measure.

    Args:
        config: content of the hybrid's config.json.
        bridges: from below upwards.
        tokenizers: that each donor reads with; `tokenizer`: the hybrid's.
        text: `file` of documents, its `domains`, and `length`, `held_out`, `seed`, `stream`,
            `measure`.
        parameters: safetensors file to write: `PLACE/NAME` in fp32 for each bridge that is fitted.
        progress: see `pace.Told`.

    Returns:
        `compute_dtype`; `start_tokens` before text; `bridges`: how well each was fitted;
        `losses`: see `measure`; `domains`: what was read.
    """
    device = weights.device
    readers = {name: reader_of(weights.donors[name], t, device) for name, t in tokenizers.items()}
    reader = reader_of(weights.donors[config["embeddings"]], tokenizer, device)
    windows = cut(
        Path(text["file"]),
        [DomainText(**domain) for domain in text["domains"]],
        reader,
        length=text["length"],
        held_out=text["held_out"],
        seed=text["seed"],
    )
    models = HybridWithDonors(weights, config, bridges, reader=reader, readers=readers)
    fitted, result = fit_and_measure(
        models, windows, stream=text["stream"], measured=text["measure"], progress=progress
    )
    made = {
        f"{where}/{name}": value.contiguous().cpu()
        for where, values in fitted.parameters.items()
        for name, value in values.items()
    }
    parameters.write_bytes(save(made))  # of a full disk safetensors' own writer says no number
    return result


def fit_and_measure(
    models: HybridWithDonors,
    windows: Sequence[Windows],
    *,
    stream: str,
    progress: Told,
    measured: bool | int = True,
    donors: Mapping[str, Losses] | None = None,
) -> tuple[Fitted, dict[str, Any]]:
    """Fit the bridges of a hybrid in memory, which then has them, and measure it.

    Args:
        measured: whether losses are measured; a number: on so many held-out tokens, about.
        donors: losses of the donors alone on this text, if they are known.

    Returns:
        The parameters; and the result as `run` gives it.
    """
    _check_layers(models, windows)
    judged = _judged(windows, measured)
    alone = 0 if donors is not None else sum(map(models.has_head, models.donors))
    work = Work(models, windows, judged, alone=alone, stream=stream, tell=progress)
    work.start()
    fitted = fit_bridges(models, windows, stream=stream, progress=work.passed, nulls=bool(judged))
    losses = (
        _rounded(measure(models, windows, judged, fitted.nulls, work, donors=donors))
        if judged
        else None
    )
    places = {bridge.where: bridge.in_words() for bridge in models.bridges}
    fits = [
        {"place": places[fit.where], **asdict(fit), "weak": fit.weak}
        for fit in fitted.fits.values()
    ]
    return fitted, {
        "compute_dtype": str(models.hybrid.dtype).removeprefix("torch."),
        "start_tokens": {
            "hybrid": models.reader.start_words,
            "donors": {name: reader.start_words for name, reader in models.readers.items()},
        },
        "bridges": _rounded(fits),
        "gate": GATE,
        "losses": losses,
        "domains": [
            {
                "name": part.domain.name,
                "tokens": part.domain.tokens,
                "held_out_bytes": part.held_out_bytes,
            }
            for part in windows
        ],
    }


def _rounded(value: Any) -> Any:
    """Six digits: the rest is rounding, and follows from the number of threads."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Tokenizer:
    """Where a tokenizer lies, and what stands before text that is read with it."""

    folder: Path
    start_token: str = AUTO


def tokenizer_of(donor: Donor) -> Tokenizer:
    """A donor's own."""
    return Tokenizer(donor.folder, donor.start_token)


def reader_of(donor: Donor, tokenizer: Tokenizer, device: str = "cpu") -> Reader:
    """A donor with a tokenizer, its own or another's."""
    return Reader(
        donor.name,
        tokenizer.folder,
        rows=donor.anatomy.vocabulary,
        longest=donor.positions,
        device=device,
        start_token=tokenizer.start_token,
    )


def _judged(windows: Sequence[Windows], measured: bool | int) -> list[Windows]:
    """The text that losses are measured on, of every domain; none where they are not."""
    if measured is True or not measured:
        return list(windows) if measured else []
    whole = sum(part.domain.tokens for part in windows)
    return [part.judged_by(round(measured * part.domain.tokens / whole)) for part in windows]


@torch.no_grad()
def _check_layers(models: HybridWithDonors, windows: Sequence[Windows]) -> None:
    """A bridging layer must begin as nothing, in every architecture."""
    made = [i for i, slot in enumerate(models.hybrid.config.slots) if slot.get("made")]
    if not made:
        return
    batch = models.reader.encode(windows[0].fit[:1])
    stream = Stream(models.hybrid, batch.tokens, batch.mask)
    for index in made:
        hidden = stream.cross(index, stream.run(stream.first, 0, index))
        if not torch.equal(stream.run_slot(index, hidden), hidden):
            donor = models.hybrid.config.slots[index]["donor"]
            raise HybridizeError(
                f"a layer of donor '{donor}' changes the stream even with its output projections "
                "at zero: it cannot be a bridging layer",
                fix="use kind: linear",
            )
