"""What an author of an app touches: `Realtime`, and what its decorators register."""
