"""Which app is served: `module:app`, `path.py[:app]`, or the built-in conversations where none is named.

An app that cannot be imported is the commonest mistake of all, so each way of failing is told in one line with the
place in the author's own code; nothing but this module imports it. Called by `cli.serve`.
"""

import difflib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from realtime.app.app import Realtime
from realtime.base.config import ConfigError
from realtime.conversations import Conversations

DEFAULT_NAME = "app"


def load_app(target: str | None) -> Realtime:
    """Return the app that `target` names; None takes the built-in one.

    Raises:
        ConfigError: it cannot be imported, or what it names is not an app.
    """
    if target is None:
        app = Realtime()
        app.include(Conversations())
        return app
    place, name = _split(target)
    found = _module(place, target)
    try:
        app = getattr(found, name)
    except AttributeError:
        apps = [key for key, value in vars(found).items() if isinstance(value, Realtime)]
        near = difflib.get_close_matches(name, [*apps, *vars(found)], n=1)
        named = apps or near
        advice = f"; did you mean {place}:{named[0]}?" if named else f"; write {name} = Realtime() there"
        raise ConfigError(f"{place} has no {name}{advice}") from None
    if not isinstance(app, Realtime):
        kind = type(app).__name__
        raise ConfigError(f"{place}:{name} is of type {kind}, not a Realtime app; name the app after the colon")
    return app


def watched(target: str | None) -> Path:
    """Return the directory whose changes concern the app: that of its file, else the working directory."""
    place = _split(target)[0] if target else ""
    return Path(place).resolve().parent if _is_path(place) else Path.cwd()


def _split(target: str) -> tuple[str, str]:
    place, separator, name = target.rpartition(":")
    # A colon may also belong to a drive letter, and a path may stand alone.
    if not separator or "/" in name or "\\" in name:
        return target, DEFAULT_NAME
    return place, name or DEFAULT_NAME


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _module(place: str, target: str) -> ModuleType:
    try:
        if _is_path(place):
            return _from_file(Path(place), target)
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise ConfigError(f"there is no module {error.name} for {target}; run from its directory") from error
        raise ConfigError(f"{target} cannot be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:  # the author's code may raise anything, and all of it is one line
        raise ConfigError(f"{target} cannot be imported: {_told(error)}") from error


def _from_file(path: Path, target: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {path} for {target}; name a file with a Realtime app")
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem
    if name in sys.modules:
        name = f"_served_{name}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not Python; name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _told(error: BaseException) -> str:
    """Say an error of the author's code in one line, with the deepest place that is not the import machinery."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def _is_machinery(filename: str) -> bool:
    return "importlib" in filename or filename == __file__
