"""Stop strings: a stream never shows what is taken back, and joins to the text that is left."""

from hypothesis import given
from hypothesis import strategies as st

from backgpt.stop_strings import StopStrings

FEW = st.text("ab\n", max_size=8)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def passed_on(pieces: list[str], stops: StopStrings, *, leftward: bool) -> list[str]:
    """Return what is shown after each piece, and after the end."""
    shown, found = "", []
    for piece in pieces:
        certain = stops.push(piece)
        shown = certain + shown if leftward else shown + certain
        found.append(shown)
        if stops.stopped:
            return found
    certain = stops.finish()
    return [*found, certain + shown if leftward else shown + certain]


@given(st.lists(FEW, max_size=8), STOPS, st.booleans())
def test_what_is_shown_is_the_text_up_to_the_first_stop_string(
    pieces: list[str], stop: list[str], leftward: bool
) -> None:
    stops = StopStrings(stop, leftward=leftward)
    found = passed_on(pieces, stops, leftward=leftward)
    text = ""
    for piece in pieces:
        text = piece + text if leftward else text + piece
        if ends := [one for one in stop if one in text]:
            if leftward:
                text = text[max(text.rindex(one) + len(one) for one in ends) :]
            else:
                text = text[: min(text.index(one) for one in ends)]
            assert stops.stopped
            break
    else:
        assert not stops.stopped
    assert found[-1] == text
    for shown in found:  # nothing is ever taken back
        assert text.endswith(shown) if leftward else text.startswith(shown)


def test_what_cannot_be_part_of_a_stop_string_is_shown_at_once() -> None:
    stops = StopStrings(["\n\n"], leftward=True)
    assert stops.push("end.") == "end."
    assert stops.push("\nThe ") == "The "
    assert stops.push("fox.") == "fox.\n"
    assert stops.push("\n") == ""
    assert stops.push("a\n") == ""
    assert stops.stopped
    assert stops.push("more") == ""
