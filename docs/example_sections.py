"""Lets the API pages show ``Example:`` as they show ``Examples:``, the one name griffe knows."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section while the sources are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls this for everything it finds in the package."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r'^(\s*)Example:$', r'\1Examples:', obj.docstring.value, flags=re.MULTILINE
            )
