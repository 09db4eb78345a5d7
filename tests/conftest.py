"""Shapes are checked at run time under pytest: jaxtyping's annotations, by beartype, on all of tiny_onn."""

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("tiny_onn", "beartype.beartype")

# No test may fail for the machine's speed, and a failure must come again when it is looked into.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need a browser, unless -m names them: whoever has one does not want it in every run."""
    if "browser" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("browser")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
