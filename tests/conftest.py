"""Shapes are checked at run time under pytest: jaxtyping's annotations, by beartype, on all of tiny_onn."""

from jaxtyping import install_import_hook

install_import_hook("tiny_onn", "beartype.beartype")
