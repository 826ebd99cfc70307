"""The Python half of a running server: events in, handlers called, commands out, all on the loop's thread."""
