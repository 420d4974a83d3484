"""Load a ``FusionSpec`` from a YAML file and dotted overrides; all faults are reported at once."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from engine.errors import Fault, SpecError
from engine.spec.checks import cross_field_faults
from engine.spec.presets import with_preset
from engine.spec.sections import FusionSpec
from engine.spec.yaml_text import read_yaml

#: Longest file that may be a spec: a model or a corpus in its place would fill the memory.
MOST_SPEC_BYTES = 2**20

#: Shows as much of a value as a message has room for.
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 4


def load_spec(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> FusionSpec:
    """Read and check a spec.

    Args:
        source: path of a YAML file, or the mapping in such a file. Its key ``preset`` names one of
            ``presets.PRESETS``, whose values fill the gaps of the spec.
        overrides: ``section.field=value``, the value in YAML; list items by position (``source_models.0.replicas=2``).

    Raises:
        SpecError: lists every fault with its dotted path, the value seen and the values allowed.
    """
    document = dict(source) if isinstance(source, Mapping) else _read_document(Path(source))
    for override in overrides:
        document = _with_override(document, override)
    return parse(with_preset(document))


def dump_spec(spec: FusionSpec) -> str:
    """The spec with all defaults as YAML; ``load_spec`` reads it back to an equal spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def parse(document: Mapping[str, Any]) -> FusionSpec:
    """Check a mapping section by section, so that a fault in one section hides none in another.

    Raises:
        SpecError: lists every fault.
    """
    faults = _unknown_keys(document, FusionSpec, where="")
    sections: dict[str, Any] = {}
    for name, field in FusionSpec.model_fields.items():
        if name not in document:
            if field.is_required():
                faults.append(Fault(name, "this section is missing", _required_fields(field.annotation)))
            else:
                sections[name] = field.default
            continue
        try:
            sections[name] = TypeAdapter(field.annotation).validate_python(document[name])
        except ValidationError as error:
            faults += [_fault(name, detail) for detail in error.errors(include_url=False)]
    faults += cross_field_faults(sections)
    if faults:
        raise SpecError(sorted(faults, key=lambda fault: fault.where))
    return FusionSpec(**sections)


def _read_document(path: Path) -> dict[str, Any]:
    document = read_yaml(_text_of(path), str(path))
    if not isinstance(document, dict):
        raise SpecError([Fault(str(path), f"holds {_shown(document)}", "a spec is a mapping of sections")])
    return document


def _text_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_SPEC_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise SpecError([Fault(str(path), f"cannot be read: {reason}", "give the path of a YAML spec")]) from None
    if len(data) > MOST_SPEC_BYTES:
        reason = f"is longer than {MOST_SPEC_BYTES:,} bytes, so it is no spec"
        raise SpecError([Fault(str(path), reason, "give the path of a YAML spec")])
    try:
        return data.decode("utf8")
    except UnicodeDecodeError as error:
        raise SpecError([Fault(str(path), f"is not UTF-8 text (byte {error.start})", "save it as UTF-8")]) from None


