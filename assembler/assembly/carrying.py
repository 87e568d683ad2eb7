"""Tokenizer and generation files of a result: copied from a donor, and in line with its config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.assembler.plan.planning import Plan
from hybridize.assembler.worker.worker import Worker
from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import encode_floats, read_json
from hybridize.model.donors import Donor
from hybridize.model.special_tokens import EOS, GENERATION, KEYS, agreed, generation_of
from hybridize.model.tokenizer_files import CONFIG, tokenizer_code
from hybridize.model.vocabulary import refuse_head, refuse_tokenizer


@dataclass(frozen=True)
class Carried:
    """What became of the tokenizer.

    Attributes:
        ids: fingerprint of what it gives, the donor's and the result's; None if it is not known.
        check: in words.
    """

    ids: str | None
    check: str


def compare_tokens(plan: Plan, worker: Worker) -> list[str]:
    """Compare what the tokenizers do where the plan could not compare their files.

    Returns:
        What was found, in words.

    Raises:
        HybridizeError: the same numbers mean other tokens.
    """
    return [_compare(plan, donor, worker) for donor in plan.uncompared]


def _compare(plan: Plan, donor: Donor, worker: Worker) -> str:
    embeddings = plan.donors[plan.embeddings]
    answer = worker.submit(
        "compare_tokenizers", one=str(embeddings.folder), other=str(donor.folder)
    ).result()
    pair = f"tokens of '{embeddings.name}' and '{donor.name}'"
    if answer["reason"]:
        return f"{pair} are not compared: {answer['reason']}"
    share, findings = answer["share"], []
    if donor.name == plan.head:
        findings += refuse_head(plan.recipe, embeddings, donor, share=share)
    if plan.tokenizer and donor.name == plan.tokenizer.name:
        findings += refuse_tokenizer(
            plan.recipe, embeddings, donor, share=share, highest=answer["highest"]
        )
    if findings:
        raise HybridizeError.of(findings)
    if share is None:
        return f"{pair} are not compared: a vocabulary is empty"
    ids = "the same ids" if answer["same"] else "other ids"
    return f"{pair}: {share:.0%} of their numbers mean the same, a probe text has {ids}"


class Carrier:
    """Opens the tokenizer while weights are copied, and writes its files when they are."""

    def __init__(self, plan: Plan, worker: Worker) -> None:
        self.plan, self.worker = plan, worker
        self.source = plan.tokenizer or plan.donors[plan.embeddings]
        self.reading: Future[Any] | None = None
        if plan.tokenizer:
            self.reading = worker.submit("read_tokenizer", folder=str(self.source.folder))

    def write(self, folder: Path, config: Mapping[str, Any]) -> Carried:
        """Write config.json, generation_config.json and the tokenizer's files.

        Raises:
            CheckFailed: the result's tokenizer would give other ids than the donor's.
        """
        read: dict[str, Any] = self.reading.result() if self.reading else {"reason": None}
        special = read.get("special", {})
        stated = self._write_config(folder, config, special)
        self._write_generation(folder, stated, special)
        for file in self.source.tokenizer_files:
            there = folder / file.relative_to(self.source.folder)
            there.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, there)
        _forget(folder / CONFIG, code=bool(tokenizer_code(self.source.folder)[1]))
        if self.reading is None:
            return Carried(None, "no tokenizer")
        if read["reason"]:
            return Carried(None, f"the tokenizer is copied and not checked: {read['reason']}")
        self.worker.submit(
            "keep_ids",
            source=str(self.source.folder),
            folder=str(folder),
            ids=read["ids"],
            kind=read["kind"],
        ).result()
        return Carried(read["ids"], f"the tokenizer gives the ids of '{self.source.name}'")

    @property
    def _rows(self) -> int:
        return self.plan.donors[self.plan.embeddings].anatomy.vocabulary

    def _write_config(
        self, folder: Path, config: Mapping[str, Any], special: Mapping[str, Any]
    ) -> dict[str, Any]:
        """config.json; the special tokens that it states."""
        theirs, present = (
            self.worker.submit("special_tokens", config=content).result()
            for content in (self.source.config, config)
        )
        wanted = dict.fromkeys(KEYS) | agreed(theirs, special, self._rows)
        changed = {key: ids for key, ids in wanted.items() if ids != present[key]}
        content = json.dumps(encode_floats({**config, **changed}), indent=2)
        (folder / "config.json").write_text(content + "\n")
        return wanted

    def _write_generation(
        self, folder: Path, stated: Mapping[str, Any], special: Mapping[str, Any]
    ) -> None:
        """The donor's file, byte for byte if it agrees; a file where config and donor are two's."""
        file = self.source.folder / GENERATION
        own = generation_of(self.source.folder)
        wanted = agreed(
            own if own.get(EOS) is not None else {**own, EOS: stated[EOS]}, special, self._rows
        )
        changed = {key: ids for key, ids in wanted.items() if ids != own.get(key)}
        if file.is_file() and not changed:
            shutil.copyfile(file, folder / GENERATION)
        elif file.is_file() or self.source.name != self.plan.embeddings:
            known = {key: ids for key, ids in stated.items() if ids is not None}
            content = {**own, **changed} if own else known | changed
            (folder / GENERATION).write_text(json.dumps(content, indent=2) + "\n")


def _forget(file: Path, *, code: bool) -> None:
    """Leave out where on somebody's machine a tokenizer was once loaded from.

    Args:
        code: leave out the reference to code as well, which is not there.
    """
    try:
        content = read_json(file)
    except HybridizeError:  # absent, or no JSON: then it is copied as it is
        return
    name = content.get("name_or_path")
    here = isinstance(name, str) and Path(name).is_absolute()
    left_out = {*(["name_or_path"] if here else []), *(["auto_map"] if code else [])}
    if left_out:
        kept = {key: value for key, value in content.items() if key not in left_out}
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
