"""The playground: plain HTML, CSS and modules, shipped in the wheel, for a server whose secret is the generated one.

Its files are read once, so a path names one of them or nothing; the page may load and call only its own server and the
edge (content security policy).
"""

from importlib import resources
from urllib.parse import urlsplit

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from realtime.api.routes import DEVELOPMENT, GIVES_WAY, admitted_only

_MEDIA = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


def routes(url: str) -> list[HTTPRouteHandler]:
    """Return the playground's routes: `/` and each file of `static/` by its name; `url` is that of the edge."""
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self' {origin}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    files = {
        file.name: file.read_bytes()
        for file in resources.files("realtime.api").joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in _MEDIA
    }

    def page(name: str) -> HTTPRouteHandler:
        paths = ["/", f"/{name}"] if name == "index.html" else [f"/{name}"]

        @get(
            paths,
            guards=[admitted_only],
            opt={GIVES_WAY: True, DEVELOPMENT: True},
            sync_to_thread=False,
            include_in_schema=False,
        )
        def file() -> Response[bytes]:
            return Response(files[name], media_type=_MEDIA[name.rpartition(".")[2]], headers=headers)

        return file

    return [page(name) for name in files]