def _with_override(document: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of ``document`` with the value of one ``section.field=value``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError([Fault(override, "is not an override", "write section.field=value")])
    value = read_yaml(text, override)
    try:
        return _replaced(document, path.split("."), value)
    except _NoSuchPlace as error:
        raise SpecError([Fault(override, f"names a place that the spec does not have: {error}")]) from None


class _NoSuchPlace(Exception):
    """An override leads nowhere; the message says why."""


def _replaced(node: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    head, rest = keys[0], keys[1:]
    if isinstance(node, list | tuple):
        places = [str(place) for place in range(len(node))]
        if head not in places:
            raise _NoSuchPlace(f"{head!r} is no position of a list of {len(node)}, which count from 0")
        index = int(head)
        return [*node[:index], _replaced(node[index], rest, value), *node[index + 1 :]]
    if not isinstance(node, Mapping):
        raise _NoSuchPlace(f"{head!r} would be inside a value, not a section")
    return {**node, head: _replaced(node.get(head, {}), rest, value)}


def _unknown_keys(document: Mapping[str, Any], section: type[BaseModel], where: str) -> list[Fault]:
    unknown = [key for key in document if key not in section.model_fields]
    return [Fault(where + str(key), "is no such section", _allowed_keys(str(key), section)) for key in unknown]


def _allowed_keys(key: str, section: type[BaseModel]) -> str:
    near = difflib.get_close_matches(key, section.model_fields, n=1)
    return (f"did you mean {near[0]}? " if near else "") + "allowed: " + ", ".join(section.model_fields)


def _required_fields(section: type[BaseModel]) -> str:
    required = [name for name, field in section.model_fields.items() if field.is_required()]
    return f"it needs {', '.join(required)}" if required else f"its fields: {', '.join(section.model_fields)}"


def _fault(section: str, detail: Mapping[str, Any]) -> Fault:
    """One of pydantic's errors as a fault: the dotted path, the value seen, the values allowed."""
    keys = [section, *detail["loc"]]
    where = ".".join(str(key) for key in keys)
    if detail["type"] == "extra_forbidden":
        owner = _section_at(keys[:-1])
        return Fault(where, "is no such field", _allowed_keys(str(keys[-1]), owner) if owner else "")
    if detail["type"] == "missing":
        return Fault(where, "is missing", _description_at(keys))
    shown = _shown(detail["input"])
    if detail["type"] == "tuple_type" and isinstance(detail["input"], str):
        return Fault(where, f"{shown} is a text, not a list", f"write [{detail['input']}]. {_description_at(keys)}")
    return Fault(where, f"{shown} cannot be used", f"{detail['msg']}. {_description_at(keys)}".strip())


def _section_at(keys: Sequence[str | int]) -> type[BaseModel] | None:
    """The section class at a dotted path of the spec, through tuples of sections; None if there is none."""
    owner: Any = FusionSpec
    left = iter(keys)
    for key in left:
        if isinstance(key, int):
            continue
        field = owner.model_fields.get(key)
        owner = _section_in(field.annotation) if field else None
        if owner is None:
            return None
        if get_origin(field.annotation) is dict:
            next(left, None)  # the name of one of its sections
    return owner


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class that an annotation is or contains, as in ``tuple[SourceModelSpec, ...]``."""
    candidates = (annotation, *get_args(annotation))
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _description_at(keys: Sequence[str | int]) -> str:
    names = [key for key in keys if isinstance(key, str)]
    owner = _section_at(names[:-1])
    field = owner.model_fields.get(names[-1]) if owner else None
    return " ".join((field.description or "").split()) if field else ""


def _shown(value: Any) -> str:
    """At most 80 characters of a value; aliases of YAML can make one that has no end."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def as_located_spec(spec: FusionSpec | Mapping[str, Any] | str | Path) -> FusionSpec:
    """The spec with every local path absolute, so that it means the same in every process of the run.

    Args:
        spec: a spec, a mapping or the path of a YAML file. Relative paths in it count from the working directory.

    Raises:
        SpecError: a mapping or file is not a spec.
    """
    if not isinstance(spec, FusionSpec):
        spec = load_spec(spec)
    run = spec.run.model_copy(update={"output_dir": _absolute(spec.run.output_dir)})
    domains = {
        name: domain.model_copy(update={"paths": _all_absolute(domain.paths)})
        for name, domain in spec.corpus.domains.items()
    }
    corpus = spec.corpus.model_copy(update={"paths": _all_absolute(spec.corpus.paths), "domains": domains})
    alignment = spec.alignment.model_copy(update={"cache_dir": _absolute(spec.alignment.cache_dir)})
    update = {
        "run": run,
        "corpus": corpus,
        "target_model": _with_located_checkpoint(spec.target_model),
        "source_models": tuple(map(_with_located_adapter, map(_with_located_checkpoint, spec.source_models))),
        "alignment": alignment,
        "evaluation": _located_evaluation(spec.evaluation),
    }
    return spec.model_copy(update=update)


def _with_located_checkpoint(model: Any) -> Any:
    template = _absolute(model.chat_template) if model.chat_template else ""
    return model.model_copy(update={"checkpoint": _located_checkpoint(model.checkpoint), "chat_template": template})


def _with_located_adapter(source: Any) -> Any:
    return source.model_copy(update={"adapter": _absolute(source.adapter)}) if source.adapter else source


def _located_evaluation(evaluation: Any) -> Any:
    """The section with absolute paths; a member of a merge or an ensemble may be a label, which is not a path."""
    labels = {*evaluation.models, *evaluation.merges}

    def located(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name if name in labels else _located_checkpoint(name) for name in names)

    merges = {
        label: merge.model_copy(update={"models": located(merge.models), "base": located([merge.base])[0]})
        for label, merge in evaluation.merges.items()
    }
    return evaluation.model_copy(
        update={
            "corpora": {domain: _all_absolute(paths) for domain, paths in evaluation.corpora.items()},
            "models": {label: _located_checkpoint(name) for label, name in evaluation.models.items()},
            "merges": merges,
            "ensembles": {label: located(names) for label, names in evaluation.ensembles.items()},
            "task_folders": _all_absolute(evaluation.task_folders),
        }
    )


def _located_checkpoint(checkpoint: str) -> str:
    """An existing folder or file as an absolute path; hub names and URLs unchanged."""
    return _absolute(checkpoint) if checkpoint and os.path.exists(os.path.expanduser(checkpoint)) else checkpoint


def _all_absolute(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(_absolute(path) for path in paths)


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(os.path.expanduser(path)).absolute())
