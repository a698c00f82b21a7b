"""The one exception that means "the user can mend this"."""


class VistokError(ValueError):
    """A user's mistake: one clear sentence that says what was seen, what was expected, and the mend.

    The command line prints the sentence and exits with code 2; Python callers catch it like any ValueError.
    """


def unknown_name(kind: str, name: str, known: list[str]) -> VistokError:
    """The error for a name that no registry knows, with the nearest known names.

    Args:
        kind: what the name should have been, e.g. ``"sampler"``.
        name: what was typed.
        known: all valid names.
    """
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}."
    return VistokError(f"unknown {kind} '{name}': {hint}")
