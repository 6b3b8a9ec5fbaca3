"""`scenes`: the built-in laboratory. Rendered objects whose truth is known exactly, so that every caption can be judged."""
