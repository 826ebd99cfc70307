"""Apps that the integration tests serve: written on the public API alone, as a user would."""
