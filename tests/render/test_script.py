"""Shell text of others: variables, lists, branches and inner shells are followed, what is not known stays open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_engine.render import check_command, script


def served(text: str) -> list[tuple[str, ...]]:
    return [line.words for line in check_command.commands(text) if check_command.starts_engine(line)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TP=8\nvllm serve m --tp $TP", "vllm serve m --tp 8"),
        ("export TP=8 && vllm serve m --tp ${TP}", "vllm serve m --tp 8"),
        ("vllm serve m --tp ${TP:-4}", "vllm serve m --tp 4"),
        ("vllm serve m --tp $TP", "vllm serve m --tp $TP"),
        ("M=a/b; vllm serve '$M'", "vllm serve $M"),
        ('A="--x 1 --y"\nvllm serve m $A', "vllm serve m --x 1 --y"),
        ('A=(\n  --x 1  # one\n  --y\n)\nvllm serve m "${A[@]}"', "vllm serve m --x 1 --y"),
        ('A=(--x)\nA+=(--y)\nvllm serve m "${A[@]}"', "vllm serve m --x --y"),
        ('A=(--x 1)\nif [ $B ]; then A=(--x 2); fi\nvllm serve m "${A[@]}"', "vllm serve m --x 1"),
        ('if [ $B ]; then A=1; else A=2; fi\nvllm serve m --x "$A"', "vllm serve m --x $A"),
        ('A=(--x)\nif [ $B ]; then A+=(--y); fi\nvllm serve m "${A[@]}"', "vllm serve m --x ${A[@]}"),
        ("for TP in 1 2; do vllm serve m --tp $TP; done", "vllm serve m --tp $TP"),
        ("vllm serve m --n $((2 * N)) --k $(nproc)", "vllm serve m --n $((2 * N)) --k $(nproc)"),
        ('CMD=(vllm serve m\n --x)\nprintf \'%q\' "${CMD[@]}"\n"${CMD[@]}" > log 2>&1 &', "vllm serve m --x"),
        ("vllm serve <model> --tp <N>", "vllm serve <model> --tp <N>"),
        ("bash -c 'cd /app && exec vllm serve m --x'", "vllm serve m --x"),
        ("$ vllm serve m#1 # note", "vllm serve m#1"),
        ('TP=""\nvllm serve m --tp="$TP"', "vllm serve m --tp=$TP"),
    ],
)
def test_a_command_is_read_as_a_shell_would(text: str, words: str) -> None:
    assert [" ".join(each) for each in served(text)] == [words]


def test_what_is_exported_and_what_is_not() -> None:
    (line,) = check_command.commands("A=1\nexport B=2\nC=3 vllm serve m")
    assert line.env == {"B": "2", "C": "3"}
    assert line.unexported == {"A": "1"}
    (line,) = check_command.commands("A=1\nvllm serve m --x $A")
    assert line.unexported == {}


def test_other_shells_get_what_is_handed_on() -> None:
    text = "docker exec -e A=1 --env=B=2 c bash -lc 'export C=3; vllm serve m'"
    (line,) = [each for each in check_command.commands(text) if each.words[0] == "vllm"]
    assert line.env == {"A": "1", "B": "2", "C": "3"}


@given(st.text(alphabet="ab=$(){}[]\"'`\\ \n#;&|<>@:-", max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    assert isinstance(script.commands(text, lambda words: words[:1] == ("a",)), tuple)
