"""Shapes as types: ``Float[Tensor, "batch loc tok"]`` names the axes of every tensor that crosses a function border.

They are read by people and by mypy (through jaxtyping, in the ``test`` extra) and checked while tests run (by jaxtyping
and beartype, ``tests/conftest.py``). Outside tests they cost nothing.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Shaped:
            """Stands in for jaxtyping: ``Float[Tensor, "..."]`` is then plain ``Tensor``."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = _Shaped

__all__ = ["Bool", "Float", "Int", "Size", "Tensor"]

Size = tuple[int, int]  # (height, width) in pixels
