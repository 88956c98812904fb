"""The checker of shapes and types while tests run: every annotated call of glip is checked by jaxtyping and beartype.

``conftest.py`` hooks it in before glip is imported. An int is a float here, as everywhere in Python's typing.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
