"""The settings in the text of a YAML file, with their places for messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from easyrec_mm.errors import ConfigError


def yaml_settings(text: str, path: str, example: str) -> Iterator[tuple[str, str, Any]]:
    """Yield place, name and content of each setting.

    Args:
      text: the text of the file.
      path: path of the file, for messages.
      example: a line of such a file, for messages.

    Raises:
      ConfigError: if the text is not YAML, has no setting, or has one twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise ConfigError(f"{path}: names no setting; write lines such as {example}")
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(loader.construct_object(key, deep=True)), key.start_mark.line + 1
            place = f"{path}:{line}: {name}"
            if name in lines:
                raise ConfigError(f"{place}: stands in line {lines[name]}, too; keep one of them")
            lines[name] = line
            yield place, name, loader.construct_object(value, deep=True)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: is not YAML: {error.problem or error.context}; correct this line") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}; correct it") from error
    finally:
        loader.dispose()
