"""The built-in corpus: what ships is what the generator makes, and it reads like stories."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from backgpt import corpus
from backgpt.corpus import grammar, write
from backgpt.corpus.cast import Cast
from backgpt.errors import CorruptFileError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+")


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return corpus.stories()


@pytest.fixture(scope="module")
def library() -> write.Library:
    return write.load_library()


@pytest.fixture(scope="module")
def names(library: write.Library) -> frozenset[str]:
    tables = ("girl", "boy", "animal_name")
    return frozenset(name for table in tables for name in library.tables[table])


def failing(stories: list[str], pattern: str) -> list[str]:
    """Return what `pattern` finds in any story, for a test that says it finds nothing."""
    return [match[0] for story in stories for match in re.finditer(pattern, story)]


def test_shipped_file_is_what_the_generator_writes(stories: list[str]) -> None:
    # Texts are compared, not compressed bytes: those may differ between versions of liblzma.
    assert write.write_stories() == stories


def test_generated_stories_depend_on_the_seed() -> None:
    assert write.write_stories(40, seed=1) == write.write_stories(40, seed=1)
    assert not set(write.write_stories(40, seed=1)) & set(write.write_stories(40, seed=2))


def test_write_makes_a_file_that_stories_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "corpus_text", lambda: "One.\nTwo.\n\nThree.\n")
    assert write.main([str(tmp_path / corpus.STORIES_FILE)]) == 0

    monkeypatch.setattr(corpus, "files", lambda package: tmp_path)
    assert corpus.stories() == ["One.\nTwo.", "Three."]
    assert [path.name for path in tmp_path.iterdir()] == [corpus.STORIES_FILE]


def test_write_without_a_path_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert write.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "PATH" in captured.err


@pytest.mark.parametrize("damage", ["missing", "truncated", "not xz"])
def test_damaged_file_is_a_corrupt_file_error(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = Path(corpus.__file__).with_name(corpus.STORIES_FILE).read_bytes()
    contents = {"truncated": packed[:1000], "not xz": b"Once upon a time"}
    if damage in contents:
        (tmp_path / corpus.STORIES_FILE).write_bytes(contents[damage])

    monkeypatch.setattr(corpus, "files", lambda package: tmp_path)
    with pytest.raises(CorruptFileError, match="reinstall"):
        corpus.stories()


def test_count_and_sizes_are_in_range(stories: list[str]) -> None:
    assert 2_500 <= len(stories) <= 3_000
    assert 1_500_000 <= len("\n\n".join(stories).encode()) <= 2_000_000
    assert Path(corpus.__file__).with_name(corpus.STORIES_FILE).stat().st_size < 250_000

    words = [len(story.split()) for story in stories]
    assert min(words) >= 75
    assert max(words) <= 250


def test_all_stories_are_distinct(stories: list[str]) -> None:
    assert len(set(stories)) == len(stories)


def test_every_story_has_paragraphs_and_a_terminated_end(stories: list[str]) -> None:
    assert all(re.search(r"[.!?]\"?$", story) for story in stories)
    assert all(3 <= len(story.split("\n")) <= 9 for story in stories)
    assert not failing(stories, r"(?m)[^.!?\"]$")


def test_no_markup_of_the_grammar_is_left(stories: list[str]) -> None:
    assert not failing(stories, r"[{}\[\]|@+/=#~_]")


def test_text_is_plain_ascii_with_clean_spacing(stories: list[str]) -> None:
    assert all(story.isascii() for story in stories)
    assert not failing(stories, r"  |\t|\n\n| \n|\n | [,.!?]|^ | $")


def test_articles_agree_and_no_word_is_doubled(stories: list[str]) -> None:
    assert not failing(stories, r"\b[Aa] [aeiouAEIOU]\w*")
    assert not failing(stories, r"\b[Aa]n (?!hour|honest)[^aeiouAEIOU]\w*")
    assert not failing(stories, r"\b(\w+) \1\b")
    assert not failing(stories, r"\b[Aa]n? (\w+ )?(the|a|an)\b")


def test_quotes_are_balanced_in_every_paragraph(stories: list[str]) -> None:
    paragraphs = [paragraph for story in stories for paragraph in story.split("\n")]
    assert not [paragraph for paragraph in paragraphs if paragraph.count('"') % 2]
    assert not failing(stories, r'(^|\s)"\s|\w"\w')


def test_sentences_begin_with_a_capital(stories: list[str]) -> None:
    assert not failing(stories, r"(?m)^[a-z]|[.!?] [a-z]")
    assert not failing(stories, r'(?:[.!?]"? |^)"[a-z]\w*')


def test_a_story_keeps_to_its_one_or_two_names(stories: list[str], names: frozenset[str]) -> None:
    for story in stories:
        assert 1 <= len(names & set(re.findall(r"\w+", story))) <= 2, story


def test_the_end_of_a_story_names_who_it_was_about(
    stories: list[str], names: frozenset[str]
) -> None:
    unnamed = 0
    for story in stories:
        ending = story.removesuffix("The end.").strip().split("\n")[-2:]
        known = names & set(re.findall(r"\w+", story))
        unnamed += not known & set(re.findall(r"\w+", " ".join(ending)))
    assert unnamed / len(stories) < 0.02


def test_endings_vary_and_a_share_is_the_end(stories: list[str]) -> None:
    share = sum(story.endswith("The end.") for story in stories) / len(stories)
    assert 0.25 < share < 0.45

    last = Counter(SENTENCE_END.split(story)[-1] for story in stories)
    assert len(last) > 800
    assert last["And they lived happily ever after."] >= 20
    assert sum(n for sentence, n in last.items() if "sleep" in sentence) >= 40
    assert sum(n for sentence, n in last.items() if "hug" in sentence) >= 30


def test_sentences_and_word_runs_are_diverse(stories: list[str]) -> None:
    sentences = [sentence for story in stories for sentence in SENTENCE_END.split(story)]
    counts = Counter(sentences)
    assert len(counts) > 20_000
    assert len(counts) / len(sentences) > 0.45

    del counts["The end."]
    assert max(counts.values()) < 200

    words = "\n\n".join(stories).split()
    assert len(set(words)) > 2_500
    runs = set(zip(*(words[i:] for i in range(8)), strict=False))
    assert len(runs) / len(words) > 0.55


def test_every_variant_of_every_plot_can_be_told(library: write.Library) -> None:
    for plot in library.plots:
        lines = [line for step in plot.steps for line in step.variants]
        lines += [line for pool in plot.closings for line in library.pools[pool]]
        for seed, line in enumerate(lines):
            rng = Random(seed)
            cast = Cast(plot.cast, library.tables, rng)
            assert "{" not in cast.fill(grammar.expand(line, library.pools, rng))


def test_plots_and_tables_are_as_rich_as_promised(
    library: write.Library, names: frozenset[str]
) -> None:
    objects = {
        entry.partition(":")[0]
        for table in ("toy", "treasure", "food", "bake", "fragile", "clothes", "fixable", "stuck")
        for entry in library.tables[table]
    }
    assert len(library.plots) >= 30
    assert len(names) >= 60
    assert len(objects) >= 60
    assert all(len(plot.steps) >= 6 and len(plot.closings) >= 3 for plot in library.plots)


def test_first_mention_introduces_an_animal_and_later_ones_do_not(library: write.Library) -> None:
    cast = Cast({"hero": "animal"}, library.tables, Random(3))
    first, later = cast.fill("{hero}"), cast.fill("{hero}")
    assert first == f"{later} the {cast.fill('{hero.kind}')}"


def test_expand_draws_pools_and_nested_choices() -> None:
    drawn = {
        grammar.expand("{@greet} [a|b [c|d]] {slot}", {"greet": ["Hi", "Ho"]}, Random(seed))
        for seed in range(60)
    }
    assert drawn == {f"{g} {x} {{slot}}" for g in ("Hi", "Ho") for x in ("a", "b c", "b d")}
