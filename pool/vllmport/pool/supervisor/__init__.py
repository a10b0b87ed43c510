"""The supervisor process: routes calls, decides over workers, never touches an engine."""
