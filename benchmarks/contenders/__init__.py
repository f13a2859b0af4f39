"""The ways to save and restore that are compared: `entries` lists them, `base` says what each can do."""
