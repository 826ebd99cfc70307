"""Parameters of paths that several families of routes have."""

from typing import Annotated

from litestar.params import PathParameter

User = Annotated[str, PathParameter(min_length=1, max_length=256, description="The user's id.")]
