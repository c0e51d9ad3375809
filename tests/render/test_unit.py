"""Unit files: text survives systemd's quoting, and the real `systemd-analyze` accepts the units where there is one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plans
from aim_engine.errors import InvalidInput
from aim_engine.render import unit
from aim_engine.render.artifact import Options
from aim_engine.render.targets import render
from hostile import unit_words

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_a_command_line_gives_back_its_words(words: list[str]) -> None:
    assert unit_words(unit.command(words)) == words


@given(TEXT)
def test_nothing_in_a_command_is_left_for_systemd_to_expand(value: str) -> None:
    line = unit.command((value,))
    assert line.replace("$$", "").count("$") == 0
    assert line.replace("%%", "").count("%") == 0
    assert "\n" not in line.replace("\\\n", "")


def test_a_line_that_systemd_would_refuse_is_refused() -> None:
    with pytest.raises(InvalidInput, match="unit file"):
        unit.command(("x" * 1_048_576,))


@pytest.mark.parametrize("folder", ["/a:b", "/a\\b", '/a"b', "relative", "~/x"])
def test_a_folder_that_a_system_unit_cannot_mount_is_refused(folder: str) -> None:
    with pytest.raises(InvalidInput):
        render(plans.dense_on_all(), "systemd", Options(name="demo", model_path=folder))


def test_a_unit_reaches_its_own_devices_and_no_others() -> None:
    (service, _) = render(plans.detected_part(), "systemd", Options(name="demo"))
    allowed = re.findall(r"^DeviceAllow=(\S+)", service.content, re.MULTILINE)
    assert allowed == ["/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD129"]
    assert "DevicePolicy=closed" in service.content
    (on_cpu, _) = render(plans.on_cpu(), "systemd", Options(name="demo"))
    assert "PrivateDevices=yes" in on_cpu.content
    assert "kfd" not in on_cpu.content


def test_a_demanded_key_makes_the_file_that_holds_it_necessary() -> None:
    optional, demanded = (
        render(plans.gated(), "systemd", Options(name="demo", api_key_secret=key))[0].content for key in (False, True)
    )
    assert "EnvironmentFile=-/etc" in optional
    assert "EnvironmentFile=/etc" in demanded
