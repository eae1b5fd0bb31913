"""Text that grows on a terminal: leftward, from its end, as a backward model writes it."""

from collections.abc import Iterator

from backgpt.cli.terminal import for_terminal, show


def show_growing(pieces: Iterator[str], text: str = "", *, leftward: bool, label: str = "") -> str:
    """Show `text` as pieces join it, and return it whole.

    Leftward, lines fill from the end: what stands there stays. When it is finished the terminal
    wraps it, so that no line break is copied that is not in it; the `label` stands in front.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text as Lines

    console = Console(highlight=False)
    try:
        with Live(console=console, vertical_overflow="crop", transient=True) as live:
            try:
                for piece in pieces:
                    text = piece + text if leftward else text + piece
                    lines = for_terminal(text)
                    if leftward:
                        lines = "\n".join(lines_from_end(lines, console.width))
                    live.update(Lines(lines, justify="right" if leftward else "left"))
            finally:
                live.update(Lines(""))  # what is higher than the terminal could not be taken back
    finally:
        if text:
            show(label + text)
    return text


def lines_from_end(text: str, width: int) -> list[str]:
    """Wrap `text` so that lines are full at the end of a paragraph and short at its beginning."""
    from rich.cells import cell_len

    lines: list[str] = []
    for paragraph in text.split("\n"):
        *words, line = paragraph.split(" ")
        first = len(lines)
        while words:
            word = words.pop()
            if cell_len(word) + 1 + cell_len(line) > width:
                lines.insert(first, line)
                line = word
            else:
                line = f"{word} {line}"
        lines.insert(first, line)
    return lines
