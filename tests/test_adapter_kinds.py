"""The table of docs/adapters.md: every kind of adapter that PEFT has is exact or refused, line by line."""

from __future__ import annotations

import pytest
from adapter_kinds import EXACT, KINDS, line, outcomes, table, written

QUICK = ("LoRA", "LoRA, PiSSA", "IA3", "Prompt tuning")


def test_the_table_names_every_kind_of_this_peft():
    """A kind that PEFT has gained, or lost, needs a line of its own."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    of_peft = {config.__name__ for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    needs_others = {"XLoraConfig"}  # a mixture of LoRAs that were trained before
    assert {kind.config for kind in KINDS.values()} == of_peft - needs_others
    assert all(hasattr(peft, kind.config) for kind in KINDS.values())
    rows = [row.split(" | ")[0].removeprefix("| ") for row in written()[2:]]
    assert rows == list(KINDS)
    assert written()[:2] == table({}).splitlines()


def test_what_is_switched_exactly_is_what_may_be_loaded():
    """`LAYERWISE`, which decides, and the table, which was measured, agree."""
    import peft

    from caa.models.adapter_state import LAYERWISE

    exact = set()
    for row, kind in zip(written()[2:], KINDS.values(), strict=True):
        if row.split(" | ")[1] == EXACT:
            exact.add(getattr(peft, kind.config)().peft_type.value if kind.config != "AdaLoraConfig" else "ADALORA")
    assert exact == LAYERWISE


@pytest.mark.parametrize("name", QUICK)
def test_the_commonest_kinds_are_what_the_table_says(name):
    assert line(name, outcomes(KINDS[name])) in written()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name not in QUICK])
def test_a_kind_is_exact_or_refused_as_the_table_says(name):
    assert line(name, outcomes(KINDS[name])) in written()
