"""Hybrids in memory, over tensors that are mapped from the donors' files (torch side).

A donor alone is the hybrid of all its layers in order, bit for bit. So a hybrid and its donors
share one copy of every weight, and that copy is the page cache's: what does not fit is read again.
A model that is larger than memory keeps on disk what is not needed at the time (`Parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from hybridize.errors import HybridizeError
from hybridize.machine.precision import AUTO, compute_dtype
from hybridize.model.checkpoint import TORCH_NAMES, Checkpoint, open_checkpoint
from hybridize.model.donors import ALONE, Donor, load_donor, tensors_of, whole_configs
from hybridize.model.heads import without_head
from hybridize.runtime import HybridConfig, HybridForCausalLM
from hybridize.torch_model.layout import OutTensor, hybrid_layout
from hybridize.torch_model.reader import Tensors
from hybridize.torch_model.symbolic import Piece

EMBEDDING, LAYERS, HEAD = "model.embed_tokens.", "model.layers.", "lm_head."
TIED = "lm_head.weight"
FLOAT32 = 4  # bytes
BUILT = "built"  # what pieces of a built hybrid's own files call it

Read = Callable[[OutTensor], Tensor]


class Parts:
    """A model, and those of its parts that are read from disk while they are in use.

    Args:
        absent: what is not in memory, by name; without it, all is.
        read: reads it.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        absent: Mapping[str, OutTensor] | None = None,
        read: Read | None = None,
    ) -> None:
        self.model = model
        self._absent, self._read = absent or {}, read
        self._places = model.state_dict(keep_vars=True)

    @property
    def compute_dtype(self) -> str:
        """That the model computes in, whatever its files hold."""
        return str(self.model.dtype).removeprefix("torch.")

    def embedding(self) -> Any:
        """A context in which the embedding is in memory."""
        return self._here(EMBEDDING)

    def slot(self, index: int) -> Any:
        """A context in which a slot's layer is in memory."""
        return self._here(f"{LAYERS}{index}.")

    def head(self) -> Any:
        """A context in which the output head is in memory."""
        return self._here(EMBEDDING if self.model.config.tie_word_embeddings else HEAD)

    @contextmanager
    def _here(self, prefix: str) -> Iterator[None]:
        places = {n: self._places[n] for n in self._absent if n.startswith(prefix)}
        away = {name: place.data for name, place in places.items()}
        try:
            for name, place in places.items():
                assert self._read is not None
                place.data = self._read(self._absent[name]).to(place.dtype)
            yield
        finally:
            for name, place in places.items():
                place.data = away[name]


class Weights:
    """Tensors of donors on disk, each brought to the device once.

    Args:
        donors: by name.
        device: where models are to run; on the CPU nothing is copied that need not be widened.
        compute: dtype that models compute in, or `auto`, see `precision.compute_dtype`.
    """

    def __init__(
        self, donors: Mapping[str, Donor], device: str = "cpu", *, compute: str = AUTO
    ) -> None:
        self.donors, self.device = donors, device
        # Once for all models: what the first of them widens is no longer free.
        self._dtypes = {
            dtype: compute_dtype(dtype, device, asked=compute, widened=widened_bytes(donors))
            for dtype in TORCH_NAMES.values()
        }
        self._compute = compute
        self._tensors = Tensors({name: d.checkpoint for name, d in donors.items()}, device)

    def model(
        self, config: Mapping[str, Any], made: Mapping[str, Tensor] | None = None
    ) -> HybridForCausalLM:
        """The hybrid of a config, in evaluation mode, without gradients.

        Args:
            config: content of a hybrid's config.json.
            made: tensors that no donor has, by name.
        """
        dtype = self._dtypes[config["dtype"]]
        return _parts(config, self._layout(config), self._tensors, dtype=dtype, made=made).model

    def alone(self, name: str) -> HybridForCausalLM:
        """A donor alone: all its layers, in order."""
        return self.model(alone_config(self.donors[name]))

    def parts(self, name: str, *, streamed: bool) -> Parts:
        """A donor alone; `streamed`: its large parts are in memory only while they are in use."""
        config = alone_config(self.donors[name])
        stored = config["dtype"]
        # Layers that are read one by one are widened one by one.
        dtype = (
            compute_dtype(stored, self.device, asked=self._compute)
            if streamed
            else self._dtypes[stored]
        )
        return _parts(config, self._layout(config), self._tensors, dtype=dtype, streamed=streamed)

    def _layout(self, config: Mapping[str, Any]) -> list[OutTensor]:
        donors = [self.donors[name] for name in config["donors"]]
        shapes = {donor.name: tensors_of(donor) for donor in donors}
        return hybrid_layout(dict(config), shapes, whole_configs(donors))


