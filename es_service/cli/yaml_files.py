"""Settings by name from a YAML file: small, flat and without aliases, so that no file keeps the command busy."""

from __future__ import annotations

from typing import Any

from es_service import errors
from es_service.storage.given import read_given

__all__ = ["read_yaml"]

_MOST_BYTES = 1 << 16
_MOST_DEPTH = 16
_MOST_INTEGER = 1 << 63


def read_yaml(flag: str, path: str) -> dict[Any, Any]:
    """Return what a YAML file holds by name; an empty one holds nothing.

    Args:
        flag: that names the file, for messages.
        path: of the file.

    Raises:
        ConfigError: it cannot be read, is not YAML, holds no settings by name, more than 64 KiB, brackets nested deeper
            than 16, aliases, or whole numbers that do not fit 64 bits.
    """
    try:
        import yaml
    except ImportError as error:
        raise errors.ConfigError(f"{flag} needs PyYAML: pip install pyyaml") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses what takes long to read, or to print."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            where = self.peek_event().start_mark
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="an alias: write the value out", problem_mark=where)
            self.depth += 1
            if self.depth > _MOST_DEPTH:
                raise yaml.MarkedYAMLError(problem=f"nested deeper than {_MOST_DEPTH}", problem_mark=where)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_yaml_int(self, node: Any) -> int:
            value = int(super().construct_yaml_int(node))
            if abs(value) > _MOST_INTEGER:
                raise yaml.MarkedYAMLError(problem="a number beyond 64 bits", problem_mark=node.start_mark)
            return value

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    try:
        values = yaml.load(read_given(path, _MOST_BYTES).decode("utf-8"), Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date that is none
        raise errors.ConfigError(f"cannot read {flag} {path}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise errors.ConfigError(f"{flag} {path} holds a {type(values).__name__}, expected settings by name")
    return values
