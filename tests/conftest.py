"""Shapes are checked at run time under pytest: jaxtyping's annotations, by beartype, on all of tiny_onn."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("tiny_onn", "beartype.beartype")

# No test may fail for the machine's speed, and a failure must come again when it is looked into.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