@dataclass(frozen=True)
class Folder:
    """A model folder in memory: a hybrid, or any other as the hybrid of all its layers.

    Attributes:
        layout: of each tensor in memory, the pieces of those in the files that it is made of.
    """

    model: HybridForCausalLM
    layout: tuple[OutTensor, ...]


def load_folder(folder: Path) -> Folder:
    """A model folder, mapped into memory, nothing learning.

    The head is tied to the embedding where transformers ties it.

    Raises:
        HybridizeError: there is no model, it has no head, or the runtime cannot run it.
    """
    checkpoint = open_checkpoint(folder)
    if checkpoint.config.get("model_type") == HybridConfig.model_type:
        tied = checkpoint.config.get("tie_word_embeddings") is True
        layout = [out for out in _built_layout(checkpoint) if not (tied and out.name == TIED)]
        parts = _parts(checkpoint.config, layout, Tensors({BUILT: checkpoint}))
        return Folder(parts.model, tuple(layout))
    donor = load_donor(folder, name=folder.name, source=str(folder), place=str(folder))
    if not donor.has_head:
        raise HybridizeError.of([without_head(donor.name, str(folder))])
    # Not its own name: a folder may be called `train`, as a method of torch's modules is.
    donor = replace(donor, name=ALONE)
    config = alone_config(donor)
    layout = hybrid_layout(config, {ALONE: tensors_of(donor)}, whole_configs([donor]))
    parts = _parts(config, layout, Tensors({ALONE: donor.checkpoint}))
    return Folder(parts.model, tuple(layout))


def built_parts(
    checkpoint: Checkpoint, device: str, *, streamed: bool, compute: str = AUTO
) -> Parts:
    """A hybrid that hybridize built, from its own files."""
    tensors, config = Tensors({BUILT: checkpoint}, device), checkpoint.config
    widened = 0 if streamed else FLOAT32 * checkpoint.num_parameters
    dtype = compute_dtype(config["dtype"], device, asked=compute, widened=widened)
    return _parts(config, _built_layout(checkpoint), tensors, dtype=dtype, streamed=streamed)


def widened_bytes(donors: Mapping[str, Donor]) -> int:
    """Bytes of a float32 copy of all donors."""
    return sum(FLOAT32 * donor.checkpoint.num_parameters for donor in donors.values())


def _built_layout(checkpoint: Checkpoint) -> list[OutTensor]:
    return [
        OutTensor(t.name, t.dtype, t.shape, (Piece(BUILT, t.name, 0, t.numel),), keep_fp32=False)
        for t in checkpoint.tensors.values()
    ]


def alone_config(donor: Donor) -> dict[str, Any]:
    """config.json of the hybrid of all layers of one donor, in order.

    One without a head gets its embedding in that place, so that its states can be read; what it
    writes then means nothing.
    """
    return {
        "model_type": HybridConfig.model_type,
        "donors": {donor.name: donor.config},
        "slots": [{"donor": donor.name, "layer": i} for i in range(donor.depth)],
        "embeddings": donor.name,
        "head": donor.name,
        "tie_word_embeddings": donor.tied or not donor.has_head,
        "dtype": TORCH_NAMES[donor.anatomy.dtype],
    }


def _parts(
    config: Mapping[str, Any],
    layout: Sequence[OutTensor],
    tensors: Tensors,
    *,
    dtype: str | None = None,
    made: Mapping[str, Tensor] | None = None,
    streamed: bool = False,
) -> Parts:
    """The model; `dtype`: that it computes in, if not the one that its config names."""
    wanted = getattr(torch, dtype or config["dtype"])
    found = {out.name: out for out in layout if out.pieces or out.zero}
    large = (EMBEDDING, LAYERS, HEAD) if streamed else ()
    absent = {name: out for name, out in found.items() if name.startswith(large)}
    state = {
        name: tensors.absent(out, wanted) if name in absent else tensors.mapped(out, wanted)
        for name, out in found.items()
    }
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    load: Any = HybridForCausalLM.from_pretrained  # its types know no state dict alone
    model: HybridForCausalLM = load(
        None,
        config=HybridConfig.from_dict(dict(config)),
        state_dict={**state, **(made or {})},
        dtype=wanted,
        **({} if tensors.device == "cpu" else {"device_map": {"": tensors.device}}),
    )
    model.requires_grad_(False)
    model.train(False)
    return Parts(model, absent, tensors.read)
