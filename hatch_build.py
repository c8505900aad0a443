"""Build hook: a built wheel carries the demo agent of examples/; an editable install runs it from the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DemoAgentHook(BuildHookInterface):  # type: ignore[type-arg]
    """Maps ``examples/demo_agent`` to ``sidecar/_demo_agent`` in wheels; a missing folder fails the build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the folder, unless the wheel is the shell of an editable install."""
        if version != "editable":
            build_data["force_include"]["examples/demo_agent"] = "sidecar/_demo_agent"
