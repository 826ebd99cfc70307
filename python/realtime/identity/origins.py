"""`auth.origins` as the engine's rule, which both ports go by. Called by `identities` and `options`."""

from realtime._engine import Origins
from realtime.base.config import AuthSettings, ConfigError


def origin_rule(auth: AuthSettings) -> Origins:
    """Return the rule of a configuration.

    Raises:
        ConfigError: an entry is the origin of no page.
    """
    try:
        return Origins(None if auth.origins is None else list(auth.origins))
    except ValueError as error:
        raise ConfigError(f"auth.origins: {error}") from error
