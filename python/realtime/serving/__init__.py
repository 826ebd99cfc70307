"""An app becomes a process that serves: the engine, its options, its transports, signals and the end."""
