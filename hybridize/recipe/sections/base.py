"""What every section of a recipe has, and the walk over all that are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from hybridize.files.yaml_source import Document, Place, as_dict, as_list

Mistake = tuple[Place, str, str | None]  # where, what was found, a fix


class Section(BaseModel):
    """A mapping of a recipe.

    Attributes:
        RENAMED: keys that it once had, and what they are called now.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    RENAMED: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def spelt(cls, written: Any) -> Any:
        """What is written, as a mapping where it is short for one."""
        return written

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        """What is wrong with the section that its fields alone do not show.

        Args:
            written: whatever stands there; it need not be a mapping.
            at: where it stands.
        """
        yield from ()


@dataclass(frozen=True)
class DonorName:
    """Marks a field that names a donor of the recipe."""


@dataclass(frozen=True)
class Kind:
    """Marks a field that names a plug-in.

    Attributes:
        plugins: which, as `plugin_names` calls them.
        noun: one of them, in messages.
    """

    plugins: str
    noun: str


@dataclass(frozen=True)
class Written:
    """A section that stands in a recipe, and where."""

    section: type[Section]
    written: Any
    at: Place

    @property
    def spelt(self) -> dict[str, Any]:
        return as_dict(self.section.spelt(self.written))

    def marked(self, mark: type) -> Iterator[tuple[Any, Any, Place]]:
        """Values of the fields that have a mark: the mark, the value, and its place."""
        for name, field in self.section.model_fields.items():
            for found in field.metadata:
                key = key_of(name, field)
                if isinstance(found, mark) and key in self.spelt:
                    is_short = key not in as_dict(self.written)
                    yield found, self.spelt[key], self.at if is_short else (*self.at, key)


def key_of(name: str, field: FieldInfo) -> str:
    """What a field is called in a recipe."""
    return field.alias or name


def walk(section: type[Section], written: Any, at: Place = ()) -> Iterator[Written]:
    """A section and all that stand in it, in the order of their fields."""
    here = Written(section, written, at)
    yield here
    for name, field in section.model_fields.items():
        key = key_of(name, field)
        inner, container = inside(field.annotation)
        value = here.spelt.get(key)
        if inner is None or value is None:
            continue
        if container is list:
            for i, item in enumerate(as_list(value)):
                yield from walk(inner, item, (*at, key, i))
        elif container is dict:
            for step, item in as_dict(value).items():
                yield from walk(inner, item, (*at, key, str(step)))
        else:
            yield from walk(inner, value, (*at, key))


def section_at(section: type[Section], where: Place) -> type[Section]:
    """The section that a place lies in."""
    for step in where:
        field = next((f for n, f in section.model_fields.items() if key_of(n, f) == step), None)
        section = (field and inside(field.annotation)[0]) or section
    return section


def inside(annotation: Any) -> tuple[type[Section] | None, type | None]:
    """The section that a field is made of, and whether in a list, in a mapping, or alone."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, None
    origin = get_origin(annotation)
    for argument in get_args(annotation):
        found, container = inside(argument)
        if found is not None:
            return found, origin if origin in (list, dict) else container
    return None, None
