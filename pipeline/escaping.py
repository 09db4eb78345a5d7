"""Text that somebody else may have written, a file's name for one, as it can be shown in a terminal."""


def shown(text: str, keep: str = "\n\t") -> str:
    """`text` with all that could steer a terminal, colours, cursor moves and changes of direction, written as escapes.

    >>> shown("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
