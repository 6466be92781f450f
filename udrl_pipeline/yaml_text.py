"""YAML as users write it: plain values, no tags that make objects, no aliases that make gigabytes out of ten lines."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases: `<<: [*a, *a]` and its like grow without limit."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor}: aliases are not read, write it out", event.start_mark)
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: It is no YAML, holds an alias or a tag, is nested too deeply, or holds a number or date that is none.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # such as 2024-13-45, or a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from None
